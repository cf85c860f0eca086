"""Toybox cars and chairs whose four sides tell nothing of each other.

An object that can be guessed from one view leaves a novel-view sampler nothing to keep consistent. So each side of
these is covered by a panel with a symbol, and often something sticks out, all drawn by themselves: shapes, colours and
places. Who sees the left side knows nothing of the right one, but whoever has drawn it must draw it again. Panels are
large, so that it matters and small models can learn it; a frame in the body's colour hides each from behind and beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from threedgen.data.toybox import nouns  # noqa: F401  (registers the recipes)
from threedgen.data.toybox.builder import Builder, bounds
from threedgen.data.toybox.grammar import COLOURS, NOUNS, Spec, caption, colour_value, draw_colour
from threedgen.data.toybox.primitives import BOX, Asset, Primitive, inside

FAMILIES = {"cars": "car", "chairs": "chair"}
"""The archives' categories and the nouns that stand for them."""
SIDES = {
    "front": ((1.0, 0.0), (0.0, 90.0, 0.0)),
    "left": ((0.0, 1.0), (-90.0, 0.0, 0.0)),
    "back": ((-1.0, 0.0), (0.0, -90.0, 0.0)),
    "right": ((0.0, -1.0), (90.0, 0.0, 0.0)),
}
"""Side -> its outward direction in the plane, and the rotation (degrees) that turns the z axis there."""
SYMBOLS = ("disc", "ring", "cone", "bar", "cross")
ATTACHMENTS = ("ball", "horn", "rod", "block")
ATTACHED = 0.7
"""How often something sticks out of a side."""
PANEL = (0.65, 0.85)
"""Range of a panel's width and height, of the side's."""
THICK = 0.02
"""Half the thickness of a panel."""
RIM = 0.05
"""Width of the frame around a panel, in the body's colour."""


def marked(family: str, rng: np.random.Generator, index: int = -1) -> Asset:
    """A car or a chair with marks on its sides; everything is drawn from ``rng``. Raises KeyError."""
    noun = NOUNS[FAMILIES[family]]
    main = draw_colour(rng)
    builder = Builder(rng, colour_value(main, rng))
    noun.recipe(builder)
    if family == "chairs":
        _chest(builder)
    bare = tuple(builder.solids)  # so that no side depends on another's marks
    box = bounds(bare)
    for side in SIDES:
        _mark(builder, rng, bare, box, side, [name for name in COLOURS if name != main])
    solids = builder.finish(rng.uniform(0.9, 1.0))
    spec = Spec(noun.word, main)
    return Asset(solids, caption(spec), family=noun.family, front=noun.front, index=index, **vars(spec))


def _chest(b: Builder) -> None:
    """A box under the seat: without it, one would see the marks of a side from behind, between the legs."""
    boards = [solid for solid in b.solids if solid.kind == BOX and solid.label == "body"]
    seat = max(boards, key=lambda board: board.matrix[0, 0] * board.matrix[1, 1])
    wide, top = seat.matrix[0, 0] * 0.94, seat.centre[2]
    b.box((0, 0, 0.55 * top), (wide, wide, 0.45 * top), b.shade(b.colour, 0.85), "chest")


def surface(solids: Sequence[Primitive], box: np.ndarray, side: str, across: float, up: float) -> np.ndarray | None:
    """The first point (3,) of the solids in ``box`` (2, 3) that is met coming from a side, towards the middle plane.

    ``across``, ``up``: where, in [-1, 1] of the half extents; None if there is nothing on this half.
    """
    middle, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    normal = np.array([*SIDES[side][0], 0.0])
    tangent = np.array([-normal[1], normal[0], 0.0])
    start = middle + (tangent * across + np.array([0, 0, up]) + 1.02 * normal) * half
    line = start - np.linspace(0, 1.0, 120)[:, None] * (np.abs(normal) @ half) * normal
    hits = np.flatnonzero(inside(solids, line))
    return line[hits[0]] if len(hits) else None


def _mark(
    b: Builder, rng: np.random.Generator, bare: Sequence[Primitive], box: np.ndarray, side: str, names: list[str]
) -> None:
    """A panel with a symbol on a side of the ``bare`` object, and perhaps something that sticks out."""
    flat, turn = SIDES[side]
    normal = np.array([*flat, 0.0])

    def place(width: float, low: float, high: float) -> np.ndarray:
        """A point of the bare side, drawn until there is one."""
        while True:
            found = surface(bare, box, side, rng.uniform(-width, width), rng.uniform(low, high))
            if found is not None:
                return found

    panel, symbol, attached = (colour_value(names[int(k)], rng) for k in rng.permutation(len(names))[:3])
    half = (box[1] - box[0]) / 2
    up, across = half[2], half @ np.array([abs(flat[1]), abs(flat[0]), 0.0])
    # before the turn its first axis points up (front and back) or across (left and right)
    wide, high = across * rng.uniform(*PANEL), up * rng.uniform(*PANEL)
    at = place(0.1, -0.2, 0.0)
    size = (high, wide) if flat[0] else (wide, high)
    frame = (size[0] + RIM, size[1] + RIM, 2 * THICK)
    b.add(BOX, at - 1.1 * THICK * normal, frame, None, f"{side} frame", turn)  # leaves only the panel's face to be seen
    b.add(BOX, at, (*size, THICK), panel, f"{side} panel", turn)
    _symbol(b, b.pick(*SYMBOLS), at + normal * THICK, 0.6 * min(wide, high), symbol, f"{side} symbol", turn)
    if rng.random() < ATTACHED:
        point, stout = place(0.8, -0.55, 0.25), rng.uniform(0.07, 0.11)
        _attach(b, b.pick(*ATTACHMENTS), point, normal, stout, attached, f"{side} piece", turn)


def _symbol(b: Builder, kind: str, at: np.ndarray, size: float, colour: np.ndarray, label: str, turn) -> None:
    """A flat shape of half width ``size`` on a panel, seen from outside."""
    if kind == "disc":
        b.cylinder(at, size, 0.02, colour, label, turn)
    elif kind == "ring":
        b.torus(at, size, 0.3 * size, colour, label, turn)
    elif kind == "cone":
        b.cone(at, size, 0.05, colour, label, turn)
    else:
        b.box(at, (size, 0.3 * size, 0.02), colour, label, turn)
        if kind == "cross":
            b.box(at, (0.3 * size, size, 0.02), colour, label, turn)


def _attach(
    b: Builder, kind: str, at: np.ndarray, normal: np.ndarray, size: float, colour: np.ndarray, label: str, turn
) -> None:
    """A body of half width ``size`` that stands out from ``at`` along ``normal``."""
    if kind == "ball":
        b.sphere(at + normal * size * 0.7, size, colour, label)
    elif kind == "horn":
        b.cone(at + normal * 1.6 * size, size, 1.6 * size, colour, label, turn)
    elif kind == "rod":
        b.limb(at, at + normal * 3 * size, 0.5 * size, colour, label)
    else:
        b.box(at + normal * size * 0.7, size, colour, label)
