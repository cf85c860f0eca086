"""Furnished toy rooms: walls, door, windows, lamp, furniture and other toybox objects, at random or from a prompt.

Lengths are metres; the origin is the centre of the floor, z points up.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .builder import Builder, bounds, rotation
from .grammar import COLOURS, Spec, article, caption, colour_value, sample_colour
from .primitives import Asset, Primitive
from .toybox import build

HALF_WIDTH, HEIGHT = 2.4, 2.6
"""Half the side of the square floor, and the height of every room, metres. All rooms have the same shape, because this
is easier for small models."""
WALL_SLOTS = np.array([-1.35, 0.0, 1.35])
"""Possible positions in metres of doors, windows and pictures along a wall; 0 is the middle of the wall."""
CORNER = 1.85  # distance of objects in corners from the centre of the room, along x and along y
FURNITURE = {
    "sofa": 1.05, "bed": 1.05, "bookshelf": 1.05, "table": 0.9, "chair": 0.8, "lamp": 0.8, "television": 0.85,
    "clock": 0.9,
}  # fmt: skip
CORNER_OBJECTS = {
    "tree": 1.0, "cactus": 0.95, "guitar": 0.95, "dog": 0.85, "ball": 0.65, "present": 0.7, "bucket": 0.7, "drum": 0.75,
}  # fmt: skip
"""FURNITURE stands against walls, CORNER_OBJECTS in corners. Both are dicts from a noun to the bounding radius of such
an object in metres."""
REPEATABLE = ("sofa", "table", "chair")  # furniture that a room may have twice
FREE_RADIUS = 0.85  # half the diagonal in metres of the square in the centre of the floor that stays free for cameras
WALLS = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
CORNERS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
"""WALLS has the directions (4, 2), along x and y, from the centre of a room to its walls, CORNERS to its corners."""
GLASS, FRAME = (0.70, 0.86, 0.95), (0.93, 0.93, 0.90)


@dataclass(frozen=True)
class Room:
    """Furnished room. Its items are the door, windows, furniture and other objects. The origin is the floor's centre.

    Attributes:
        asset: all solids. The label of a solid is ``str(k)`` if it belongs to ``items[k]``, and "" if it belongs to the
            bare room (walls, floor, ceiling and lamp).
        items: phrases for captions, such as "a red sofa".
        lamp: position (3,) of the light in metres, z up.
        wall, floor: colour words of the walls and of the floor.
    """

    asset: Asset
    items: tuple[str, ...]
    lamp: np.ndarray
    wall: str
    floor: str


class Furnisher:
    """Builder of one room, in metres with z up and the origin in the centre of the floor. Its methods add items.

    `solids` are the solids so far, and `items` the phrases of the items for captions, such as "a red sofa". `occupied`
    has the occupied rectangles of the floor, as pairs of lower and upper corner (x, y). `wall_spans` has the occupied
    spans of walls, as triples (index in ``WALLS``, start, end); start and end are metres from the centre of the wall.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.solids: list[Primitive] = []
        self.items: list[str] = []
        centre = np.full(2, FREE_RADIUS / np.sqrt(2))
        self.occupied = [(-centre, centre)]
        self.wall_spans: list[tuple[int, float, float]] = []

    def add(self, solids: Sequence[Primitive], phrase: str = "") -> None:
        """Add solids as a new item that captions call ``phrase``, such as "a red sofa".

        If ``phrase`` is "", the solids belong to the bare room (walls, floor, ceiling and lamp).
        """
        label = str(len(self.items)) if phrase else ""
        self.solids += [replace(solid, label=label) for solid in solids]
        self.items += [phrase] if phrase else []

    def place_on_floor(self, asset: Asset, reach: float, phrase: str, corner: bool) -> bool:
        """Scale an object, stand it at a free place on the floor, and turn its front to the centre of the room.

        ``reach`` is its size after scaling, in metres: the distance from its origin to the minimum or the maximum
        corner of its bounding box, whichever is farther. ``corner``: True for a place in a corner of the room, False
        for one at a wall. Captions call the object ``phrase``. Return False if no place is free, else True.
        """
        scale = reach / max(float(np.linalg.norm(bounds(asset.primitives), axis=1).max()), 1e-6)
        for direction in self.rng.permutation(CORNERS if corner else WALLS):
            yaw = inward_yaw(direction)
            solids = [transform(solid, scale, yaw, np.zeros(3)) for solid in asset.primitives]
            low, high = bounds(solids)
            span = np.maximum(HALF_WIDTH - 0.06 - (high - low)[:2] / 2, 0)
            at = np.clip((CORNER if corner else HALF_WIDTH) * direction, -span, span)
            shift = np.append(at, 0) - np.append((low + high)[:2] / 2, low[2])
            low, high = (low + shift)[:2] - 0.05, (high + shift)[:2] + 0.05
            if not any((low < b).all() and (high > a).all() for a, b in self.occupied):
                self.occupied.append((low, high))
                self.add([transform(solid, 1.0, 0.0, shift) for solid in solids], phrase)
                return True
        return False

    def reserve_span(self, width: float) -> tuple[int, float] | None:
        """Reserve ``width`` metres of a random wall, for a door or a window.

        Return the index of the wall in ``WALLS`` (+x, -x, +y, -y), and the position of the middle of the reserved part,
        in metres along +x or +y from the centre of the wall. Return None if 12 random tries fail.
        """
        for _ in range(12):
            wall, at = int(self.rng.integers(4)), float(self.rng.choice(WALL_SLOTS))
            low, high = at - width / 2 - 0.1, at + width / 2 + 0.1
            if not any(w == wall and low < b and high > a for w, a, b in self.wall_spans):
                self.wall_spans.append((wall, low, high))
                return wall, at
        return None

    def mount(self, wall: int, offset: float, z: float, builder: Builder, phrase: str) -> None:
        """Add the solids of ``builder``, which face +x, to the wall ``WALLS[wall]``, so that they face the room.

        Captions call the added item ``phrase``. The origin of the builder's axes is placed on the wall, ``offset``
        metres along +x or +y from the centre of the wall, and ``z`` metres above the floor.
        """
        position = np.append(WALLS[wall] * HALF_WIDTH + np.abs(WALLS[wall][::-1]) * offset, z)
        yaw = inward_yaw(WALLS[wall])
        self.add([transform(solid, 1.0, yaw, position) for solid in builder.solids], phrase)


