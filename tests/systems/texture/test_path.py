"""Camera paths: files, and the one that is found; poses the wrong way round; key frames."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.geometry.poses import opencv_axes, world_to_camera
from threedgen.systems.texture.options import TextureConfig
from threedgen.systems.texture.path import around, interior, read_path, write_path
from threedgen.systems.texture.scene import Coordinates, SceneMesh
from threedgen.systems.texture.shots import (
    Shots,
    check_overlap,
    check_poses,
    check_seen,
    depth_of_mesh,
    key_frames,
)

SIZE = (24, 32)


def config(path: Path | str = "auto", **values: Any) -> TextureConfig:
    return TextureConfig(task="texture", path=str(path), height=SIZE[0], width=SIZE[1], **values)


def shots(count: int = 24, **look: float) -> Shots:
    at = box_room.look(count, SIZE, **look)
    depth = depth_of_mesh(box_room.scene(), at)
    return Shots(at, depth, ("a",) * count, tuple(map(str, range(count))))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    at = box_room.look(5, SIZE)
    for place in (Coordinates(), Coordinates("y", 0.01)):
        write_path(tmp_path / "path.json", at, place)
        found = read_path(config(tmp_path / "path.json"), place)
        torch.testing.assert_close(found.c2w, at.c2w, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.K, at.K)


def test_axes_fov_and_inverses(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "path.json"
    path.write_text(json.dumps({"axes": "opencv", "fov": 70, "c2w": opencv_axes(at.c2w).tolist()}))
    found = read_path(config(path), Coordinates())
    torch.testing.assert_close(found.c2w, at.c2w)
    torch.testing.assert_close(found.K, at.K)
    path.write_text(json.dumps({"axes": "opengl", "fov": 70, "c2w": world_to_camera(at.c2w).tolist()}))
    torch.testing.assert_close(read_path(config(path, poses="w2c"), Coordinates()).c2w, at.c2w)


EYE = np.eye(4).tolist()


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ("no", "no JSON"),
        ([], "c2w"),
        ({"c2w": [EYE] * 2}, "axes"),
        ({"axes": "opengl", "c2w": [EYE]}, "2 or more"),
        ({"axes": "opengl", "c2w": [EYE, EYE[:3]]}, "4 x 4"),
        ({"axes": "opengl", "c2w": [EYE, (2 * np.eye(4)).tolist()]}, "matrix 1"),
        ({"axes": "opengl", "c2w": [np.diag([1.0, 1, -1, 1]).tolist(), EYE]}, "matrix 0"),
        ({"axes": "opengl", "c2w": [EYE] * 2, "fov": 180}, "fov"),
        ({"axes": "opengl", "c2w": [EYE] * 2, "K": np.eye(3).tolist()}, "height and width"),
        ({"axes": "opengl", "c2w": [EYE] * 2, "K": [np.eye(3).tolist()] * 3, "height": 9, "width": 9}, "or 2"),
    ],
)
def test_files_that_are_no_path(tmp_path: Path, tree: Any, problem: str) -> None:
    (tmp_path / "path.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with pytest.raises(ConfigError, match=f"path: .*{problem}"):
        read_path(config(tmp_path / "path.json"), Coordinates())


def test_the_middle_of_the_free_interior() -> None:
    room = box_room.scene()
    middle, free = interior(room)
    assert (np.abs(middle[:2]) < box_room.SIZE[:2] / 2).all() and 0.8 < middle[2] < 1.8 and free > 0.7
    at = around(room, config(frames=12))
    assert bool((depth_of_mesh(room, at) > 0.1).all())  # walls on all sides, nowhere through one
    floor = SceneMesh(np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0]], np.float32), np.array([[0, 1, 2]]))
    with pytest.raises(ConfigError, match="path: .*path=FILE"):
        interior(floor)


def test_inverted_poses_are_noticed() -> None:
    room, at = box_room.scene(), box_room.look(24, SIZE)
    check_poses(at, lambda cameras: depth_of_mesh(room, cameras), "path", "c2w")
    wrong = replace(at, c2w=world_to_camera(at.c2w))
    with pytest.raises(ConfigError, match="path: the poses are world-to-camera, it seems.*poses=w2c"):
        check_poses(wrong, lambda cameras: depth_of_mesh(room, cameras), "path", "c2w")
    with pytest.raises(ConfigError, match="poses=c2w"):
        check_poses(wrong, lambda cameras: depth_of_mesh(room, cameras), "path", "w2c")


def test_key_frames_overlap_as_asked() -> None:
    taken = shots(48)
    keys = key_frames(taken, 0.65)
    assert keys[0] == 0 and keys[-1] == 47 and 8 < len(keys) < 24
    assert all(taken.overlap(a, b) >= 0.65 for a, b in zip(keys, keys[1:], strict=False))
    assert all(taken.overlap(a, b + 1) < 0.65 for a, b in zip(keys[:-2], keys[1:-1], strict=True))
    assert check_overlap(taken, keys, 0.3, "path") == []


def test_frames_that_do_not_overlap() -> None:
    taken = shots(3)
    with pytest.raises(ConfigError, match="path: no two consecutive key frames have 30% "):
        check_overlap(taken, [0, 1, 2], 0.3, "path")
    near = shots(24)
    (note,) = check_overlap(near, [0, 1, 12, 13], 0.3, "path")
    assert "1 of 3" in note and "1 and 12" in note


def test_frames_that_see_nothing() -> None:
    depth = torch.ones(4, 2, 2)
    depth[2] = 0
    assert check_seen(depth, "abcd") == [0, 1, 3]
    with pytest.raises(ConfigError, match="1 of 4 frames"):
        check_seen(depth * torch.tensor([1.0, 0, 0, 0])[:, None, None], "abcd")
