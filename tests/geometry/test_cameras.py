import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support import box_room
from tests.support.errors import refused
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.poses import look_at, opencv_axes, world_to_camera

FIXED = settings(derandomize=True, deadline=None, max_examples=60)


def random_cameras(seed: int, parallel: bool = False, count: int = 4) -> Cameras:
    """Create random cameras at distances 1 to 3 with non-square pixels, skew and an off-centre principal point."""
    g = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=g)

    position = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1) * uniform(1, 3, 1)
    c2w = look_at(position, uniform(-0.2, 0.2, 3), torch.randn(count, 3, generator=g))
    K = torch.eye(3).repeat(count, 1, 1)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 1] = uniform(10, 30), uniform(10, 30), uniform(-2, 2)
    K[:, 0, 2], K[:, 1, 2] = uniform(8, 12), uniform(4, 8)
    return Cameras(c2w, Projection(K, parallel), 12, 20)


@FIXED
@given(st.integers(0, 500), st.floats(0.5, 5), st.booleans())
def test_project_inverts_rays(seed, distance, parallel):
    cameras = random_cameras(seed, parallel)
    origins, directions = cameras.rays()
    assert origins.shape == directions.shape == (4, 12, 20, 3)
    pixels, depth = cameras.project((origins + distance * directions).flatten(1, 2))
    along = (directions * -cameras.c2w[:, None, None, :3, 2]).sum(-1).flatten(1)  # 1 for parallel rays
    torch.testing.assert_close(depth, distance * along, atol=1e-4, rtol=0)
    row, column = 3, 17
    expected = torch.tensor([column + 0.5, row + 0.5]).expand(4, 2)
    torch.testing.assert_close(pixels[:, row * 20 + column], expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(4, 12, 20))


def test_project_computes_in_float32_under_autocast():
    cameras, points = random_cameras(0), torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels, depth = cameras.project(points)
    expected = cameras.project(points)
    assert torch.equal(pixels, expected[0]) and torch.equal(depth, expected[1])


def test_with_size_scales_pixels():
    cameras, points = random_cameras(0), torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    (after, deep), (before, depth) = cameras.with_size(24, 60).project(points), cameras.project(points)
    torch.testing.assert_close(after, before * torch.tensor([3.0, 2.0]), atol=1e-3, rtol=1e-5)
    assert torch.equal(deep, depth)


SIZE = (24, 32)


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
        ({"axes": "opengl", "c2w": [EYE, EYE[:3]]}, ["c2w", "4 x 4"]),
        ({"axes": "opengl", "c2w": [EYE, (2 * np.eye(4)).tolist()]}, ["c2w[1]"]),
        ({"axes": "opengl", "c2w": [np.diag([1.0, 1, -1, 1]).tolist(), EYE]}, ["c2w[0]"]),
        (PAIR | {"fov": 180}, ["fov"]),
        (PAIR | {"K": np.eye(3).tolist()}, ["height", "width"]),
        (PAIR | {"K": [np.eye(3).tolist()] * 3, "height": 9, "width": 9}, ["K", 2]),
        (PAIR | {"K": [[]], "height": 9, "width": 9}, ["K", "3 x 3"]),
        (PAIR | {"files": ["a.png"]}, ["files", 2]),
    ],
)
def test_read_cameras_refuses_invalid_files(tmp_path: Path, tree: Any, values: list[Any]) -> None:
    path = tmp_path / "cameras.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with refused("path", path, *values):
        read_cameras(path, "path", size=SIZE, fov=70)


@pytest.mark.parametrize("direction", [(0.0, 0.0, 1.0), (0.0, 0.0, -1.0), (0.3, -0.8, 0.1)])
def test_look_at_along_up_is_rigid(direction):
    forward = torch.tensor([direction])
    pose = look_at(torch.zeros(1, 3), forward, 2 * forward)[0]
    torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].mT, torch.eye(3), atol=2e-6, rtol=0)
    assert float(torch.linalg.det(pose[:3, :3])) == pytest.approx(1, abs=2e-6) and pose[3].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(-pose[:3, 2], forward[0] / forward.norm(), atol=1e-5, rtol=0)
