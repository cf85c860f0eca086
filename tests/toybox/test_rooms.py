"""Toy rooms: placement of objects, captions, panoramas and depth."""

import numpy as np
import pytest

from threedgen.toybox.world.builder import bounds
from threedgen.toybox.world.rooms import (
    HALF_WIDTH,
    HEIGHT,
    Room,
    Rooms,
    describe_view,
    furnish_from,
    look_c2w,
    render_rooms,
)

FIRST_ROOM = np.zeros(1, np.int64)
FIXED = ("door", "window", "picture")


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [Rooms(5).room(index) for index in range(12)]


def standing(room: Room) -> list[int]:
    return [k for k, item in enumerate(room.items) if not item.endswith(FIXED)]


def test_rooms_depend_only_on_seed_and_split() -> None:
    first, second = Rooms(5).render_views([2, 7], 16, 2), Rooms(5).render_views([7], 16, 2)
    assert np.array_equal(first[0][2:], second[0]) and first[1][2:] == second[1]
    assert np.array_equal(first[2][2:], second[2])
    for other in (Rooms(6), Rooms(5, "held-out")):
        assert not np.array_equal(other.render_views([7], 16, 2)[0], second[0])


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
    def counts(clutter: float) -> list[int]:
        return [len(standing(Rooms(5, clutter=clutter).room(index))) for index in range(12)]

    full, few, none = counts(1.0), counts(0.4), counts(0.0)
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
