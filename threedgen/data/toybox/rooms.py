"""Toy rooms: captioned interiors with doors, windows, a lamp, furniture and things of the toybox, seen from inside.

rooms = Rooms(seed=0, split="train")
room = rooms.room(17)                       # its solids, its lamp, and what stands where
shot = rooms.shots([17], 128, n_view=2)     # pictures, captions of what each shows, cameras

Lengths are metres, the floor is z = 0 and the middle of the floor the origin.  Room ``index`` of a seed and a split is
always the same, as samples of the toybox are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .builder import Builder, bounds, rotation
from .grammar import COLOURS, Spec, article, caption, colour_value, draw_colour
from .primitives import Asset, Primitive
from .raycast import Picture, render
from .world import Split, build

HALF, HEIGHT = 2.4, 2.6
"""Half the length of a wall, and how high it is.  All rooms have this one shape, and what stands in them few places: a
small model that is to draw them learns lines and places, which captions do not tell, sooner if there are few."""
EYE = np.array([0.0, 0.0, 1.4])
"""Where panoramas are taken."""
TURN = 45
"""Degrees: the views of a panorama look at walls and corners."""
SLOTS = np.array([-1.35, 0.0, 1.35])
"""Where something hangs on a wall, from its middle. Furniture stands in the middle."""
CORNER = 1.85
"""Of the places in the corners, along both axes."""
FURNITURE = {
    "sofa": 1.05, "bed": 1.05, "bookshelf": 1.05, "table": 0.9, "chair": 0.8, "lamp": 0.8, "television": 0.85,
    "clock": 0.9,
}  # fmt: skip
THINGS = {
    "tree": 1.0, "cactus": 0.95, "guitar": 0.95, "dog": 0.85, "ball": 0.65, "present": 0.7, "bucket": 0.7, "drum": 0.75,
}  # fmt: skip
"""What stands with its back to a wall, and what stands in a corner: metres from its middle to its outermost point."""
OFTEN = ("sofa", "table", "chair")
"""Of these a room may have two."""
LIVING = 0.85
"""Metres about the middle of a room that stay free, for cameras."""
WALLS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
"""The directions in which they stand."""
GLASS, FRAME = (0.70, 0.86, 0.95), (0.93, 0.93, 0.90)


@dataclass(frozen=True)
class Room:
    """Solids in ``asset``, whose label ``str(k)`` is that of ``items[k]`` and "" that of the bare room.

    ``items``: what can be named, as captions have it ("a red sofa"); ``lamp`` (3,): where light comes from; ``wall``
    and ``floor``: their colour words.
    """

    asset: Asset
    items: tuple[str, ...]
    lamp: np.ndarray
    wall: str
    floor: str


class Furnisher:
    """Fills a room: keeps account of the free floor and of what stands where."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.solids: list[Primitive] = []
        self.items: list[str] = []
        living = np.full(2, LIVING / np.sqrt(2))
        self.taken = [(-living, living)]  # boxes of the floor: lower and upper corner
        self.hung: list[tuple[int, float, float]] = []  # stretches of walls: wall, from, to

    def add(self, solids: Sequence[Primitive], phrase: str = "") -> None:
        """Solids of one item, or of the bare room."""
        label = str(len(self.items)) if phrase else ""
        self.solids += [replace(solid, label=label) for solid in solids]
        self.items += [phrase] if phrase else []

    def free(self, low: np.ndarray, high: np.ndarray) -> bool:
        return not any((low < b).all() and (high > a).all() for a, b in self.taken)

    def stand(self, asset: Asset, radius: float, phrase: str, corner: bool) -> bool:
        """Put a thing on the floor, its back to a wall or into a corner; False if there was no room."""
        size = radius / max(float(np.linalg.norm(bounds(asset.primitives), axis=1).max()), 1e-6)
        for way in self.rng.permutation(CORNERS if corner else WALLS):
            solids = [placed(solid, size, facing(way), np.zeros(3)) for solid in asset.primitives]
            low, high = bounds(solids)
            span = np.maximum(HALF - 0.06 - (high - low)[:2] / 2, 0)
            at = np.clip((CORNER if corner else HALF) * way, -span, span)
            shift = np.append(at, 0) - np.append((low + high)[:2] / 2, low[2])
            low, high = (low + shift)[:2] - 0.05, (high + shift)[:2] + 0.05
            if self.free(low, high):
                self.taken.append((low, high))
                self.add([placed(solid, 1.0, 0.0, shift) for solid in solids], phrase)
                return True
        return False

    def hang(self, wide: float) -> tuple[int, float] | None:
        """A free stretch of a wall, ``wide`` long: the wall and the place along it."""
        for _ in range(12):
            wall, at = int(self.rng.integers(4)), float(self.rng.choice(SLOTS))
            low, high = at - wide / 2 - 0.1, at + wide / 2 + 0.1
            if not any(w == wall and low < b and high > a for w, a, b in self.hung):
                self.hung.append((wall, low, high))
                return wall, at
        return None

    def fixed(self, wall: int, at: float, z: float, draw: Builder, phrase: str) -> None:
        """Solids drawn around the origin, facing +x, fixed to a wall at height ``z``."""
        place = WALLS[wall] * HALF + np.abs(WALLS[wall][::-1]) * at
        self.add([placed(solid, 1.0, facing(WALLS[wall]), np.append(place, z)) for solid in draw.solids], phrase)


