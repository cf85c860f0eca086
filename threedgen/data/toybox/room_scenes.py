"""Toy rooms as scenes of several views: panoramas from one standpoint, and walks with depth.

Both are sources of ``threedgen.data.scene_views``; lengths are metres, and the world is that of ``rooms``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import radians
from typing import overload

import numpy as np
import torch

from threedgen.data.options import RoomPanoramasConfig, RoomPathsConfig, SceneSplit
from threedgen.data.scene_views import SceneViews
from threedgen.data.walks import Entry, Walk, WalkScenes
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.overlap import key_frames
from threedgen.geometry.panorama import SKYBOX, cameras, ring, rotation
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator

from .rooms import EYE, LIVING, TURN, Room, Rooms, describe, look_c2w, view

CAPTION_PIXELS = 32
"""Width of the pictures in which is counted what a caption may name."""
KEY_WIDTH = 32
"""Width of the pictures by whose depth key frames are chosen."""
FRAMES_A_KEY = 9
"""Frames of a walk for each key frame that is wanted; about six lie between two."""


def rooms_of(seed: int, split: SceneSplit, clutter: float) -> Rooms:
    return Rooms(seed, "train" if split == "train" else "held-out", clutter)


def photograph(
    room: Room, at: Cameras, rng: Sequence[np.random.Generator], supersample: int = 2, depth: bool = False
) -> SceneViews:
    """Views in a room with their captions, whose wordings are drawn with ``rng``, one for each view."""
    rgb, z, _ = pictures(room, at, supersample, depth)
    label = pictures(room, reduced(at, CAPTION_PIXELS), 1, True)[2]
    texts = tuple(describe(room, seen, one) for seen, one in zip(label, rng, strict=True))
    return SceneViews(Views(torch.from_numpy(rgb), at), texts, torch.from_numpy(z) if depth else None)


def reduced(at: Cameras, width: int) -> Cameras:
    """The same views, an even number of pixels wide and high."""
    return at.with_size(2 * max(1, round(width * at.height / at.width / 2)), width)


def pictures(room: Room, at: Cameras, supersample: int, truth: bool) -> tuple[Array, Array, Array]:
    """rgb (V,H,W,3) and, with ``truth``, depth (V,H,W) along the viewing axis and labels (V,H,W).

    The ray caster's pictures are square, so their middle is cut out: pixels are square, the axis is in the middle.
    Raises ValueError if only one side is odd.
    """
    side = max(at.height, at.width)
    if (at.height - at.width) % 2:
        raise ValueError(f"pictures of {at.height} x {at.width} pixels cannot be cut out of the middle of a square")
    focal = at.K[:, 1, 1].double().numpy()
    fov = 2 * np.arctan(0.5 * side / focal)
    shot = view([room], np.zeros(len(at), np.int64), at.c2w.numpy(), fov, side, supersample, truth)
    top, left = (side - at.height) // 2, (side - at.width) // 2
    cut = (slice(None), slice(top, top + at.height), slice(left, left + at.width))
    if not truth:
        return np.ascontiguousarray(shot.rgb[cut]), shot.depth, shot.label
    # the ray caster measures along the ray
    offset = np.arange(side) + 0.5 - side / 2
    slope = np.hypot(offset[:, None], offset) / focal[:, None, None]
    depth = (shot.depth / np.hypot(slope, 1)).astype(np.float32)
    rgb, depth, label = (np.ascontiguousarray(part[cut]) for part in (shot.rgb, depth, shot.label))
    return rgb, depth, label


class RoomPanoramas:
    """Views evenly around the middle of each of ``count`` rooms; the first yaw is a random one of eight, of held-out
    rooms 0."""

    def __init__(self, config: RoomPanoramasConfig, seed: int = 0, split: SceneSplit = "train") -> None:
        self.options, self.rooms, self.split = config, rooms_of(seed, split, config.clutter), split
        self.n_view = config.views

    def __len__(self) -> int:
        return self.options.count

    def describe(self) -> str:
        o = self.options
        which = f"seed {self.rooms.seed}, {self.split}, clutter {o.clutter:g}"
        return f"panoramas of toy rooms, {which}, {o.views} of {o.size} px, {o.fov:g} deg"

    def first_yaw(self, index: int) -> int:
        """In degrees."""
        return TURN * int(self.rooms.rng(index, 3).integers(360 // TURN)) if self.split == "train" else 0

    def scene(self, index: int) -> SceneViews:
        yaw = radians(self.first_yaw(index))
        at = cameras(ring(self.n_view, yaw), radians(self.options.fov), *self._size, EYE.tolist())
        rng = [self.rooms.rng(index, 10 + number) for number in range(self.n_view)]
        return photograph(self.rooms.room(index), at, rng, self.options.supersample)

    def skybox(self, index: int, size: int) -> Array:
        """The six faces (6,size,size,3) that are seen from the standpoint, in Matterport3D's order; yaw 0 is +x."""
        R = torch.stack([rotation(*angles) for angles in SKYBOX])
        at = cameras(R, radians(90), size, size, EYE.tolist())
        return pictures(self.rooms.room(index), at, self.options.supersample, False)[0]

    def directions(self, index: int) -> list[str]:
        """What is seen from the standpoint at the yaws 0, 45, ... 315 degrees, in words."""
        at = cameras(ring(8), radians(90), CAPTION_PIXELS, CAPTION_PIXELS, EYE.tolist())
        rng = [self.rooms.rng(index, 10 + number) for number in range(8)]
        return list(photograph(self.rooms.room(index), at, rng, 1).captions)

    @property
    def _size(self) -> tuple[int, int]:
        return self.options.size, self.options.size


