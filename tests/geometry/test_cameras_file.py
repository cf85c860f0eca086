"""Files of cameras: what is written is read, in all forms; what is none is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import box_room
from threedgen.config import ConfigError
from threedgen.geometry.cameras_file import read_cameras, write_cameras
from threedgen.geometry.poses import opencv_axes, world_to_camera

SIZE = (24, 32)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    write_cameras(path, at, ["a.png", "b.png", "c.png"], ["red", "green", "blue"])
    found = read_cameras(path, "path")
    assert torch.equal(found.at.c2w, at.c2w) and torch.equal(found.at.K, at.K)
    assert (found.at.height, found.at.width) == SIZE
    assert found.files == ("a.png", "b.png", "c.png") and found.prompts == ("red", "green", "blue")


def test_axes_fov_and_inverses(tmp_path: Path) -> None:
    at, path = box_room.look(3, SIZE), tmp_path / "cameras.json"
    for axes, turned in (("opengl", at.c2w), ("opencv", opencv_axes(at.c2w))):
        for poses, matrices in (("c2w", turned), ("w2c", world_to_camera(turned))):
            path.write_text(json.dumps({"axes": axes, "c2w": matrices.tolist()}))
            found = read_cameras(path, "path", poses, SIZE, 70)
            torch.testing.assert_close(found.at.c2w, at.c2w)
            torch.testing.assert_close(found.at.K, at.K)
            assert found.files is None and found.prompts is None


EYE = np.eye(4).tolist()
PAIR = {"axes": "opengl", "c2w": [EYE] * 2}


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ("no", "Expecting value"),
        ([], "c2w"),
        ({"c2w": [EYE] * 2}, "axes"),
        ({"axes": "opengl", "c2w": [EYE]}, "2 or more"),
        ({"axes": "opengl", "c2w": [EYE, EYE[:3]]}, "4 x 4"),
        ({"axes": "opengl", "c2w": [EYE, (2 * np.eye(4)).tolist()]}, "matrix 1"),
        ({"axes": "opengl", "c2w": [np.diag([1.0, 1, -1, 1]).tolist(), EYE]}, "matrix 0"),
        (PAIR | {"fov": 180}, "fov"),
        (PAIR | {"K": np.eye(3).tolist()}, "height and width"),
        (PAIR | {"K": [np.eye(3).tolist()] * 3, "height": 9, "width": 9}, "or 2"),
        (PAIR | {"K": [[]], "height": 9, "width": 9}, "matrices 3 x 3"),
        (PAIR | {"height": 9}, "height and width"),
        (PAIR | {"files": ["a.png"]}, "files should be a list of 2"),
    ],
)
def test_files_that_are_none(tmp_path: Path, tree: Any, problem: str) -> None:
    (tmp_path / "cameras.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with pytest.raises(ConfigError, match=f"path: .*{problem}"):
        read_cameras(tmp_path / "cameras.json", "path", size=SIZE, fov=70)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="path: .*none.json is missing"):
        read_cameras(tmp_path / "none.json", "path")
