"""Camera paths: files, and the one that is found; key frames; what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.geometry.overlap import key_frames
from threedgen.geometry.poses import opencv_axes, world_to_camera
from threedgen.systems.texture.options import TextureConfig
from threedgen.systems.texture.path import around, interior, read_path
from threedgen.systems.texture.scene import Coordinates, SceneMesh
from threedgen.systems.texture.shots import (
    Shots,
    check_overlap,
    check_seen,
    choose_keys,
    depth_of_mesh,
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
        box_room.write_path(tmp_path / "path.json", at, place)
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


def test_the_middle_of_the_free_interior() -> None:
    room = box_room.scene()
    middle, free = interior(room)
    assert (np.abs(middle[:2]) < box_room.SIZE[:2] / 2).all() and 0.8 < middle[2] < 1.8 and free > 0.7
    at = around(room, config(frames=12))
    assert bool((depth_of_mesh(room, at) > 0.1).all())  # walls on all sides, nowhere through one
    floor = SceneMesh(np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0]], np.float32), np.array([[0, 1, 2]]))
    with pytest.raises(ConfigError, match="path: .*path=FILE"):
        interior(floor)


def test_key_frames_and_the_last_frame() -> None:
    taken = shots(48)
    keys = choose_keys(taken, 0.65)
    assert keys[:-1] == key_frames(taken.depth, taken.cameras, 0.65) and keys[-1] == 47 and 8 < len(keys) < 24
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
    with pytest.raises(ConfigError, match="poses: 1 of 4 frames .*: are they camera-to-world"):
        check_seen(depth * torch.tensor([1.0, 0, 0, 0])[:, None, None], "abcd")
