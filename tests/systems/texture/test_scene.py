"""Meshes of scenes: files, units, axes, texture coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.systems.texture.scene import Coordinates, SceneMesh, read_scene, with_uv


def test_nodes_stand_where_the_graph_puts_them(tmp_path: Path) -> None:
    expected = box_room.scene()
    for scale in (1.0, 0.01):
        found = read_scene(box_room.write_glb(tmp_path / "room.glb", scale), Coordinates("y", scale))
        middles = [np.sort(mesh.vertices[mesh.faces].mean(1).round(3), axis=0) for mesh in (found, expected)]
        np.testing.assert_allclose(*middles, atol=2e-3)
        assert len(found.vertices) <= len(expected.vertices)


def test_coordinates_go_both_ways() -> None:
    place, points = Coordinates("y", 0.01), np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(place.back(place.points(points)), points)
    c2w = box_room.look(3, (4, 4)).c2w
    torch.testing.assert_close(place.poses_back(place.poses(c2w)), c2w)
    torch.testing.assert_close(
        place.poses(c2w)[:, :3, 3].numpy(), place.points(c2w[:, :3, 3].numpy()), check_dtype=False
    )


def test_a_scene_in_centimetres_is_noticed() -> None:
    room = box_room.scene()
    assert room.warning() is None
    assert "give scale" in str(SceneMesh(100 * room.vertices, room.faces).warning())


def test_own_coordinates_are_used_if_no_two_places_share_one() -> None:
    room = box_room.scene()
    mesh, how = with_uv(room, 256)
    assert how.startswith("new texture coordinates")
    again, how = with_uv(SceneMesh(mesh.vertices, mesh.faces, mesh.uv), 256)
    assert how == "the mesh's own texture coordinates" and np.array_equal(again.uv, mesh.uv)
    tiled = SceneMesh(mesh.vertices, mesh.faces, mesh.uv / 2 + (mesh.faces.max() % 2))
    twice = SceneMesh(
        np.concatenate([mesh.vertices, mesh.vertices + 9]),
        np.concatenate([mesh.faces, mesh.faces + len(mesh.vertices)]),
        np.concatenate([mesh.uv, mesh.uv]),
    )
    assert "two places" in with_uv(twice, 256)[1]
    with pytest.raises(ConfigError, match="uv: .*two places"):
        with_uv(twice, 256, "own")
    with pytest.raises(ConfigError, match=r"outside of \[0, 1\]"):
        with_uv(SceneMesh(tiled.vertices, tiled.faces, mesh.uv * 3), 256, "own")


@pytest.mark.parametrize("content", [b"", b"glTF\2\0\0\0", b"\0" * 100, b'{"asset": {"version": "2.0"}}'])
@pytest.mark.parametrize("kind", ["glb", "ply", "obj", "stl"])
def test_files_that_are_no_mesh(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / f"a.{kind}").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mesh: .*a\."):
        read_scene(tmp_path / f"a.{kind}", Coordinates())


def test_a_mesh_without_area_or_with_nan(tmp_path: Path) -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0.0]])
    trimesh.Trimesh(points, [[0, 1, 2]], process=False).export(tmp_path / "flat.ply")
    with pytest.raises(ConfigError, match="area"):
        read_scene(tmp_path / "flat.ply", Coordinates())
    points[1] = np.nan
    trimesh.Trimesh(points, [[0, 1, 2]], process=False).export(tmp_path / "nan.ply")
    with pytest.raises(ConfigError, match="mesh: "):
        read_scene(tmp_path / "nan.ply", Coordinates())
