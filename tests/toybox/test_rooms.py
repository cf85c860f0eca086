import numpy as np
import pytest
import torch

from threedgen.evaluation.metrics.overlap import depth_overlap, panorama_overlap
from threedgen.geometry.raster import rasterise
from threedgen.geometry.warp import overlap_fractions, to_opencv
from threedgen.toybox.data.room_scenes import RoomPanoramas, render_images, room_paths, room_triangles, room_walks
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.toybox.world.builder import bounds
from threedgen.toybox.world.furnishing import HALF_WIDTH, HEIGHT, Room, furnish_from
from threedgen.toybox.world.rooms import Rooms, describe_view, look_c2w, render_rooms

FIRST_ROOM = np.zeros(1, np.int64)
FIXED = ("door", "window", "picture")


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [Rooms(5).room(index) for index in range(12)]


def standing(room: Room) -> list[int]:
    return [k for k, item in enumerate(room.items) if not item.endswith(FIXED)]


def test_objects_stand_on_the_floor_inside_the_walls_and_apart(rooms: list[Room]) -> None:
    count = 0
    for room in rooms:
        boxes = list[tuple[np.ndarray, np.ndarray]]()
        for k in standing(room):
            low, high = bounds([solid for solid in room.asset.primitives if solid.label == str(k)])
            assert abs(low[2]) < 1e-6 and (np.abs([low[:2], high[:2]]) < HALF_WIDTH).all(), room.items[k]
            assert all((low[:2] >= b).any() or (high[:2] <= a).any() for a, b in boxes), room.items[k]
            boxes.append((low[:2], high[:2]))
        count += len(boxes)
    assert count > 4 * len(rooms)


def test_captions_name_only_large_visible_items(rooms: list[Room]) -> None:
    rng = np.random.default_rng(0)
    for room in rooms:
        for k, item in enumerate(room.items):
            text = describe_view(room, np.full((8, 8), k + 1), rng)
            assert item in text and room.wall in text
        bare = describe_view(room, np.full((8, 8), len(room.items) + 1), rng)
        assert not any(item in bare for item in room.items)
        small = np.full((40, 40), len(room.items) + 1)
        small[0, :5] = 1  # below the minimum area
        assert room.items[0] not in describe_view(room, small, rng)


def test_depth_is_the_distance_to_the_wall(rooms: list[Room]) -> None:
    room, place, size = rooms[1], np.array([0.3, 0.1, 1.5]), 64
    c2w = look_c2w(place, np.asarray(0.7), np.asarray(0.0))[None]
    result = render_rooms([room], FIRST_ROOM, c2w, np.array([np.pi / 2]), size, with_gbuffer=True)
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / (size / 2) - 1])
    ray = np.stack([x, -y, -np.ones_like(x)], -1) @ c2w[0, :3, :3].T
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    low, high = np.array([-HALF_WIDTH, -HALF_WIDTH, 0.0]), np.array([HALF_WIDTH, HALF_WIDTH, HEIGHT])
    expected = (np.where(ray > 0, high - place, low - place) / ray).min(-1)
    bare = result.label[0] == len(room.items) + 1
    gap = np.abs(result.depth[0] - expected)[bare]
    assert bare.mean() > 0.2 and (gap < 1e-3).mean() > 0.8  # the rest: skirting boards and the lamp
    assert (result.depth[0] < expected + 1e-3).all() and np.isfinite(result.depth).all()


def test_clutter_scales_the_number_of_objects(rooms: list[Room]) -> None:
    full, few, none = (
        [len(standing(Rooms(5, clutter=clutter).room(index))) for index in range(12)] for clutter in (1.0, 0.4, 0.0)
    )
    assert full == [len(standing(room)) for room in rooms]
    assert all(2 <= count <= 5 for count in few) and sum(few) < 0.7 * sum(full) and not any(none)


def test_a_room_has_what_its_prompt_names() -> None:
    text = "a pink room with a white floor, a red sofa, two green chairs, a blue door and a window"
    room, lost = furnish_from(text, np.random.default_rng(0))
    assert (room.wall, room.floor, lost) == ("pink", "white", [])
    wanted = ["a red sofa", "a green chair", "a green chair", "a blue door", "a window"]
    assert sorted(room.items) == sorted(wanted)
    assert {solid.label for solid in room.asset.primitives} == {"", *map(str, range(5))}
    crowded, lost = furnish_from("a red bed, " * 12, np.random.default_rng(0))
    assert len(crowded.items) + len(lost) == 12 and set(lost) == {"bed"}
    assert len(furnish_from("a pink room", np.random.default_rng(0))[0].items) == 4


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


def test_views_between_key_frames_are_from_the_walk() -> None:
    train = room_paths(SMALL.model_copy(update={"between": 1.0, "width": 16, "height": 12}), seed=3)
    scene, walk = train.scene(0), train.walks[0]
    assert scene.condition_views == (0, 3) and len(scene) == 4
    place = [int((walk.cameras.c2w == one).all((1, 2)).nonzero()[0, 0]) for one in scene.views.cameras.c2w]
    keys = list(walk.keys)
    assert keys.index(place[3]) == keys.index(place[0]) + 2 and all(place[0] < k < place[3] for k in place[1:3])


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
