"""What views of known depth have in common: of a wall, and of a room all around."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import box_room
from tests.support.tiny_mvdiffusion import wall
from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.overlap import agreement, key_frames, overlap, overlap_fractions, require_poses, spread_pairs
from threedgen.geometry.poses import Poses, world_to_camera
from threedgen.systems.texture.shots import depth_of_mesh

SIZE = (24, 32)


def depth(at: Cameras) -> torch.Tensor:
    return depth_of_mesh(box_room.scene(), at)


def test_overlap_is_the_lesser_of_both_ways() -> None:
    walk = wall(views=4, width=48, step=0.5)
    overlap = overlap_fractions(walk.depth, walk.c2w, walk.K)
    torch.testing.assert_close(overlap, overlap.T)
    # 6 pixels of 48 for each step
    expected = 1 - (torch.arange(4)[:, None] - torch.arange(4)).abs() * 6 / 48
    torch.testing.assert_close(overlap, expected.double(), rtol=0, atol=0.021)  # the outermost column may be just out


def test_a_picture_reaches_up_to_its_width_and_height() -> None:
    """As the reference counts: of what is seen a little larger, the last column and row are in, the first are not."""
    walk = wall(views=2, step=0.0)
    walk.c2w[1, 2, 3] = 2 - 2 / 1.02  # towards the wall, two metres away
    found = overlap_fractions(walk.depth, walk.c2w, walk.K)
    assert found[0, 1] == pytest.approx(47 / 48 * 31 / 32)


def test_key_frames_overlap_as_asked() -> None:
    at = box_room.look(48, SIZE)
    seen = depth(at)
    keys = key_frames(seen, at, 0.65)
    assert keys[0] == 0 and 8 < len(keys) < 24
    assert all(overlap(seen, at, a, b) >= 0.65 for a, b in zip(keys, keys[1:], strict=False))
    assert all(overlap(seen, at, a, b + 1) < 0.65 for a, b in zip(keys, keys[1:], strict=False))
    K_behind = overlap_fractions(seen[[0, 24]], at.c2w[[0, 24]], at.K[[0, 24]], behind=True)
    assert overlap(seen, at, 0, 24) < 0.1 < K_behind[0, 1]


def test_points_are_seen_at_the_same_depth() -> None:
    at = box_room.look(24, SIZE)
    some = at.select([0, 1, 1, 2, 0, 12])
    first, second, far = agreement(depth(some), some).tolist()
    assert min(first, second) > 0.7 and far < 0.1


def test_pairs_are_spread_over_the_path() -> None:
    assert spread_pairs(2) == [0, 1] and spread_pairs(4) == [0, 1, 1, 2, 2, 3]
    pairs = np.array(spread_pairs(1000)).reshape(-1, 2)
    assert set(np.diff(pairs).ravel()) == {1, 4, 16} and len(pairs) == 18 and pairs.max() == 999


@pytest.mark.parametrize("steps", [24, 48, 360])
@pytest.mark.parametrize("rendered", [True, False])
def test_inverted_poses_are_noticed(rendered: bool, steps: int) -> None:
    """Also on a slow path, where neighbours see the same, whatever the poses are."""
    at = box_room.look(steps, SIZE).select(spread_pairs(24))
    cameras = {"c2w": at, "w2c": replace(at, c2w=world_to_camera(at.c2w))}
    seen = depth(at)

    def right(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return depth(cameras[poses]) if rendered else seen, cameras[poses]

    def wrong(poses: Poses) -> tuple[torch.Tensor, Cameras]:
        return right("w2c" if poses == "c2w" else "c2w")

    require_poses(right, "c2w", "a.json")
    with pytest.raises(ConfigError, match="camera-to-world, it seems.*give poses=c2w"):
        require_poses(right, "w2c", "a.json")
    with pytest.raises(ConfigError, match=r"path: the poses of a.json are world-to-camera, it seems.*give poses=w2c"):
        require_poses(wrong, "c2w", "a.json", "path")
