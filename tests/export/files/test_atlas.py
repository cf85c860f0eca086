import hashlib
from pathlib import Path

import numpy as np
import pytest
import trimesh

from benchmarks.glb_reader import read_glb
from tests.support.errors import refused
from tests.support.textured_box import files, textured
from threedgen.export.asset_folder import write_files
from threedgen.export.files import atlas
from threedgen.export.files.atlas import pack_squares, read_asset, write_set
from threedgen.export.files.glb import textured_glb_bytes, validate
from threedgen.geometry.texture import sample

ROD = trimesh.creation.cylinder(0.2, 1, sections=8)
BODIES = {"ball": (None, 256), "box": (trimesh.creation.box((1, 2, 3)), 128), "rod": (ROD, 64)}


def asset(folder: Path, kind: str, shift: int = 0) -> Path:
    """Write an asset as an export does, with a ramp of colours that `shift` rotates; return its folder."""
    mesh, textures = textured(*BODIES[kind])
    colour = np.roll(textures.base_colour, shift, axis=2)
    pngs = files(textures) | files(type(textures)(colour))
    data = {f"{kind}.glb": textured_glb_bytes(mesh, pngs, kind)}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    write_files(folder, data, {"files": {name: len(content) for name, content in data.items()}, "sha256": sums})
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {kind: asset(tmp_path / kind, kind, shift) for shift, kind in enumerate(BODIES)}


def surface(mesh: trimesh.Trimesh, image: str = "baseColorTexture") -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) on a textured mesh and their texture values (N, 3) in 0 to 255."""
    points, face = trimesh.sample.sample_surface(mesh, 4000, seed=0)
    weight = trimesh.triangles.points_to_barycentric(mesh.triangles[face], points)
    uv = (mesh.visual.uv[mesh.faces[face]] * weight[..., None]).sum(1)
    pixels = np.asarray(getattr(mesh.visual.material, image).convert("RGB"), np.float32)
    return points, sample(pixels, uv)


def test_set_has_the_surface_colours_of_its_assets(folders: dict[str, Path], tmp_path: Path) -> None:
    assert write_set(folders, tmp_path / "set.glb") == []
    scene = trimesh.load_scene(tmp_path / "set.glb")
    assert set(scene.graph.nodes_geometry) == set(folders) and len(scene.geometry) == 3
    first = next(iter(scene.geometry.values())).visual.material.baseColorTexture
    assert first.size == (512, 256)
    data = (tmp_path / "set.glb").read_bytes()
    tree = read_glb(data).tree
    assert len(tree["materials"]) == 1 and len(tree["images"]) == 3 and len(tree["nodes"]) == 3
    findings, _ = validate({"set.glb": data})  # none: there is no validator here
    assert findings in ({}, {"set.glb": []})
    ends = []
    for name, folder in folders.items():
        (single,) = trimesh.load_scene(folder / f"{name}.glb").geometry.values()
        matrix, key = scene.graph[name]
        whole = scene.geometry[key]
        ends.append(whole.copy().apply_transform(matrix).bounds)
        for image in ("baseColorTexture", "normalTexture", "metallicRoughnessTexture"):
            (before, colours), (after, found) = surface(single, image), surface(whole, image)
            assert np.allclose(before, after, atol=1e-6)
            difference = np.abs(colours - found).max(1)
            assert np.median(difference) <= 1 and np.percentile(difference, 99) <= 4, (name, image)
        assert np.array_equal(single.vertex_normals, whole.vertex_normals)
    for k, one in enumerate(ends):  # they stand side by side
        assert all((one[1] < other[0]).any() or (one[0] > other[1]).any() for other in ends[k + 1 :])


def test_set_is_written_anew_only_after_a_change(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "set.glb"
    write_set(folders, path)
    before = path.stat().st_ino
    write_set(folders, path)
    assert path.stat().st_ino == before  # an atomic write makes a new file
    asset(folders["box"], "box", shift=2)
    write_set(folders, path)
    assert path.stat().st_ino != before
    path.write_bytes(b"other")
    write_set(folders, path)
    assert path.read_bytes()[:4] == b"glTF"


def test_missing_and_changed_assets_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    (folders["box"] / "box.glb").write_bytes(b"changed")
    notes = write_set(folders | {"none": tmp_path / "none"}, tmp_path / "set.glb")
    assert len(notes) == 2 and "box" in notes[0] and "none" in notes[1]
    assert set(trimesh.load_scene(tmp_path / "set.glb").graph.nodes_geometry) == {"ball", "rod"}
    with refused(None):
        write_set({"none": tmp_path / "none"}, tmp_path / "other.glb")
    assert not (tmp_path / "other.glb").exists()


def test_textures_shrink_to_the_largest_atlas(folders: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(atlas, "MAX_ATLAS", 256)
    (note,) = write_set(folders, tmp_path / "set.glb")
    assert "0.5" in note and read_asset(tmp_path / "set.glb")[1]["base_colour"].shape == (128, 256, 3)
    monkeypatch.setattr(atlas, "MAX_ATLAS", 64)
    with refused(None):
        write_set(folders, tmp_path / "other.glb")


@pytest.mark.parametrize("sides", [[64], [64, 64], [32, 128, 64, 64, 32], [256] + [16] * 30, [64] * 7])
def test_places_do_not_overlap(sides: list[int]) -> None:
    corners, width, height = pack_squares(sides)
    covered = np.zeros((height, width), int)
    for side, (x, y) in zip(sides, corners, strict=True):
        assert x + side <= width and y + side <= height
        covered[y : y + side, x : x + side] += 1
    assert covered.max() == 1 and covered.sum() * 4 >= covered.size
