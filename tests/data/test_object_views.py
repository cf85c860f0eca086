"""Objects from the sides that an adapter draws: the same ones whenever asked, with maps of what the pictures show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from threedgen.config import ConfigError
from threedgen.data.coloured_mesh import fitted, toybox_mesh
from threedgen.data.meshes import MeshObjects
from threedgen.data.object_views import AZIMUTH, ELEVATION, ObjectViews, alone
from threedgen.data.options import MeshFolderConfig, ToyboxObjectsConfig
from threedgen.data.toybox.pictures import ToyboxObjects
from threedgen.guidance.mvadapter.cameras import GEOMETRY_VIEWS, HALF, RAY_VIEWS, geometry_maps, views

SIZE = 32


def toys(**options: Any) -> ToyboxObjects:
    return ToyboxObjects(ToyboxObjectsConfig(count=9), 3, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A red box twice as wide (y of the file's up, so x) as high, and four balls."""
    (tmp_path / "balls").mkdir()
    box = trimesh.creation.box((2.0, 1.0, 1.0))
    box.visual.vertex_colors = [255, 0, 0, 255]
    box.apply_translation((5, 0, 0)).export(tmp_path / "a_red-box.glb")
    for number in range(4):
        trimesh.creation.icosphere(radius=3.0).export(tmp_path / "balls" / f"{number}.obj")
    return tmp_path


def meshes(
    folder: Path, split: Any = "train", control: Any = "rays", reference: bool = True, **more: Any
) -> MeshObjects:
    options = MeshFolderConfig(path=str(folder), **{"held_out": 2, "pictures": 2, **more})
    return MeshObjects(options, 3, split, control, reference)


def test_an_entry_is_the_same_in_every_block(folder: Path) -> None:
    for source in (toys(), meshes(folder)):
        whole, part = source.block(range(1, 5), SIZE), source.block(range(2, 4), SIZE)
        assert whole.rgb.shape == (4 * 7, SIZE, SIZE, 3) and whole.rgb.dtype == np.float32 and source.n_view == 7
        assert np.array_equal(whole.rgb[7:21], part.rgb) and np.array_equal(whole.c2w[7:21], part.c2w)
        assert whole.captions[1:3] == part.captions and 0 <= whole.rgb.min() and whole.rgb.max() <= 1
    one = toys(reference=False).block(range(1, 2), SIZE)
    assert np.array_equal(one.rgb, toys().block(range(1, 2), SIZE).rgb[:6])
    kinds = [
        toys(),
        toys(control="geometry"),
        toys(reference=False),
        toys(split="held-out"),
        toys(fov=40.0),
        meshes(folder),
    ]
    assert len({source.describe() for source in kinds}) == len(kinds)


def test_views_are_those_of_the_adapter_and_a_picture_near_the_front() -> None:
    for control, sides in (("rays", RAY_VIEWS), ("geometry", GEOMETRY_VIEWS)):
        c2w = toys(control=control).block(range(2), SIZE).c2w.reshape(2, 7, 4, 4)
        assert np.allclose(c2w[0, :6], views(sides, SIZE, SIZE).c2w, atol=1e-6)
        assert not np.allclose(c2w[0, 6], c2w[1, 6])
    angles = np.array([toys().near_front(index) for index in range(200)])
    assert angles[:, 0].min() > ELEVATION[0] - 1e-9 and angles[:, 0].max() < ELEVATION[1]
    assert np.abs(angles[:, 1]).max() < AZIMUTH and angles.std(0).min() > 8


def test_a_share_of_the_objects_is_seen_from_sides_of_their_own() -> None:
    source = toys(anywhere=0.6)
    angles = np.array([source.angles(index) for index in range(300)])
    own = (angles != np.array(RAY_VIEWS)).any((1, 2))
    assert 0.5 < own.mean() < 0.7 and toys().describe() != source.describe()
    raised, first = angles[own, 0, 0], angles[own, 0, 1]
    assert 0 <= raised.min() and raised.max() <= 30 and raised.std() > 6 and np.histogram(first, 4)[0].min() > 20
    assert (angles[..., 0] == angles[:, :1, 0]).all(), "one elevation for all sides"
    turns = (angles[..., 1] - angles[:, :1, 1]) % 360
    assert np.allclose(turns, [azimuth for _, azimuth in RAY_VIEWS])
    index = int(np.argmax(own))
    c2w = source.block(range(index, index + 1), SIZE).c2w[:6]
    assert np.allclose(c2w, source.cameras(index, SIZE).c2w)
    assert np.allclose(c2w, views([tuple(pair) for pair in angles[index]], SIZE, SIZE).c2w, atol=1e-6)