def facing(way: np.ndarray) -> float:
    """The azimuth, in degrees, of what has its back to a wall or a corner in the direction ``way`` (2,)."""
    return float(np.rad2deg(np.arctan2(*-way[::-1])))


def placed(solid: Primitive, size: float, turn: float, at: np.ndarray) -> Primitive:
    """A solid scaled, turned about z (degrees) and moved."""
    spin = size * rotation((0, 0, turn))
    return replace(solid, matrix=spin @ solid.matrix, centre=spin @ solid.centre + at)


class Rooms:
    """Endless captioned rooms and pictures taken in them. ``clutter``: see ``furnish``."""

    def __init__(self, seed: int = 0, split: Split = "train", clutter: float = 1.0) -> None:
        self.seed, self.split, self.clutter = seed, split, clutter

    def rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 2 if self.split == "train" else 3, index, purpose])

    def room(self, index: int) -> Room:
        return furnish(self.rng(index, 0), self.clutter)

    def shots(self, indices: Sequence[int], size: int, n_view: int = 1) -> tuple[np.ndarray, list[str], np.ndarray]:
        """``n_view`` pictures in each room (N * n, size, size, 3), what each shows, and c2w (N * n, 4, 4)."""
        rooms = [self.room(i) for i in indices]
        rng = [self.rng(i, 1) for i in indices]
        cameras = [snapshot(one) for one in rng for _ in range(n_view)]
        c2w, fov = np.stack([c for c, _ in cameras]), np.array([f for _, f in cameras])
        of = np.repeat(np.arange(len(rooms)), n_view)
        rgb = view(rooms, of, c2w, fov, size).rgb
        shown = view(rooms, of, c2w, fov, 32, supersample=1, truth=True).label
        texts = [describe(rooms[k], label, rng[k]) for k, label in zip(of, shown, strict=True)]
        return rgb, texts, c2w


def view(
    rooms: Sequence[Room],
    view_room: np.ndarray,
    c2w: np.ndarray,
    fov: np.ndarray,
    size: int,
    supersample: int = 2,
    truth: bool = False,
    panorama: bool = False,
) -> Picture:
    """Pictures inside rooms, as ``render`` makes them of assets; labels are 1 + the number of the item, and
    behind these the bare room."""
    lamps = np.stack([room.lamp for room in rooms])[view_room]
    assets = [room.asset for room in rooms]
    return render(assets, view_room, c2w, fov, size, 0.5, supersample, truth, lamps, panorama)


def look_c2w(position: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """Camera-to-world of cameras at ``position`` (..., 3) that look towards ``azimuth`` and ``elevation`` (radians),
    OpenGL axes, z up: (..., 4, 4) float32."""
    ce, se, ca, sa = np.cos(elevation), np.sin(elevation), np.cos(azimuth), np.sin(azimuth)
    back = -np.stack([ce * ca, ce * sa, se], -1)
    right = np.stack([sa, -ca, np.zeros_like(sa)], -1)
    c2w = np.zeros((*back.shape[:-1], 4, 4), np.float32)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2] = right, np.cross(back, right), back
    c2w[..., :3, 3], c2w[..., 3, 3] = position, 1
    return c2w


