"""Toybox cars and chairs with marks on four sides, which are sampled independently.

If one view determined the whole object, a novel-view sampler would be consistent without effort. So each side has a
panel with a symbol, and often an attached solid. Their shapes, colours and positions are random and independent of the
other sides. Panels are large enough for small models. A frame in the body's colour hides a panel from behind.
"""

from collections.abc import Sequence

import numpy as np

from threedgen.toybox.world import nouns  # noqa: F401  (registers the recipes)
from threedgen.toybox.world.builder import Builder, bounds
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, caption, colour_value, sample_colour
from threedgen.toybox.world.primitives import BOX, Asset, Primitive, inside

FAMILIES = {"cars": "car", "chairs": "chair"}
"""Dict from SRN category to toybox noun."""
SIDES = {
    "front": ((1.0, 0.0), (0.0, 90.0, 0.0)),
    "left": ((0.0, 1.0), (-90.0, 0.0, 0.0)),
    "back": ((-1.0, 0.0), (0.0, -90.0, 0.0)),
    "right": ((0.0, -1.0), (90.0, 0.0, 0.0)),
}
"""Dict from side to (outward direction (x, y), rotation that turns the z axis to it, degrees about x, y and z)."""
SYMBOLS = ("disc", "ring", "cone", "bar", "cross")
ATTACHMENTS = ("ball", "horn", "rod", "block")
ATTACHMENT_PROBABILITY = 0.7
PANEL_SIZE = (0.65, 0.85)
"""Range of the width and height of a panel, relative to the width and height of the side."""
PANEL_HALF_THICKNESS = 0.02
FRAME_WIDTH = 0.05
"""Width of the frame around a panel, in the body's colour."""


def make_marked_object(family: str, rng: np.random.Generator, index: int = -1) -> Asset:
    """Generate a car or a chair with marks on its four sides. `family` is a key of `FAMILIES`, else raises KeyError."""
    noun = NOUNS[FAMILIES[family]]
    main = sample_colour(rng)
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
    """Add a box under the seat of a chair. It hides marks on the far side that would be visible between the legs."""
    boards = [solid for solid in b.solids if solid.kind == BOX and solid.label == "body"]
    seat = max(boards, key=lambda board: board.matrix[0, 0] * board.matrix[1, 1])
    wide, top = seat.matrix[0, 0] * 0.94, seat.centre[2]
    b.box((0, 0, 0.55 * top), (wide, wide, 0.45 * top), b.shade(b.colour, 0.85), "chest")


def surface(solids: Sequence[Primitive], box: np.ndarray, side: str, across: float, up: float) -> np.ndarray | None:
    """Cast a ray from a side of the object towards its middle plane. Return the first hit (3,), or None.

    Args:
        box: (2, 3), lower and upper corner of the object's bounding box.
        side: key of `SIDES`.
        across, up: start of the ray on the side, in [-1, 1]; 0 is the middle of the side.
    """
    centre, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    normal = np.array([*SIDES[side][0], 0.0])
    tangent = np.array([-normal[1], normal[0], 0.0])
    start = centre + (tangent * across + np.array([0, 0, up]) + 1.02 * normal) * half
    line = start - np.linspace(0, 1.0, 120)[:, None] * (np.abs(normal) @ half) * normal
    hits = np.flatnonzero(inside(solids, line))
    return line[hits[0]] if len(hits) else None


def _mark(
    b: Builder, rng: np.random.Generator, bare: Sequence[Primitive], box: np.ndarray, side: str, names: list[str]
) -> None:
    """Add a panel with a symbol, and with ATTACHMENT_PROBABILITY an attachment, to a side of the `bare` object. `box`
    (2, 3) has the corners of its bounding box, and `names` the colours to choose from."""
    flat, turn = SIDES[side]
    normal = np.array([*flat, 0.0])

    def sample_point(width: float, low: float, high: float) -> np.ndarray:
        """Return a random point (3,) on the side of the bare object."""
        while True:
            point = surface(bare, box, side, rng.uniform(-width, width), rng.uniform(low, high))
            if point is not None:
                return point

    panel, symbol, attachment = (colour_value(names[int(k)], rng) for k in rng.permutation(len(names))[:3])
    half = (box[1] - box[0]) / 2
    up, across = half[2], half @ np.array([abs(flat[1]), abs(flat[0]), 0.0])
    # before the rotation, the panel's first axis points up (front and back) or across (left and right)
    wide, high = across * rng.uniform(*PANEL_SIZE), up * rng.uniform(*PANEL_SIZE)
    at = sample_point(0.1, -0.2, 0.0)
    size, thick = (high, wide) if flat[0] else (wide, high), PANEL_HALF_THICKNESS
    frame = (size[0] + FRAME_WIDTH, size[1] + FRAME_WIDTH, 2 * thick)
    b.add(BOX, at - 1.1 * thick * normal, frame, None, f"{side} frame", turn)  # only the panel's face stays visible
    b.add(BOX, at, (*size, thick), panel, f"{side} panel", turn)
    _symbol(b, b.pick(*SYMBOLS), at + normal * thick, 0.6 * min(wide, high), symbol, f"{side} symbol", turn)
    if rng.random() < ATTACHMENT_PROBABILITY:
        point, width = sample_point(0.8, -0.55, 0.25), rng.uniform(0.07, 0.11)
        _attach(b, b.pick(*ATTACHMENTS), point, normal, width, attachment, f"{side} piece", turn)


def _symbol(b: Builder, kind: str, at: np.ndarray, size: float, colour: np.ndarray, label: str, turn) -> None:
    """Add a flat solid of half width `size` to a panel. `turn`: rotation of the side in degrees."""
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
    """Add a solid of half width `size` that extends from the point `at` (3,) along the unit vector `normal` (3,)."""
    if kind == "ball":
        b.sphere(at + normal * size * 0.7, size, colour, label)
    elif kind == "horn":
        b.cone(at + normal * 1.6 * size, size, 1.6 * size, colour, label, turn)
    elif kind == "rod":
        b.limb(at, at + normal * 3 * size, 0.5 * size, colour, label)
    else:
        b.box(at + normal * size * 0.7, size, colour, label)