def test_with_rays_small_things_are_small_and_with_geometry_all_fill_the_picture() -> None:
    def share(source: ObjectViews) -> list[float]:
        rgb = source.block(range(6), SIZE).rgb.reshape(6, 7, SIZE, SIZE, 3)
        there = (rgb != 0.5).any(-1)[:, :6]
        return [max(np.ptp(np.nonzero(x)[1]), np.ptp(np.nonzero(x)[2])) / SIZE for x in there]

    assert np.std(share(toys())) > 0.03 and max(share(toys())) < 0.95
    assert min(share(toys(control="geometry"))) > 0.8
    given = toys().block(range(6), SIZE).rgb.reshape(6, 7, SIZE, SIZE, 3)[:, 6]
    for picture in given:  # as users' pictures are framed
        rows, columns = np.nonzero((np.abs(picture - 0.5) > 0.02).any(-1))
        assert 0.8 < max(np.ptp(rows) + 1, np.ptp(columns) + 1) / SIZE < 1


@pytest.mark.parametrize("fov", [0.0, 40.0])
def test_maps_of_toys_agree_with_their_meshes(fov: float) -> None:
    source = toys(control="geometry", reference=False, fov=fov)
    assert source.cameras(0, SIZE).projection.parallel == (not fov)
    for index in range(3):
        mesh = fitted(toybox_mesh(source.box.asset(index), 48), HALF)
        expected = geometry_maps(*map(torch.from_numpy, mesh.surface(source.cameras(index, SIZE))))
        found = source.maps(index, SIZE)
        assert found.shape == (6, 6, SIZE, SIZE) and 0 <= found.min() and found.max() <= 1
        assert (found - expected).abs().mean() < 0.02 and (found - expected).abs().median() == 0
        there = (found != 0.5).any(1) & (expected != 0.5).any(1)
        assert (found - expected).abs()[:, :3].amax(1)[there].quantile(0.9) < 0.01  # round solids have flat sides here


def test_maps_of_a_mesh_are_where_and_how_its_sides_lie(folder: Path) -> None:
    source = meshes(folder, control="geometry", reference=False)
    assert source.caption(0) == "a red box" and source.caption(1) == "an object" and len(source) == 3
    front, right, back, left, top, _ = source.maps(0, SIZE)[:, :, SIZE // 2, SIZE // 2]
    # the file's x is our y, the box's long side; what the model is told of has its front at -y: (y, -x, z)
    assert torch.allclose(front, torch.tensor([0.5, 0.25, 0.5, 0.5, 0.0, 0.5]), atol=0.02)
    assert torch.allclose(back, torch.tensor([0.5, 0.75, 0.5, 0.5, 1.0, 0.5]), atol=0.02)
    assert torch.allclose(right, torch.tensor([1.0, 0.5, 0.5, 1.0, 0.5, 0.5]), atol=0.02)
    assert torch.allclose(left, torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5, 0.5]), atol=0.02)
    assert torch.allclose(top, torch.tensor([0.5, 0.5, 0.75, 0.5, 0.5, 1.0]), atol=0.02)
    assert (source.maps(0, SIZE)[:, :, 0, 0] == 0.5).all()
    picture = source.block(range(1), SIZE).rgb[0]
    assert picture[SIZE // 2, SIZE // 2, 0] > 0.6 and picture[SIZE // 2, SIZE // 2, 1:].max() < 0.1
    plain = meshes(folder, light=False).block(range(1), SIZE).rgb[0]
    assert np.allclose(plain[SIZE // 2, SIZE // 2], [1, 0, 0], atol=1e-6)


def test_the_last_meshes_are_held_out_and_captions_are_read(folder: Path) -> None:
    told = folder / "captions.json"
    told.write_text(json.dumps({"balls/3.obj": "a grey ball", "a_red-box.glb": "a brick"}))
    train, rest = (meshes(folder, split, captions=str(told)) for split in ("train", "held-out"))
    assert len(train) == 6 and train.caption(0) == train.caption(3) == "a brick"
    assert [rest.caption(index) for index in range(2)] == ["an object", "a grey ball"]
    assert train.near_front(0) != train.near_front(3)


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ({"path": "nowhere"}, None, "there is no folder 'nowhere'"),
        ({"path": "a" * 5000}, None, "path: should be the path of a folder"),
        ({"path": "empty"}, None, "'empty' has 0 meshes .*held_out"),
        ({"held_out": 5}, None, "has 5 meshes .* 5 are held out of training .held_out.: it should have more"),
        ({}, '{"balls/9.obj": "a ball"}', "a caption for 'balls/9.obj', and no such mesh .*did you mean 'balls/"),
        ({}, '{"balls/1.obj": 3}', 'should be JSON of the form {"FILE": "caption"}'),
        ({}, "red", "should be JSON of the form"),
        ({"captions": "nowhere.json"}, None, "nowhere.json is missing"),
    ],
)
def test_bad_folders_are_one_sentence(
    folder: Path, options: dict[str, Any], text: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    if text is not None:
        (folder / "told.json").write_text(text)
        options = {"captions": "told.json", **options}
    with pytest.raises(ConfigError, match=said) as caught:
        MeshFolderConfig(**{"path": str(folder), "held_out": 1, **options}).check()
    assert "\n" not in str(caught.value)


def test_a_picture_of_nothing_stays_as_it_is() -> None:
    assert torch.equal(alone(torch.full((8, 8, 3), 0.5)), torch.full((8, 8, 3), 0.5))