def snapshot(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A camera in a room: c2w and fov.  Most are those of a panorama, the others somewhere in the free middle."""
    if rng.random() < 0.85:
        place, azimuth, elevation, fov = EYE, float(TURN * rng.integers(360 // TURN)), 0.0, 90.0
    else:
        place = np.array([*rng.uniform(-0.3, 0.3, 2) * LIVING, rng.uniform(1.1, 1.6)])
        azimuth, elevation = rng.uniform(0, 360), float(np.clip(rng.normal(-4, 8), -25, 20))
        fov = rng.uniform(55, 95)
    return look_c2w(place, np.deg2rad(azimuth), np.deg2rad(elevation)), float(np.deg2rad(fov))


# --- captions ------------------------------------------------------------------------------------------------------


def describe(room: Room, label: np.ndarray, rng: np.random.Generator, most: int = 3, least: float = 0.012) -> str:
    """What a picture shows: the room's colours and, from left to right, the largest things in ``label`` (H, W), which
    numbers them from 1.  Order says where they are, so a model has less to guess."""
    n, wording = len(room.items), int(rng.integers(ROOM_WORDINGS))
    share = np.bincount(label.ravel(), minlength=n + 2)[1 : n + 1] / label.size
    seen = [k for k in np.argsort(-share, kind="stable") if share[k] >= least][: most - (wording == NAMES_FLOOR)]
    seen.sort(key=lambda k: np.nonzero(label == k + 1)[1].mean())
    return sentence(room.wall, room.floor, [room.items[k] for k in seen], wording)


def captions() -> Iterator[str]:
    """Sentences with all words that captions of rooms have beyond those of objects."""
    things = ["a red door", "a window", "a picture"]
    for wording in range(ROOM_WORDINGS):
        yield sentence("red", "orange", things, wording)
        yield sentence("red", "orange", ["a window", "a window"], wording)
        yield sentence("red", "orange", [], wording)


ROOM_WORDINGS, NAMES_FLOOR = 6, 1


def sentence(wall: str, floor: str, things: list[str], wording: int) -> str:
    """ "a blue room with a red sofa and a window", in one of the wordings.  ``wall``, ``floor``: colour words."""
    core = f"{wall} room"
    plain = f"{article(core)} {core}"
    for k, pair in enumerate(zip(things, things[1:], strict=False)):
        if pair == ("a window", "a window"):
            things = [*things[:k], "two windows", *things[k + 2 :]]
            break
    if wording == NAMES_FLOOR:
        things = [f"{article(floor)} {floor} floor", *things]
    if not things:
        return (plain, f"the corner of {plain}")[wording % 2]
    listed = things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
    forms = [
        f"{plain} with {listed}", f"{plain} with {listed}", f"inside {plain} with {listed}",
        f"{core}, {', '.join(things)}", f"{listed} in {plain}", f"a room with {wall} walls, {listed}",
    ]  # fmt: skip
    return forms[wording % ROOM_WORDINGS]


# --- furnishing ----------------------------------------------------------------------------------------------------


def furnish(rng: np.random.Generator, clutter: float = 1.0) -> Room:
    """A random room with 5 to 8 pieces of furniture and 3 to 6 other things, or ``clutter`` times as many, as far as
    walls and corners are free.

    They have neither parts nor accessories, so no combination in it is held out.
    """
    names = list(COLOURS)
    wall, floor = (names[int(k)] for k in rng.integers(len(names), size=2))
    f = Furnisher(rng)
    _shell(f, colour_value(wall, rng), colour_value(floor, rng))
    _door(f)
    for _ in range(int(rng.integers(1, 3))):
        _window(f)
    for word in rng.permutation([*FURNITURE, *OFTEN])[: round(clutter * int(rng.integers(5, 9)))]:
        _thing(f, str(word), FURNITURE, corner=False)
    for word in rng.choice(list(THINGS), round(clutter * int(rng.integers(3, 7)))):
        _thing(f, str(word), THINGS, corner=True)
    if rng.random() < 0.6:
        _picture(f)
    lamp = _ceiling_lamp(f)
    order = sorted(range(len(f.items)), key=lambda k: "door" in f.items[k] or "window" in f.items[k])
    rank = {str(old): str(new) for new, old in enumerate(order)} | {"": ""}
    solids = tuple(replace(solid, label=rank[solid.label]) for solid in f.solids)
    items = tuple(f.items[k] for k in order)
    labels = (*(str(k) for k in range(len(items))), "")
    asset = Asset(solids, noun="room", family="rooms", colour=wall, labels=labels)
    return Room(asset, items, lamp, wall, floor)


def _named(rng: np.random.Generator, noun: str) -> tuple[str, np.ndarray]:
    """A colour for a noun that is not of the grammar: how it is called, and the colour."""
    word = draw_colour(rng)
    return f"{article(word)} {word} {noun}", colour_value(word, rng)


def _shell(f: Furnisher, wall: np.ndarray, floor: np.ndarray) -> None:
    x, h, b = HALF, HEIGHT, Builder(f.rng, wall)
    skirting = b.shade(wall, 0.6)
    b.box((0, 0, -0.05), (x + 0.1, x + 0.1, 0.05), floor)
    b.box((0, 0, h + 0.05), (x + 0.1, x + 0.1, 0.05), (0.95, 0.95, 0.94))
    for side in (-1, 1):
        b.box((side * (x + 0.05), 0, h / 2), (0.05, x + 0.1, h / 2))
        b.box((0, side * (x + 0.05), h / 2), (x + 0.1, 0.05, h / 2))
        b.box((side * x, 0, 0.06), (0.025, x, 0.06), skirting)
        b.box((0, side * x, 0.06), (x, 0.025, 0.06), skirting)
    f.add(b.solids)


def _door(f: Furnisher) -> None:
    place = f.hang(0.95)
    if place is None:
        return
    phrase, colour = _named(f.rng, "door")
    b = Builder(f.rng, colour)
    b.box((0, 0, 1.0), (0.03, 0.47, 1.02), b.shade(colour, 0.65))
    b.box((0.02, 0, 0.98), (0.03, 0.41, 0.97))
    for z in (0.5, 1.4):
        b.box((0.045, 0, z), (0.015, 0.28, 0.34), b.shade(colour, 0.85))
    b.sphere((0.08, 0.32, 1.0), 0.05, (0.85, 0.7, 0.3))
    f.fixed(*place, 0.0, b, phrase)
    wall, at = place  # nothing stands before a door
    inner = WALLS[wall] * (HALF - 0.35) + np.abs(WALLS[wall][::-1]) * at
    f.taken.append((inner - 0.45, inner + 0.45))


def _window(f: Furnisher) -> None:
    wide = 1.1
    place = f.hang(wide)
    if place is None:
        return
    b = Builder(f.rng, GLASS)
    b.box((0, 0, 0), (0.02, wide / 2, 0.55), FRAME)
    for side in (-1, 1):
        b.box((0.015, side * (wide - 0.1) / 4, 0), (0.02, (wide - 0.1) / 4 - 0.04, 0.48), GLASS)
    b.box((0.04, 0, -0.58), (0.08, wide / 2 + 0.06, 0.035), FRAME)
    f.fixed(*place, 1.55, b, "a window")


def _picture(f: Furnisher) -> None:
    place = f.hang(0.8)
    if place is None:
        return
    _, ground = _named(f.rng, "")
    b = Builder(f.rng, ground)
    b.box((0, 0, 0), (0.025, 0.4, 0.32), (0.35, 0.22, 0.1))
    b.box((0.01, 0, 0), (0.025, 0.34, 0.26))
    b.cylinder((0.035, f.rng.uniform(-0.15, 0.15), 0.03), 0.14, 0.01, _named(f.rng, "")[1], rotate=(0, 90, 0))
    b.box((0.03, 0, -0.19), (0.015, 0.34, 0.07), _named(f.rng, "")[1])
    f.fixed(*place, 1.6, b, "a picture")


def _ceiling_lamp(f: Furnisher) -> np.ndarray:
    """Hangs it; returns the place of its light."""
    _, colour = _named(f.rng, "lamp")
    b, h = Builder(f.rng, colour), HEIGHT
    b.cylinder((0, 0, h - 0.15), 0.02, 0.16, (0.2, 0.2, 0.2))
    if f.rng.random() < 0.5:
        b.sphere((0, 0, h - 0.4), 0.18, (1.0, 0.97, 0.85))
    else:
        b.cylinder((0, 0, h - 0.38), 0.3, 0.12, top=0.4)
        b.sphere((0, 0, h - 0.46), 0.12, (1.0, 0.97, 0.85))
    f.add(b.solids)
    return np.array([0.0, 0.0, h - 0.75])


def _thing(f: Furnisher, word: str, radii: dict[str, float], corner: bool) -> None:
    """A noun of the toybox, in its colour, without parts and sizes."""
    spec = Spec(word, draw_colour(f.rng))
    f.stand(build(spec, f.rng, luck=0), radii[word], caption(spec), corner)
