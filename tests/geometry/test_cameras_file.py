"""Cameras files: round trip, conventions and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.support import box_room
from tests.support.errors import refused
from threedgen.geometry.cameras_file import _Content, read_cameras, write_cameras
from threedgen.geometry.poses import opencv_axes, world_to_camera

SIZE = (24, 32)


def test_read_cameras_returns_what_was_written(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    write_cameras(path, at, ["a.png", "b.png", "c.png"], ["red", "green", "blue"])
    found = read_cameras(path, "path")
    assert torch.equal(found.cameras.c2w, at.c2w) and torch.equal(found.cameras.K, at.K)
    assert (found.cameras.height, found.cameras.width) == SIZE
    assert found.files == ("a.png", "b.png", "c.png") and found.prompts == ("red", "green", "blue")


def test_read_cameras_converts_axes_poses_and_fov(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    for axes, turned in (("opengl", at.c2w), ("opencv", opencv_axes(at.c2w))):
        for poses, matrices in (("c2w", turned), ("w2c", world_to_camera(turned))):
            path.write_text(json.dumps({"axes": axes, "c2w": matrices.tolist()}))
            found = read_cameras(path, "path", poses, SIZE, 70)
            torch.testing.assert_close(found.cameras.c2w, at.c2w)
            torch.testing.assert_close(found.cameras.K, at.K)
            assert found.files is None and found.prompts is None


EYE = np.eye(4).tolist()
PAIR = {"axes": "opengl", "c2w": [EYE] * 2}


@pytest.mark.parametrize(
    ("tree", "values"),
    [
        ("no", []),
        ([], []),
        ({"c2w": [EYE] * 2}, ["axes"]),
        ({"axes": "opengl", "c2w": [EYE]}, ["c2w", 2]),
        ({"axes": "opengl", "c2w": [EYE, EYE[:3]]}, ["c2w", "4 x 4"]),
        ({"axes": "opengl", "c2w": [EYE, (2 * np.eye(4)).tolist()]}, ["c2w[1]"]),
        ({"axes": "opengl", "c2w": [np.diag([1.0, 1, -1, 1]).tolist(), EYE]}, ["c2w[0]"]),
        (PAIR | {"fov": 180}, ["fov"]),
        (PAIR | {"K": np.eye(3).tolist()}, ["height", "width"]),
        (PAIR | {"height": 0, "width": 9}, ["height"]),
        (PAIR | {"K": [np.eye(3).tolist()] * 3, "height": 9, "width": 9}, ["K", 2]),
        (PAIR | {"K": [[]], "height": 9, "width": 9}, ["K", "3 x 3"]),
        (PAIR | {"height": 9}, ["height", "width"]),
        (PAIR | {"files": ["a.png"]}, ["files", 2]),
    ],
)
def test_read_cameras_refuses_invalid_files(tmp_path: Path, tree: Any, values: list[Any]) -> None:
    path = tmp_path / "cameras.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with refused("path", path, *values):
        read_cameras(path, "path", size=SIZE, fov=70)


def test_read_cameras_refuses_missing_file(tmp_path: Path) -> None:
    with refused("path", tmp_path / "none.json"):
        read_cameras(tmp_path / "none.json", "path")


def test_wrong_names_give_one_error() -> None:
    content: Any = {"c2w": [], "axes": "opengl", "files": [1] * 1000, "prompts": [1] * 1000}
    with pytest.raises(ValidationError) as found:
        _Content.model_validate(content)
    assert len(found.value.errors()) == 2
