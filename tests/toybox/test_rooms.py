import numpy as np
import pytest

from threedgen.geometry.raster import rasterise
from threedgen.geometry.warp import overlap_fractions, to_opencv
from threedgen.toybox.data.room_scenes import RoomPanoramas, render_images, room_paths, room_triangles, room_walks
from threedgen.toybox.options import RoomPanoramasConfig, RoomPathsConfig
from threedgen.toybox.world.builder import bounds
from threedgen.toybox.world.furnishing import HALF_WIDTH, Room, furnish_from
from threedgen.toybox.world.rooms import Rooms, describe_view

FIXED = ("door", "window", "picture")


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [Rooms(5).room(index) for index in range(12)]


def standing(room: Room) -> list[int]:
    return [k for k, item in enumerate(room.items) if not item.endswith(FIXED)]


def test_objects_stand_on_the_floor_inside_the_walls_and_apart(rooms: list[Room]) -> None:
    for room in rooms:
        boxes = list[tuple[np.ndarray, np.ndarray]]()
        for k in standing(room):
            low, high = bounds([solid for solid in room.asset.primitives if solid.label == str(k)])
            assert abs(low[2]) < 1e-6 and (np.abs([low[:2], high[:2]]) < HALF_WIDTH).all(), room.items[k]
            assert all((low[:2] >= b).any() or (high[:2] <= a).any() for a, b in boxes), room.items[k]
            boxes.append((low[:2], high[:2]))
        assert boxes


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


def test_clutter_scales_the_number_of_objects(rooms: list[Room]) -> None:
    few, none = ([standing(Rooms(5, clutter=share).room(index)) for index in range(12)] for share in (0.4, 0.0))
    assert 12 < sum(map(len, few)) < 0.7 * sum(map(len, map(standing, rooms))) and not any(none)


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


def test_training_panoramas_start_at_a_random_but_fixed_yaw() -> None:
    config = RoomPanoramasConfig(count=50, size=16, views=3)
    first = [RoomPanoramas(config).first_yaw(k) for k in range(40)]
    assert set(first) == set(range(0, 360, 45)) and first == [RoomPanoramas(config).first_yaw(k) for k in range(40)]
    assert RoomPanoramas(config, split="test").describe() != RoomPanoramas(config).describe()


def test_key_frames_overlap_by_two_thirds() -> None:
    walk = room_walks(SMALL, 3, "train", 60)[0]
    keys = list(walk.keys[:6])
    scene = walk.views(keys)
    K, c2w = to_opencv(scene.views.cameras)
    assert scene.depth is not None
    overlap = overlap_fractions(scene.depth, c2w, K).diagonal(1)
    assert len(keys) == 6 and overlap.min() > 0.5 and 0.58 < overlap.mean() < 0.74


def test_views_between_key_frames_are_from_the_walk() -> None:
    train = room_paths(SMALL.model_copy(update={"between": 1.0, "width": 16, "height": 12}), seed=3)
    scene, walk = train.scene(0), train.walks[0]
    assert scene.condition_views == (0, 3) and len(scene) == 4
    place = [int((walk.cameras.c2w == one).all((1, 2)).nonzero()[0, 0]) for one in scene.views.cameras.c2w]
    keys = list(walk.keys)
    assert keys.index(place[3]) == keys.index(place[0]) + 2 and all(place[0] < k < place[3] for k in place[1:3])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48)])
def test_room_mesh_matches_the_renders(height: int, width: int) -> None:
    walk = room_walks(SMALL, 0, "test", 20)[2]
    corners, _, labels = room_triangles(walk.room)
    at = walk.cameras.select([0, 7, 15]).with_size(height, width)
    _, depth, label = render_images(walk.room, at, 1, True)
    faces = np.arange(3 * len(corners)).reshape(-1, 3)
    raster = rasterise(corners.reshape(-1, 3), faces, at.c2w.numpy(), at.fov.numpy(), (height, width))
    gap = np.abs(raster.z - depth)
    assert raster.mask.all() and np.median(gap) < 1e-3 and (gap < 0.02).mean() > 0.93
    assert (labels[raster.face] == label).mean() > 0.95
    assert (np.abs(corners.mean(1)[:, :2]) < HALF_WIDTH + 0.011).all()  # no outer sides