def inward_yaw(direction: np.ndarray) -> float:
    """Return the rotation about z, in degrees, that turns the front (+x) of an object to the centre of the room.

    A positive angle turns +x towards +y. ``direction`` (2,), along x and y, points from the centre of the room to the
    object.
    """
    return float(np.rad2deg(np.arctan2(*-direction[::-1])))


def transform(solid: Primitive, scale: float, yaw: float, at: np.ndarray) -> Primitive:
    """Return a copy of a solid, scaled by ``scale``, rotated by ``yaw`` degrees about z, and moved by ``at`` (3,).

    The centre of scaling and rotation is the origin of the world.
    """
    matrix = scale * rotation((0, 0, yaw))
    return replace(solid, matrix=matrix @ solid.matrix, centre=matrix @ solid.centre + at)


def furnish(rng: np.random.Generator, clutter: float = 1.0) -> Room:
    """Sample a room with furniture at the walls and objects in the corners.

    With ``clutter`` 1, 5 to 8 pieces of furniture and 3 to 6 other objects are sampled. ``clutter`` multiplies these
    numbers. Objects that do not fit are left out. There are also a door, one or two windows and perhaps a picture.
    Captions of a room name no parts of objects, so they contain no combination of noun, colour and part that is held
    out of training.
    """
    names = list(COLOURS)
    wall, floor = (names[int(k)] for k in rng.integers(len(names), size=2))
    f = Furnisher(rng)
    _shell(f, colour_value(wall, rng), colour_value(floor, rng))
    _door(f)
    for _ in range(int(rng.integers(1, 3))):
        _window(f)
    for word in rng.permutation([*FURNITURE, *REPEATABLE])[: round(clutter * int(rng.integers(5, 9)))]:
        _object(f, str(word), corner=False)
    for word in rng.choice(list(CORNER_OBJECTS), round(clutter * int(rng.integers(3, 7)))):
        _object(f, str(word), corner=True)
    if rng.random() < 0.6:
        _picture(f)
    return _finish(f, wall, floor)


