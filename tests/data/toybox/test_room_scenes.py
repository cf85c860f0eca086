"""Panoramas and walks of toy rooms: views of one world, whose depth, cameras and captions are those of the pictures."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch

from threedgen.data.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.data.toybox.room_mesh import room_triangles
from threedgen.data.toybox.room_scenes import RoomPanoramas, RoomWalks, pictures, room_paths
from threedgen.data.toybox.rooms import HALF, HEIGHT
from threedgen.evaluation.metrics.overlap import depth_overlap, panorama_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.overlap import overlap_fractions
from threedgen.geometry.panorama import intrinsics, ring, skybox_views
from threedgen.geometry.raster import rasterise
from threedgen.geometry.warp import of_cameras

SMALL = RoomPathsConfig(count=3, height=36, width=48, views=4)


def test_views_of_a_panorama_agree_and_say_what_they_show() -> None:
    source = RoomPanoramas(RoomPanoramasConfig(count=4, size=64), seed=1, split="test")
    scene = source.scene(2)
    K, c2w = of_cameras(scene.views.at)
    assert len(scene) == 8 and scene.depth is None and len(source) == 4
    assert min(panorama_overlap(scene.views.images, K, c2w[:, :3, :3])) > 20
    assert all(source.rooms.room(2).wall in text for text in scene.captions)
    turned = np.rad2deg(np.arctan2(c2w[:, 1, 2].numpy(), c2w[:, 0, 2].numpy())) % 360
    assert np.allclose(turned, -45 * np.arange(8) % 360, atol=1e-3)  # to the right, from +x on


def test_training_begins_anywhere_and_always_the_same() -> None:
    config = RoomPanoramasConfig(count=50, size=16, views=3)
    source = RoomPanoramas(config)
    first = [source.first_yaw(k) for k in range(40)]
    assert set(first) == set(range(0, 360, 45)) and first == [RoomPanoramas(config).first_yaw(k) for k in range(40)]
    assert torch.equal(source.scene(1).views.images, RoomPanoramas(config).scene(1).views.images)
    assert RoomPanoramas(config, split="test").describe() != source.describe()


def test_the_skybox_is_what_is_seen_from_the_standpoint() -> None:
    source = RoomPanoramas(RoomPanoramasConfig(count=4, size=48), seed=1, split="test")
    faces = torch.from_numpy(source.skybox(0, 128)).permute(0, 3, 1, 2)
    views = skybox_views(faces, intrinsics(pi / 2, 48, 48), ring(8), 48, 48).permute(0, 2, 3, 1)
    assert psnr(source.scene(0).views.images.numpy(), views.numpy()) > 24


def test_depth_is_along_the_axis_whatever_the_pictures_form() -> None:
    """Of every pixel: the point at this depth along its ray is on the shell of the room, or before it."""
    for height, width in ((36, 48), (48, 36)):
        walk = RoomWalks(SMALL.model_copy(update={"height": height, "width": width}), 0, "train", 8)[1]
        scene = walk.views([0, 5])
        assert scene.depth is not None and scene.views.images.shape == (2, height, width, 3)
        at = scene.views.at
        origins, rays = at.rays()
        forward = -at.c2w[:, None, None, :3, 2]
        points = (origins + rays * (scene.depth / (rays * forward).sum(-1))[..., None]).reshape(-1, 3).numpy()
        gap = np.stack([HALF - abs(points[:, 0]), HALF - abs(points[:, 1]), points[:, 2]]).min(0)
        gap = np.minimum(gap, HEIGHT - points[:, 2])
        assert gap.min() > -1e-3 and (gap < 2e-3).mean() > 0.3


def test_key_frames_overlap_by_two_thirds() -> None:
    walk = RoomWalks(SMALL, 3, "train", 60)[0]
    keys = list(walk.keys[:6])
    scene = walk.views(keys)
    K, c2w = of_cameras(scene.views.at)
    assert scene.depth is not None
    overlap = overlap_fractions(scene.depth, c2w, K).diagonal(1)
    assert len(keys) == 6 and overlap.min() > 0.5 and 0.58 < overlap.mean() < 0.74
    assert min(depth_overlap(scene.views.images, scene.depth, K, c2w)) > 18


def test_entries_of_paths() -> None:
    train = room_paths(SMALL.model_copy(update={"between": 1.0, "width": 16, "height": 12}), seed=3)
    scene = train.scene(0)
    walk = train.walks[0]
    assert scene.given == (0, 3) and len(scene) == 4 and torch.equal(train.scene(0).views.images, scene.views.images)
    place = [int((walk.cameras.c2w == one).all((1, 2)).nonzero()[0, 0]) for one in scene.views.at.c2w]
    keys = list(walk.keys)
    assert keys.index(place[3]) == keys.index(place[0]) + 2 and all(place[0] < k < place[3] for k in place[1:3])
    test = room_paths(SMALL.model_copy(update={"width": 16, "height": 12}), split="test")
    assert len(test) == 3 and test.scene(1).given == ()
    assert torch.equal(test.scene(1).views.at.c2w, test.walks[1].cameras.c2w[list(test.walks[1].keys[:4])])


def test_the_mesh_is_what_the_pictures_show() -> None:
    walk = RoomWalks(SMALL, 0, "test", 20)[2]
    corners, _, labels = room_triangles(walk.room)
    at = walk.cameras.select([0, 7, 15]).with_size(48, 64)
    _, depth, label = pictures(walk.room, at, 1, True)
    seen = rasterise(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), at.c2w.numpy(), at.fov.numpy(),
                     (48, 64))  # fmt: skip
    gap = np.abs(seen.z - depth)
    assert seen.mask.all() and np.median(gap) < 1e-3 and (gap < 0.02).mean() > 0.93
    assert (labels[seen.face] == label).mean() > 0.95
    middle = corners.mean(1)
    assert (np.abs(middle[:, :2]) < HALF + 0.011).all()  # nothing of the outer sides


def test_pictures_of_one_odd_side_are_refused() -> None:
    with pytest.raises(ValueError, match="36 x 47 pixels cannot"):
        RoomWalks(SMALL.model_copy(update={"width": 47}), 0, "train", 8)[1].views([0])


@pytest.mark.parametrize("views", [1, 5])
def test_any_number_of_views(views: int) -> None:
    assert len(RoomPanoramas(RoomPanoramasConfig(count=1, size=8, views=views)).scene(0)) == views
