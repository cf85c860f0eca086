from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from tests.support import box_room
from tests.support.errors import refused
from tests.support.nose_box import config, nose_box, write_mesh
from threedgen.export.files.glb import textured_glb_bytes
from threedgen.geometry.images import png
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.systems.sample.mesh import (
    MeshFrame,
    SourceMesh,
    control_maps,
    plan,
    preview,
    read_object,
    read_source,
    six_sides,
    without_uv,
)
from threedgen.systems.texture.scene import with_uv
from threedgen.systems.texture.task import read_mesh


def test_read_source_applies_scene_graph_and_unit_and_refuses_nan_and_no_area(tmp_path: Path) -> None:
    expected = box_room.scene()
    for scale in (1.0, 0.01):
        found = read_source(box_room.write_glb(tmp_path / "room.glb", scale), MeshFrame("+y", "+z", scale))
        centres = [np.sort(mesh.vertices[mesh.faces].mean(1).round(3), axis=0) for mesh in (found, expected)]
        np.testing.assert_allclose(*centres, atol=2e-3)
        assert len(found.vertices) <= len(expected.vertices)
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]])
    for value in (2.0, np.nan):
        points[2, 0] = value
        trimesh.Trimesh(points, [[0, 1, 2]], process=False).export(tmp_path / "bad.ply")
        with refused("mesh", "bad.ply"):
            read_source(tmp_path / "bad.ply", MeshFrame())


@pytest.mark.parametrize(
    ("name", "axes", "words"),
    [
        ("a.glb", [[0, 1, 0], [0, 0, 1], [1, 0, 0]], {}),
        ("a.ply", [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], {}),  # as Blender: front -y, up +z
        ("a.stl", [[-1, 0, 0], [0, 0, -1], [0, -1, 0]], {"front": "-x", "up": "-y"}),
    ],
)
def test_objects_are_turned_and_normalised(tmp_path, name: str, axes: list[list[float]], words: dict[str, str]) -> None:
    assert np.linalg.det(axes) == pytest.approx(1)
    found = without_uv(read_object(config(write_mesh(tmp_path / name, axes=np.array(axes, float)), **words)))
    expected = without_uv(read_object(config(write_mesh(tmp_path / "same.glb"))))
    for end in (np.min, np.max):
        np.testing.assert_allclose(end(found.vertices, 0), end(expected.vertices, 0), atol=1e-5)
    outlines = [preview(mesh, 32) < 0.95 for mesh in (found, expected)]
    assert (outlines[0] == outlines[1]).mean() > 0.99
    np.testing.assert_allclose(np.abs(found.vertices).max(), 0.5, atol=1e-6)


def test_objects_far_from_the_origin_stay_exact(tmp_path: Path) -> None:
    """At five million metres float32 vertices are 0.5 m apart."""
    found, where = [], np.array([5e6, -3e6, 123.0])
    for offset in (0 * where, where):
        scene = trimesh.Scene()
        scene.add_geometry(nose_box(), transform=trimesh.transformations.translation_matrix(offset))
        scene.export(tmp_path / "a.glb")
        source = read_object(config(tmp_path / "a.glb"))
        assert f"{len(source.faces)} triangles" in plan(config(tmp_path / "a.glb"))
        mesh = source.frame.for_file(without_uv(source))
        (tmp_path / "b.glb").write_bytes(textured_glb_bytes(mesh, {"base_colour": png(np.zeros((2, 2, 3), np.uint8))}))
        again = read_mesh_file(tmp_path / "b.glb").submeshes[0]
        found.append((source.vertices, again.vertices - offset, np.array(mesh.offset)))
        np.testing.assert_allclose(np.ptp(again.vertices, axis=0), nose_box().extents, atol=1e-6)
    for k in range(2):
        np.testing.assert_allclose(found[0][k], found[1][k], atol=1e-6)
    assert not found[0][2].any() and np.abs(found[1][2]).max() > 1e6


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("a.glb", {"front": "-y", "up": "+z"}),
        ("a.ply", {"front": "+x"}),
        ("a.ply", {"rig": {"name": "path"}, "prior": {"name": "mvdiffusion"}}),
    ],
)
def test_written_meshes_keep_the_orientation_of_their_file(tmp_path: Path, name: str, axes: dict[str, Any]) -> None:
    """Whatever the front is. A PLY file has z up, a GLB file y up."""
    settings = config(write_mesh(tmp_path / name, axes=np.eye(3)), **axes)
    source = read_object(settings)
    mesh = source.frame.for_file(without_uv(source))
    (tmp_path / "b.glb").write_bytes(textured_glb_bytes(mesh, {"base_colour": png(np.zeros((2, 2, 3), np.uint8))}))
    found = read_mesh_file(tmp_path / "b.glb").submeshes[0]
    before = np.asarray(trimesh.load(tmp_path / name, force="mesh").bounds)
    turn = np.eye(3) if name == "a.glb" else np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    corners = np.sort(before @ turn.T, axis=0)
    np.testing.assert_allclose([found.vertices.min(0), found.vertices.max(0)], corners, atol=1e-5)
    flat = np.cross(*np.diff(found.vertices[found.faces], axis=1).swapaxes(0, 1))
    assert found.normals is not None and ((found.normals[found.faces[:, 0]] * flat).sum(1) > 0).all()


