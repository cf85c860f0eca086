"""Overlap, key frames and pose check on a wall and in a room."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import box_room
from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import wall
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.overlap import (
    check_pose_convention,
    depth_agreement,
    key_frames,
    overlap,
    overlap_fractions,
    spread_pairs,
)
from threedgen.geometry.poses import Poses, world_to_camera
from threedgen.systems.texture.frames import depth_of_mesh

SIZE = (24, 32)


def depth_of(cameras: Cameras) -> torch.Tensor:
    return depth_of_mesh(box_room.scene(), cameras)


def test_overlap_fractions_of_a_wall() -> None:
    walk = wall(views=4, width=48, step=0.5)
    overlaps = overlap_fractions(walk.depth, walk.c2w, walk.K)
    torch.testing.assert_close(overlaps, overlaps.T)
    # 6 of 48 pixels per step
    expected = 1 - (torch.arange(4)[:, None] - torch.arange(4)).abs() * 6 / 48
    torch.testing.assert_close(overlaps, expected.double(), rtol=0, atol=0.021)  # tolerance: one border column


def test_overlap_fractions_border_includes_last_row_and_column() -> None:
    """In a slightly enlarged view the last column and row count as visible, the first do not, as in MVDiffusion."""
    walk = wall(views=2, step=0.0)
    walk.c2w[1, 2, 3] = 2 - 2 / 1.02  # towards the wall, two metres away
    assert overlap_fractions(walk.depth, walk.c2w, walk.K)[0, 1] == pytest.approx(47 / 48 * 31 / 32)


def test_key_frames_have_the_requested_overlap() -> None:
    cameras = box_room.look(48, SIZE)
    depth = depth_of(cameras)
    keys = key_frames(depth, cameras, 0.65)
    assert keys[0] == 0 and 8 < len(keys) < 24
    for a, b in zip(keys, keys[1:], strict=False):
        assert overlap(depth, cameras, a, b) >= 0.65 > overlap(depth, cameras, a, b + 1)
    opposite = cameras.select([0, 24])
    with_behind = overlap_fractions(depth[[0, 24]], opposite.c2w, opposite.K, behind=True)
    assert overlap(depth, cameras, 0, 24) < 0.1 < with_behind[0, 1]


def test_depth_agreement_is_high_only_for_adjacent_frames() -> None:
    cameras = box_room.look(24, SIZE).select([0, 1, 1, 2, 0, 12])
    first, second, opposite = depth_agreement(depth_of(cameras), cameras).tolist()
    assert min(first, second) > 0.7 and opposite < 0.1


def test_spread_pairs_covers_the_path() -> None:
    assert spread_pairs(2) == [0, 1] and spread_pairs(4) == [0, 1, 1, 2, 2, 3]
    pairs = np.array(spread_pairs(1000)).reshape(-1, 2)
    assert set(np.diff(pairs).ravel()) == {1, 4, 16} and len(pairs) == 18 and pairs.max() == 999


@pytest.mark.parametrize("steps", [24, 48, 360])
@pytest.mark.parametrize("rendered", [True, False])
def test_check_pose_convention_detects_inverted_poses(rendered: bool, steps: int) -> None:
    """Test fast and slow paths; on slow ones adjacent frames agree under both conventions."""
    path = box_room.look(steps, SIZE).select(spread_pairs(24))
    cameras = {"c2w": path, "w2c": replace(path, c2w=world_to_camera(path.c2w))}
    depth = depth_of(path)

    def correct(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return depth_of(cameras[poses]) if rendered else depth, cameras[poses]

    def inverted(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return correct("w2c" if poses == "c2w" else "c2w")

    check_pose_convention(correct, "c2w", "a.json")
    with refused("", "a.json", "Set poses=c2w"):
        check_pose_convention(correct, "w2c", "a.json")
    with refused("path", "a.json", "Set poses=w2c"):
        check_pose_convention(inverted, "c2w", "a.json", "path")