def furnish_from(prompt: str, rng: np.random.Generator) -> tuple[Room, list[str]]:
    """Furnish a room with the items and colours that ``prompt`` names. Colours that it does not name are random.

    If the prompt names no item, the room gets a door, a window, a sofa and a table. Return the room, and the nouns of
    the items that were left out because no place was free.
    """
    found = ITEM.findall(prompt.lower())
    colours = {noun: word for _, word, noun in found if noun in SURFACES}
    items = [item for item in found if item[2] not in SURFACES] or [("", "", word) for word in UNPROMPTED]
    items.sort(key=lambda item: item[2] != "door")  # a door needs free floor
    wall, floor = colours.get("room") or colours.get("wall") or sample_colour(rng), colours.get("floor")
    floor, f, lost = floor or sample_colour(rng), Furnisher(rng), list[str]()
    _shell(f, colour_value(wall, rng), colour_value(floor, rng))
    for count, colour, noun in items:
        for _ in range(2 if count else 1):
            before = len(f.items)
            if noun in MOUNTED:
                MOUNTED[noun](f, colour)
            elif noun in CORNER_OBJECTS or not _object(f, noun, False, colour):
                _object(f, noun, True, colour)
            lost += [noun] if len(f.items) == before else []
    return _finish(f, wall, floor), lost


def _finish(f: Furnisher, wall: str, floor: str) -> Room:
    lamp = _ceiling_lamp(f)
    order = sorted(range(len(f.items)), key=lambda k: "door" in f.items[k] or "window" in f.items[k])
    rank = {str(old): str(new) for new, old in enumerate(order)} | {"": ""}
    solids = tuple(replace(solid, label=rank[solid.label]) for solid in f.solids)
    items = tuple(f.items[k] for k in order)
    labels = (*(str(k) for k in range(len(items))), "")
    asset = Asset(solids, noun="room", family="rooms", colour=wall, labels=labels)
    return Room(asset, items, lamp, wall, floor)


def _sample_phrase(rng: np.random.Generator, noun: str, word: str = "") -> tuple[str, np.ndarray]:
    word = word or sample_colour(rng)
    return f"{article(word)} {word} {noun}", colour_value(word, rng)


def _shell(f: Furnisher, wall: np.ndarray, floor: np.ndarray) -> None:
    x, h, b = HALF_WIDTH, HEIGHT, Builder(f.rng, wall)
    skirting = b.shade(wall, 0.6)
    b.box((0, 0, -0.05), (x + 0.1, x + 0.1, 0.05), floor)
    b.box((0, 0, h + 0.05), (x + 0.1, x + 0.1, 0.05), (0.95, 0.95, 0.94))
    for side in (-1, 1):
        b.box((side * (x + 0.05), 0, h / 2), (0.05, x + 0.1, h / 2))
        b.box((0, side * (x + 0.05), h / 2), (x + 0.1, 0.05, h / 2))
        b.box((side * x, 0, 0.06), (0.025, x, 0.06), skirting)
        b.box((0, side * x, 0.06), (x, 0.025, 0.06), skirting)
    f.add(b.solids)