def test_edges_stay_as_sharp_as_in_the_file(tmp_path: Path) -> None:
    """A box whose faces share no vertex is flat, one whose faces do is round, whatever its new charts are."""
    box = trimesh.creation.box((1, 1, 1))
    soup = trimesh.Trimesh(box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    normals = [read_mesh(config(write_mesh(tmp_path / "a.ply", made, np.eye(3))))[1].normals for made in (soup, box)]
    assert np.abs(normals[0]).max(1) == pytest.approx(1, abs=1e-3) and np.abs(normals[1]).max(1).min() < 0.8


def test_uv_seams_of_the_file_make_no_sharp_edges(tmp_path: Path) -> None:
    """Every triangle of the box has its own texture coordinates, but shares its vertices."""
    box, uv = trimesh.creation.box(), np.random.default_rng(0).random((36, 2)).round(3)
    points, corners = np.asarray(box.vertices), np.asarray(box.faces)
    faces = (np.dstack([corners, np.arange(36).reshape(-1, 3)]) + 1).reshape(-1, 6)
    rows = [("v", *row) for row in points] + [("vt", *row) for row in uv]
    lines = [*(" ".join(map(str, row)) for row in rows), *("f {}/{} {}/{} {}/{}".format(*row) for row in faces)]
    (tmp_path / "a.obj").write_text("\n".join([*lines, ""]))
    source = read_object(config(tmp_path / "a.obj"))
    assert source.uv is not None and len(source.vertices) == 36
    assert source.normals is not None and np.abs(source.normals).max() < 0.9


def test_control_maps_are_in_the_axes_of_the_adapter() -> None:
    """In its world the front is -y: the front view's pixels have a small y, and normals towards it."""
    mesh, _ = with_uv(SourceMesh(np.asarray(nose_box().vertices, np.float32), np.asarray(nose_box().faces)), 64)
    maps = control_maps(mesh, six_sides(64)).permute(0, 2, 3, 1).numpy()
    assert maps.shape == (6, 64, 64, 6) and (maps[:, 0, 0] == 0.5).all() and maps.min() >= 0 and maps.max() <= 1
    middle = maps[:, 28, 32]  # a little above the middle
    assert middle[0, 1] < 0.05 and middle[2, 1] == pytest.approx(1.0, abs=0.05)  # nose at -0.5, back at +0.5
    assert middle[1, 0] == pytest.approx(0.75, abs=0.01) and middle[3, 0] == pytest.approx(0.25, abs=0.01)
    assert middle[4, 2] > 0.65 and middle[5, 2] < 0.35
    assert middle[0, 4] < 0.5 and middle[1, 3] > 0.5 and middle[4, 5] > 0.5
    column = maps[0, 32, :, 0]
    inside = column[column != 0.5]
    pixel = 1.1 / 64  # x grows to the right of the front view
    np.testing.assert_allclose(np.diff(inside)[np.abs(inside[1:] - 0.5) > 0.02], pixel, atol=pixel * 0.02)


def test_own_uv_are_used_unless_two_places_share_one() -> None:
    room = box_room.scene()
    mesh, how = with_uv(room, 256)
    assert how.startswith("new texture coordinates")
    again, how = with_uv(SourceMesh(mesh.vertices, mesh.faces, mesh.uv), 256)
    assert how == "the mesh's own texture coordinates" and np.array_equal(again.uv, mesh.uv)
    vertices, faces = np.concatenate([mesh.vertices, mesh.vertices + 9]), mesh.faces
    faces = np.concatenate([faces, faces + len(mesh.vertices)])
    twice = SourceMesh(vertices, faces, np.concatenate([mesh.uv, mesh.uv]))
    assert "two places" in with_uv(twice, 256)[1]
    for source in (twice, SourceMesh(mesh.vertices, mesh.faces, mesh.uv * 3)):
        with refused("uv", "unwrap"):
            with_uv(source, 256, "own")


def test_simplification_reaches_the_budget_or_names_the_one_that_keeps_uv(tmp_path: Path) -> None:
    _, mesh, _ = read_mesh(config(write_mesh(tmp_path / "a.glb", trimesh.creation.icosphere(2, 0.5))))
    visual = trimesh.visual.TextureVisuals(uv=mesh.uv)
    path = write_mesh(tmp_path / "b.obj", trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, visual=visual))
    with refused("budget", "budget=320"):
        read_mesh(config(path, budget=100, uv="own"))
    for uv in ("auto", "unwrap"):
        _, _, (note,) = read_mesh(config(path, budget=100, uv=uv))
        assert ("budget=320" in note) is (uv == "auto")
    found = read_object(config(write_mesh(tmp_path / "a.glb", trimesh.creation.icosphere(3, 0.5)), budget=400))
    assert len(found.faces) <= 400 and "400" in found.notes[0]


@pytest.mark.parametrize("fault", ["none", "overlapping", "nan", "half"])
def test_unusable_uv_are_replaced(tmp_path: Path, fault: str) -> None:
    _, mesh, _ = read_mesh(config(write_mesh(tmp_path / "a.glb")))
    uv = mesh.uv.astype(np.float64).copy()
    values: dict[str, Any] = {"overlapping": uv % 0.3, "nan": np.nan}
    uv[:] = values.get(fault, uv)
    if fault == "half":
        uv[np.unique(mesh.faces[:6])] = 0.1
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, visual=trimesh.visual.TextureVisuals(uv=uv))
    _, found, notes = read_mesh(config(write_mesh(tmp_path / "b.obj", made)))
    assert any("new texture coordinates" in note for note in notes) is (fault != "none"), notes
    assert found.uv.min() >= 0 and len(found.faces) == len(mesh.faces)
