"""Panoramas and walks of toy rooms: consistency of images, depth, cameras and captions."""

from math import pi

import numpy as np
import pytest
import torch

from threedgen.evaluation.metrics.overlap import depth_overlap, panorama_overlap
from threedgen.geometry.images import psnr
from threedgen.geometry.panorama import intrinsics, ring, skybox_views
from threedgen.geometry.raster import rasterise
from threedgen.geometry.warp import overlap_fractions, to_opencv
from threedgen.toybox.data.room_scenes import RoomPanoramas, render_images, room_paths, room_triangles, room_walks
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.toybox.world.rooms import HALF_WIDTH, HEIGHT

SMALL = RoomPathsConfig(count=3, height=36, width=48, views=4)


def test_panorama_views_are_consistent_and_captioned() -> None:
    source = RoomPanoramas(RoomPanoramasConfig(count=4, size=64), seed=1, split="test")
    scene = source.scene(2)
    K, c2w = to_opencv(scene.views.cameras)
    assert len(scene) == 8 and scene.depth is None and len(source) == 4
    assert min(panorama_overlap(scene.views.images, K, c2w[:, :3, :3])) > 20
    assert all(source.rooms.room(2).wall in text for text in scene.captions)
    turned = np.rad2deg(np.arctan2(c2w[:, 1, 2].numpy(), c2w[:, 0, 2].numpy())) % 360
    assert np.allclose(turned, -45 * np.arange(8) % 360, atol=1e-3)  # clockwise from +x


def test_training_panoramas_start_at_a_random_but_fixed_yaw() -> None:
    config = RoomPanoramasConfig(count=50, size=16, views=3)
    source = RoomPanoramas(config)
    first = [source.first_yaw(k) for k in range(40)]
    assert set(first) == set(range(0, 360, 45)) and first == [RoomPanoramas(config).first_yaw(k) for k in range(40)]
    assert len(source.scene(1)) == 3
    assert torch.equal(source.scene(1).views.images, RoomPanoramas(config).scene(1).views.images)
    assert RoomPanoramas(config, split="test").describe() != source.describe()


def test_skybox_matches_the_panorama_views() -> None:
    source = RoomPanoramas(RoomPanoramasConfig(count=4, size=48), seed=1, split="test")
    faces = torch.from_numpy(source.skybox(0, 128)).permute(0, 3, 1, 2)
    views = skybox_views(faces, intrinsics(pi / 2, 48, 48), ring(8), 48, 48).permute(0, 2, 3, 1)
    assert psnr(source.scene(0).views.images.numpy(), views.numpy()) > 24


@pytest.mark.parametrize(("height", "width"), [(36, 48), (48, 36)])
def test_walk_depth_is_z_depth_inside_the_room(height: int, width: int) -> None:
    walk = room_walks(SMALL.model_copy(update={"height": height, "width": width}), 0, "train", 8)[1]
    scene = walk.views([0, 5])
    assert scene.depth is not None and scene.views.images.shape == (2, height, width, 3)
    at = scene.views.cameras
    origins, rays = at.rays()
    forward = -at.c2w[:, None, None, :3, 2]
    points = (origins + rays * (scene.depth / (rays * forward).sum(-1))[..., None]).reshape(-1, 3).numpy()
    gap = np.stack([HALF_WIDTH - abs(points[:, 0]), HALF_WIDTH - abs(points[:, 1]), points[:, 2]]).min(0)
    gap = np.minimum(gap, HEIGHT - points[:, 2])
    assert gap.min() > -1e-3 and (gap < 2e-3).mean() > 0.3


def test_key_frames_overlap_by_two_thirds() -> None:
    walk = room_walks(SMALL, 3, "train", 60)[0]
    keys = list(walk.keys[:6])
    scene = walk.views(keys)
    K, c2w = to_opencv(scene.views.cameras)
    assert scene.depth is not None
    overlap = overlap_fractions(scene.depth, c2w, K).diagonal(1)
    assert len(keys) == 6 and overlap.min() > 0.5 and 0.58 < overlap.mean() < 0.74
    assert min(depth_overlap(scene.views.images, scene.depth, K, c2w)) > 18


def test_room_paths_entries_by_split() -> None:
    train = room_paths(SMALL.model_copy(update={"between": 1.0, "width": 16, "height": 12}), seed=3)
    scene = train.scene(0)
    walk = train.walks[0]
    assert scene.condition_views == (0, 3) and len(scene) == 4
    assert torch.equal(train.scene(0).views.images, scene.views.images)
    place = [int((walk.cameras.c2w == one).all((1, 2)).nonzero()[0, 0]) for one in scene.views.cameras.c2w]
    keys = list(walk.keys)
    assert keys.index(place[3]) == keys.index(place[0]) + 2 and all(place[0] < k < place[3] for k in place[1:3])
    test = room_paths(SMALL.model_copy(update={"width": 16, "height": 12}), split="test")
    assert len(test) == 3 and test.scene(1).condition_views == ()
    assert torch.equal(test.scene(1).views.cameras.c2w, test.walks[1].cameras.c2w[list(test.walks[1].keys[:4])])


def test_room_mesh_matches_the_renders() -> None:
    walk = room_walks(SMALL, 0, "test", 20)[2]
    corners, _, labels = room_triangles(walk.room)
    at = walk.cameras.select([0, 7, 15]).with_size(48, 64)
    _, depth, label = render_images(walk.room, at, 1, True)
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    raster = rasterise(corners.reshape(-1, 3), faces, at.c2w.numpy(), at.fov.numpy(), (48, 64))
    gap = np.abs(raster.z - depth)
    assert raster.mask.all() and np.median(gap) < 1e-3 and (gap < 0.02).mean() > 0.93
    assert (labels[raster.face] == label).mean() > 0.95
    assert (np.abs(corners.mean(1)[:, :2]) < HALF_WIDTH + 0.011).all()  # no outer sides