def _door(f: Furnisher, colour_word: str = "") -> None:
    span = f.reserve_span(0.95)
    if span is None:
        return
    phrase, colour = _sample_phrase(f.rng, "door", colour_word)
    b = Builder(f.rng, colour)
    b.box((0, 0, 1.0), (0.03, 0.47, 1.02), b.shade(colour, 0.65))
    b.box((0.02, 0, 0.98), (0.03, 0.41, 0.97))
    for z in (0.5, 1.4):
        b.box((0.045, 0, z), (0.015, 0.28, 0.34), b.shade(colour, 0.85))
    b.sphere((0.08, 0.32, 1.0), 0.05, (0.85, 0.7, 0.3))
    f.mount(*span, 0.0, b, phrase)
    wall, at = span  # keep the floor in front of the door free
    front = WALLS[wall] * (HALF_WIDTH - 0.35) + np.abs(WALLS[wall][::-1]) * at
    f.occupied.append((front - 0.45, front + 0.45))


def _window(f: Furnisher, _: str = "") -> None:
    width = 1.1
    span = f.reserve_span(width)
    if span is None:
        return
    b = Builder(f.rng, GLASS)
    b.box((0, 0, 0), (0.02, width / 2, 0.55), FRAME)
    for side in (-1, 1):
        b.box((0.015, side * (width - 0.1) / 4, 0), (0.02, (width - 0.1) / 4 - 0.04, 0.48), GLASS)
    b.box((0.04, 0, -0.58), (0.08, width / 2 + 0.06, 0.035), FRAME)
    f.mount(*span, 1.55, b, "a window")


def _picture(f: Furnisher, _: str = "") -> None:
    span = f.reserve_span(0.8)
    if span is None:
        return
    _, ground = _sample_phrase(f.rng, "")
    b = Builder(f.rng, ground)
    b.box((0, 0, 0), (0.025, 0.4, 0.32), (0.35, 0.22, 0.1))
    b.box((0.01, 0, 0), (0.025, 0.34, 0.26))
    b.cylinder((0.035, f.rng.uniform(-0.15, 0.15), 0.03), 0.14, 0.01, _sample_phrase(f.rng, "")[1], rotate=(0, 90, 0))
    b.box((0.03, 0, -0.19), (0.015, 0.34, 0.07), _sample_phrase(f.rng, "")[1])
    f.mount(*span, 1.6, b, "a picture")


def _ceiling_lamp(f: Furnisher) -> np.ndarray:
    _, colour = _sample_phrase(f.rng, "lamp")
    b, h = Builder(f.rng, colour), HEIGHT
    b.cylinder((0, 0, h - 0.15), 0.02, 0.16, (0.2, 0.2, 0.2))
    if f.rng.random() < 0.5:
        b.sphere((0, 0, h - 0.4), 0.18, (1.0, 0.97, 0.85))
    else:
        b.cylinder((0, 0, h - 0.38), 0.3, 0.12, top=0.4)
        b.sphere((0, 0, h - 0.46), 0.12, (1.0, 0.97, 0.85))
    f.add(b.solids)
    return np.array([0.0, 0.0, h - 0.75])


def _object(f: Furnisher, word: str, corner: bool, colour: str = "") -> bool:
    spec, reach = Spec(word, colour or sample_colour(f.rng)), (FURNITURE | CORNER_OBJECTS)[word]
    return f.place_on_floor(build(spec, f.rng, variation=0), reach, caption(spec), corner)


MOUNTED = {"door": _door, "window": _window, "picture": _picture}
SURFACES, UNPROMPTED = ("room", "wall", "floor"), ("door", "window", "sofa", "table")
"""SURFACES are words of prompts whose colour is that of the walls or the floor. UNPROMPTED are the items of a room
whose prompt names no item."""
ITEM = re.compile(
    rf"\b(two )?(?:({'|'.join(COLOURS)}) )?({'|'.join((*SURFACES, *MOUNTED, *FURNITURE, *CORNER_OBJECTS))})s?\b"
)