class RoomWalk:
    """A smooth walk of ``length`` frames through the free middle of room ``index``, looking around."""

    def __init__(self, rooms: Rooms, index: int, length: int, options: RoomPathsConfig) -> None:
        self.rooms, self.index, self.length, self.options = rooms, index, length, options

    @cached_property
    def room(self) -> Room:
        return self.rooms.room(self.index)

    @property
    def frames(self) -> Sequence[int]:
        return range(self.length)

    @cached_property
    def keys(self) -> Sequence[int]:
        small = reduced(self.cameras, KEY_WIDTH)
        return key_frames(torch.from_numpy(pictures(self.room, small, 1, True)[1]), small, self.options.overlap)

    @cached_property
    def cameras(self) -> Cameras:
        """Of all frames: an ellipse in the plan, a turn in one direction that is now slower, now faster, and a nod."""
        rng, k, o = self.rooms.rng(self.index, 4), np.arange(self.length), self.options

        def wave(amplitude: float, shortest: float, longest: float) -> Array:
            return amplitude * np.sin(2 * np.pi * (k / rng.uniform(shortest, longest) + rng.uniform()))

        wide = LIVING * rng.uniform(0.2, 0.6, 2)
        place = np.stack(
            [wave(wide[0], 70, 110), wave(wide[1], 70, 110), rng.uniform(1.1, 1.6) + wave(0.08, 30, 50)], -1
        )
        turn = rng.uniform(0, 360) + rng.choice([-1, 1]) * (rng.uniform(2.4, 3.4) * k + wave(14, 40, 60))
        c2w = look_c2w(place, np.deg2rad(turn), np.deg2rad(-6 + wave(7, 40, 80)))
        K = torch.zeros(self.length, 3, 3)
        K[:, 0, 0] = K[:, 1, 1] = 0.5 * o.width / np.tan(radians(o.fov) / 2)
        K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = o.width / 2, o.height / 2, 1
        return Cameras(torch.from_numpy(c2w), Projection(K), o.height, o.width)

    def views(self, numbers: Sequence[int]) -> SceneViews:
        key = self.rooms.seed
        rng = [numpy_generator(key, n, f"caption of room {self.index}, {self.rooms.split}") for n in numbers]
        return photograph(self.room, self.cameras.select(list(numbers)), rng, self.options.supersample, depth=True)


class RoomWalks(Sequence[Walk]):
    """A walk through each of ``options.count`` rooms, made when it is asked for."""

    def __init__(self, options: RoomPathsConfig, seed: int, split: SceneSplit, length: int | None = None) -> None:
        self.options, self.rooms = options, rooms_of(seed, split, options.clutter)
        self.length = length or FRAMES_A_KEY * options.views

    def __len__(self) -> int:
        return self.options.count

    @overload
    def __getitem__(self, index: int) -> RoomWalk: ...
    @overload
    def __getitem__(self, index: slice) -> list[Walk]: ...
    def __getitem__(self, index: int | slice) -> RoomWalk | list[Walk]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return RoomWalk(self.rooms, index, self.length, self.options)


def room_paths(config: RoomPathsConfig, seed: int = 0, split: SceneSplit = "train") -> WalkScenes:
    """A source of views along walks through toy rooms; of held-out rooms the first key frames."""
    o, walks = config, RoomWalks(config, seed, split)
    which = f"seed {seed}, {split}, clutter {o.clutter:g}"
    told = f"toy rooms, {which}, {o.height} x {o.width} px, {o.fov:g} deg, overlap {o.overlap:g}"
    if split == "test":
        return WalkScenes(walks, o.views, told, entries=[Entry(k, 0) for k in range(len(walks))])
    return WalkScenes(walks, o.views, told, seed, o.between, o.apart)
