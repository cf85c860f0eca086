"""Rooms are captioned boxes full of things; what stands where can be said from their solids alone."""

from __future__ import annotations

import numpy as np
import pytest

from threedgen.data.toybox.builder import bounds
from threedgen.data.toybox.rooms import HALF, HEIGHT, Room, Rooms, describe, look_c2w, view

HERE = np.zeros(1, np.int64)
FIXED = ("door", "window", "picture")


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [Rooms(5).room(index) for index in range(12)]


def solids(room: Room, item: int) -> list:
    return [solid for solid in room.asset.primitives if solid.label == str(item)]


def test_a_room_is_the_same_for_the_same_seed() -> None:
    first, second = Rooms(5).shots([2, 7], 16, 2), Rooms(5).shots([7], 16, 2)
    assert np.array_equal(first[0][2:], second[0]) and first[1][2:] == second[1]
    assert np.array_equal(first[2][2:], second[2])
    for other in (Rooms(6), Rooms(5, "held-out")):
        assert not np.array_equal(other.shots([7], 16, 2)[0], second[0])


def test_things_stand_on_the_floor_inside_the_walls_and_apart(rooms: list[Room]) -> None:
    standing = 0
    for room in rooms:
        boxes = []
        for k, item in enumerate(room.items):
            if not item.endswith(FIXED):
                low, high = bounds(solids(room, k))
                assert abs(low[2]) < 1e-6 and (np.abs([low[:2], high[:2]]) < HALF).all(), item
                assert all((low[:2] >= b[:2]).any() or (high[:2] <= a[:2]).any() for a, b in boxes), item
                boxes.append((low, np.where([True, True, False], high, np.inf)))
        standing += len(boxes)
    assert standing > 4 * len(rooms)


def test_things_do_not_overlap_in_the_plan(rooms: list[Room]) -> None:
    for room in rooms:
        names = [item.endswith(FIXED) for item in room.items]
        plans = [bounds(solids(room, k))[:, :2] for k, fixed in enumerate(names) if not fixed]
        for k, (low, high) in enumerate(plans):
            for other_low, other_high in plans[:k]:
                assert (low >= other_high).any() or (high <= other_low).any()


def test_captions_name_what_is_seen_and_nothing_else(rooms: list[Room]) -> None:
    rng = np.random.default_rng(0)
    for room in rooms:
        for k, item in enumerate(room.items):
            text = describe(room, np.full((8, 8), k + 1), rng)
            assert item in text and room.wall in text
        bare = describe(room, np.full((8, 8), len(room.items) + 1), rng)
        assert not any(item in bare for item in room.items)
        small = np.full((40, 40), len(room.items) + 1)
        small[0, :5] = 1  # too small to be worth a word
        assert room.items[0] not in describe(room, small, rng)


def test_a_panorama_shows_in_its_middle_what_a_camera_sees(rooms: list[Room]) -> None:
    size, height = 48, 192
    c2w = look_c2w(np.array([0.2, -0.3, 1.4]), np.asarray(0.7), np.asarray(0.0))[None]
    picture = view(rooms[:1], HERE, c2w, np.array([np.pi / 2]), size, truth=True)
    around = view(rooms[:1], HERE, c2w, np.array([0.0]), height, truth=True, panorama=True)
    assert around.rgb.shape == (1, height, 2 * height, 3)
    x, y = np.meshgrid(*2 * [(np.arange(size) + 0.5) / (size / 2) - 1])
    column = ((np.arctan2(x, 1) / (2 * np.pi) + 0.5) * 2 * height).astype(int)
    row = ((0.5 + np.arctan2(y, np.hypot(x, 1)) / np.pi) * height).astype(int)
    assert (around.label[0, row, column] == picture.label[0]).mean() > 0.9
    assert np.median(np.abs(around.depth[0, row, column] - picture.depth[0])) < 0.03
    assert np.median(np.abs(around.rgb[0, row, column] - picture.rgb[0])) < 0.02


def test_depth_is_the_distance_to_the_wall(rooms: list[Room]) -> None:
    room, place, height = rooms[1], np.array([0.3, 0.1, 1.5]), 64
    c2w = look_c2w(place, np.asarray(0.0), np.asarray(0.0))[None]
    picture = view([room], HERE, c2w, np.array([0.0]), height, truth=True, panorama=True)
    turn = 2 * np.pi * ((np.arange(2 * height) + 0.5) / (2 * height) - 0.5)
    rise = np.pi * (0.5 - (np.arange(height)[:, None] + 0.5) / height)
    ray = np.stack([np.cos(turn) * np.cos(rise), -np.sin(turn) * np.cos(rise), np.sin(rise) + 0 * turn], -1)
    low, high = np.array([-HALF, -HALF, 0.0]), np.array([HALF, HALF, HEIGHT])
    expected = (np.where(ray > 0, high - place, low - place) / ray).min(-1)
    bare = picture.label[0] == len(room.items) + 1
    gap = np.abs(picture.depth[0] - expected)[bare]
    assert bare.mean() > 0.3 and (gap < 1e-3).mean() > 0.8  # the rest: skirting boards and the lamp
    assert (picture.depth[0] < expected + 1e-3).all() and np.isfinite(picture.depth).all()


def test_with_less_clutter_fewer_things_stand_in_a_room() -> None:
    def things(clutter: float) -> list[int]:
        rooms = [Rooms(5, clutter=clutter).room(index) for index in range(12)]
        return [len([item for item in room.items if not item.endswith(FIXED)]) for room in rooms]

    full, few, none = things(1.0), things(0.4), things(0.0)
    assert full == [len([i for i in Rooms(5).room(k).items if not i.endswith(FIXED)]) for k in range(12)]
    assert all(2 <= count <= 5 for count in few) and sum(few) < 0.7 * sum(full) and not any(none)
