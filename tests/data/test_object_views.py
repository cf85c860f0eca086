import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from tests.support.errors import refused
from threedgen.config import load
from threedgen.data.coloured_mesh import fit_to_cube
from threedgen.data.object_views import AZIMUTH, ELEVATION, MeshObjects, ObjectViews, frame_on_grey
from threedgen.data.options import MeshFolderConfig
from threedgen.guidance.priors.mvadapter import inputs
from threedgen.guidance.priors.mvadapter.inputs import RAY_VIEWS, cameras_from_angles
from threedgen.toybox.data.pictures import ToyboxObjects
from threedgen.toybox.options import ToyboxObjectsConfig
from threedgen.toybox.world.toybox import toybox_mesh

SIZE = 32


def toybox(**options: Any) -> ToyboxObjects:
    return ToyboxObjects(ToyboxObjectsConfig(count=9), 3, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a red box, twice as wide (x, as y is up in the file) as high, and four balls."""
    (tmp_path / "balls").mkdir()
    box = trimesh.creation.box((2.0, 1.0, 1.0))
    box.visual.vertex_colors = [255, 0, 0, 255]
    box.apply_translation((5, 0, 0)).export(tmp_path / "a_red-box.glb")
    for number in range(4):
        trimesh.creation.icosphere(radius=3.0).export(tmp_path / "balls" / f"{number}.obj")
    (tmp_path / "._a_red-box.glb").write_bytes(b"notes of macOS")
    return tmp_path


def meshes(
    folder: Path, split: Any = "train", control: Any = "rays", reference: Any = True, **more: Any
) -> MeshObjects:
    options = MeshFolderConfig(path=str(folder), **{"held_out": 2, "pictures": 2, **more})
    return MeshObjects(options, 3, split, control, reference)


def test_entries_are_the_same_in_every_block(folder: Path) -> None:
    for source in (toybox(), meshes(folder)):
        whole, part = source.render_examples(range(1, 5), SIZE), source.render_examples(range(2, 4), SIZE)
        assert whole.rgb.shape == (4 * 7, SIZE, SIZE, 3) and whole.rgb.dtype == np.float32 and source.n_view == 7
        assert np.array_equal(whole.rgb[7:21], part.rgb) and np.array_equal(whole.c2w[7:21], part.c2w)
        assert whole.captions[1:3] == part.captions and 0 <= whole.rgb.min() and whole.rgb.max() <= 1
    one = toybox(reference=False).render_examples(range(1, 2), SIZE)
    assert np.array_equal(one.rgb, toybox().render_examples(range(1, 2), SIZE).rgb[:6])
    changes = {"control": "geometry", "reference": False, "split": "held-out", "fov": 40.0, "anywhere": 0.6}
    descriptions = {toybox(**{key: value}).describe() for key, value in changes.items()}
    assert len(descriptions | {toybox().describe(), meshes(folder).describe()}) == len(changes) + 2


def test_cameras_are_the_adapters_and_one_near_the_front() -> None:
    for control, sides in (("rays", RAY_VIEWS), ("geometry", inputs.GEOMETRY_VIEWS)):
        c2w = toybox(control=control).render_examples(range(2), SIZE).c2w.reshape(2, 7, 4, 4)
        assert np.allclose(c2w[0, :6], cameras_from_angles(sides, SIZE, SIZE).c2w, atol=1e-6)
        assert not np.allclose(c2w[0, 6], c2w[1, 6])
    angles = np.array([toybox().reference_angles(index) for index in range(200)])
    assert angles[:, 0].min() > ELEVATION[0] - 1e-9 and angles[:, 0].max() < ELEVATION[1]
    assert np.abs(angles[:, 1]).max() < AZIMUTH and angles.std(0).min() > 8


def test_anywhere_rotates_the_cameras_of_a_share_of_objects() -> None:
    source = toybox(anywhere=0.6)
    angles = np.array([source.view_directions(index) for index in range(300)])
    own = (angles != np.array(RAY_VIEWS)).any((1, 2))
    assert 0.5 < own.mean() < 0.7
    raised, first = angles[own, 0, 0], angles[own, 0, 1]
    assert 0 <= raised.min() and raised.max() <= 30 and raised.std() > 6 and np.histogram(first, 4)[0].min() > 20
    assert (angles[..., 0] == angles[:, :1, 0]).all(), "one elevation for all sides"
    turns = (angles[..., 1] - angles[:, :1, 1]) % 360
    assert np.allclose(turns, [azimuth for _, azimuth in RAY_VIEWS])
    index = int(np.argmax(own))
    c2w = source.render_examples(range(index, index + 1), SIZE).c2w[:6]
    assert np.allclose(c2w, source.cameras(index, SIZE).c2w)
    assert np.allclose(c2w, cameras_from_angles([tuple(pair) for pair in angles[index]], SIZE, SIZE).c2w, atol=1e-6)


def test_rays_keep_the_object_size_and_geometry_normalises_it() -> None:
    def share(source: ObjectViews) -> list[float]:
        rgb = source.render_examples(range(6), SIZE).rgb.reshape(6, 7, SIZE, SIZE, 3)
        masks = (rgb != 0.5).any(-1)[:, :6]
        return [max(np.ptp(np.nonzero(mask)[1]), np.ptp(np.nonzero(mask)[2])) / SIZE for mask in masks]

    assert np.std(share(toybox())) > 0.03 and max(share(toybox())) < 0.95
    assert min(share(toybox(control="geometry"))) > 0.8
    references = toybox().render_examples(range(6), SIZE).rgb.reshape(6, 7, SIZE, SIZE, 3)[:, 6]
    for image in references:  # framed like users' images
        rows, columns = np.nonzero((np.abs(image - 0.5) > 0.02).any(-1))
        assert 0.8 < max(np.ptp(rows) + 1, np.ptp(columns) + 1) / SIZE < 1
    assert torch.equal(frame_on_grey(torch.full((8, 8, 3), 0.5)), torch.full((8, 8, 3), 0.5)), "an empty image"


@pytest.mark.parametrize("fov", [0.0, 40.0])
def test_maps_of_toybox_objects_agree_with_their_meshes(fov: float) -> None:
    source = toybox(control="geometry", reference=False, fov=fov)
    assert source.cameras(0, SIZE).projection.parallel == (not fov)
    for index in range(3):
        mesh = fit_to_cube(toybox_mesh(source.box.asset(index), 48), inputs.HALF)
        expected = inputs.geometry_maps(*map(torch.from_numpy, mesh.surface(source.cameras(index, SIZE))))
        found = source.maps(index, SIZE)
        assert found.shape == (6, 6, SIZE, SIZE) and 0 <= found.min() and found.max() <= 1
        assert (found - expected).abs().mean() < 0.02 and (found - expected).abs().median() == 0
        both = (found != 0.5).any(1) & (expected != 0.5).any(1)
        assert (found - expected).abs()[:, :3].amax(1)[both].quantile(0.9) < 0.01  # round solids are faceted in meshes


def test_maps_of_a_mesh_hold_positions_and_normals(folder: Path) -> None:
    source = meshes(folder, control="geometry", reference=False)
    assert source.caption(0) == "a red box" and source.caption(1) == "an object" and len(source) == 3
    front, right, back, left, top, _ = source.maps(0, SIZE)[:, :, SIZE // 2, SIZE // 2]
    # the file's x is our y, the box's long side; the model's axes have the front at -y: (y, -x, z)
    assert torch.allclose(front, torch.tensor([0.5, 0.25, 0.5, 0.5, 0.0, 0.5]), atol=0.02)
    assert torch.allclose(back, torch.tensor([0.5, 0.75, 0.5, 0.5, 1.0, 0.5]), atol=0.02)
    assert torch.allclose(right, torch.tensor([1.0, 0.5, 0.5, 1.0, 0.5, 0.5]), atol=0.02)
    assert torch.allclose(left, torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5, 0.5]), atol=0.02)
    assert torch.allclose(top, torch.tensor([0.5, 0.5, 0.75, 0.5, 0.5, 1.0]), atol=0.02)
    assert (source.maps(0, SIZE)[:, :, 0, 0] == 0.5).all()
    lit = source.render_examples(range(1), SIZE).rgb[0]
    assert lit[SIZE // 2, SIZE // 2, 0] > 0.6 and lit[SIZE // 2, SIZE // 2, 1:].max() < 0.1
    unlit = meshes(folder, light=False).render_examples(range(1), SIZE).rgb[0]
    assert np.allclose(unlit[SIZE // 2, SIZE // 2], [1, 0, 0], atol=1e-6)


def test_mesh_folder_has_captions_and_a_held_out_split(folder: Path) -> None:
    captions = folder / "captions.json"
    captions.write_text(json.dumps({"balls/3.obj": "a grey ball", "a_red-box.glb": "a brick"}))
    train, held_out = (meshes(folder, split, captions=str(captions)) for split in ("train", "held-out"))
    assert len(train) == 6 and train.caption(0) == train.caption(3) == "a brick"
    assert [held_out.caption(index) for index in range(2)] == ["an object", "a grey ball"]
    assert train.reference_angles(0) != train.reference_angles(3)


def test_csv_of_captions_selects_and_turns_meshes(folder: Path) -> None:
    (folder / "captions.csv").write_text("a_red-box.glb,a brick,y,90\nballs/3.obj,a ball\nlost.obj,a cup\n")
    source = meshes(folder, control="geometry", reference=False, captions="captions.csv", held_out=1)
    assert len(source) == 1 and source.caption(0) == "a brick"
    front = source.maps(0, SIZE)[0, :, SIZE // 2, SIZE // 2]  # the long side is the depth now
    assert torch.allclose(front, torch.tensor([0.5, 0.0, 0.5, 0.5, 0.0, 0.5]), atol=0.02)
    words = [f"objects={folder}", "objects.captions=captions.csv"]
    with refused("objects.path", "held_out=8"):
        load("train-mvadapter-toybox", words).check()
    notes = load("train-mvadapter-toybox", [*words, "objects.held_out=1"]).notes()
    files = ("balls/1.obj", "lost.obj", "balls/3.obj", "a_red-box.glb")
    assert [sum(file in note for note in notes) for file in files] == [1, 1, 0, 0]


def test_unreadable_meshes_are_replaced_by_the_next_of_the_split(folder: Path, caplog) -> None:
    for number in range(2):  # all of the split but the box
        (folder / "balls" / f"{number}.obj").write_bytes(b"")
    source = meshes(folder, control="geometry", reference=False)
    found, description = source.render_examples(range(1, 4), SIZE), source.describe()
    assert found.captions == ["a red box"] * 3 and source.caption(2) == "a red box"
    assert np.array_equal(found.rgb[:6], found.rgb[12:]) and np.array_equal(found.rgb[6:12], found.rgb[12:])
    assert torch.equal(source.maps(1, SIZE), source.maps(0, SIZE))
    assert [sum(f"{number}.obj" in text for text in caplog.messages) for number in range(2)] == [1, 1]
    assert meshes(folder, control="geometry", reference=False).describe() == source.describe() == description
    (folder / "a_red-box.glb").write_bytes(b"")
    with refused("path", folder):
        meshes(folder).render_examples(range(1), SIZE)


@pytest.mark.parametrize(
    ("options", "text", "key", "named"),
    [
        ({}, '{"balls/9.obj": "a ball"}', "captions", ("'balls/9.obj'", "did you mean 'balls/")),
        ({}, '{"balls/1.obj": 3}', "captions", ("captions.json", "JSON")),
    ],
)
def test_mesh_folder_refuses_bad_options(folder, options, text, key, named, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    if text is not None:
        (folder / "captions.json").write_text(text)
        options = {"captions": "captions.json"}
    with refused(key, *named):
        MeshFolderConfig(**{"path": str(folder), "held_out": 1, **options}).check()
