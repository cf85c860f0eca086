"""Functions (recipes) that build the parts of procedural food.

Most of it looks the same from every side and has no front.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import noun

LEAF = (0.20, 0.55, 0.15)
STALK = (0.38, 0.24, 0.10)
CREAM = (0.98, 0.95, 0.86)
DOUGH = (0.85, 0.60, 0.30)


def around(b: Builder, count: int, radius: float):
    """Yield ``count`` evenly spaced points (x, y) of a circle of radius ``radius`` around the z axis.

    The angle of the first point is random, from the generator of the builder ``b``.
    """
    turn = b.between(0, 360)
    for k in range(count):
        a = np.deg2rad(turn + 360 * k / count)
        yield radius * np.cos(a), radius * np.sin(a)


@noun("apple", "food", 0.08, front=False, parts=("leaf",))
def apple(b: Builder) -> None:
    r = b.vary(0.8)
    b.sphere((0, 0, 0), (r, r, 0.88 * r))
    for x, y in around(b, 5, 0.28 * r):
        b.sphere((x, y, 0.42 * r), 0.52 * r)
    b.limb((0, 0, 0.7 * r), (0.08, 0, 1.3 * r), 0.09, STALK, "stalk")
    b.sphere((0.34, 0, 1.22 * r), (0.36, 0.2, 0.1), b.part("leaf", LEAF), "leaf", (0, -25, b.between(0, 360)))


@noun("pear", "food", 0.1, front=False, parts=("leaf",))
def pear(b: Builder) -> None:
    r = b.vary(0.62)
    top = b.vary(0.85)
    b.sphere((0, 0, 0), (r, r, 0.95 * r))
    b.cylinder((0, 0, 0.52 * top), 0.86 * r, 0.3 * top, top=0.5)
    b.sphere((0, 0, 0.85 * top), (0.45 * r, 0.45 * r, 0.42 * r))
    b.limb((0, 0, top), (0.06, 0, top + 0.42), 0.08, STALK, "stalk")
    b.sphere((0.28, 0, top + 0.3), (0.34, 0.18, 0.09), b.part("leaf", LEAF), "leaf", (0, -25, 0))


@noun("banana", "food", 0.15, front=False, parts=("tips",))
def banana(b: Builder) -> None:
    bend, r = b.between(70, 100), b.vary(0.26)
    tips = b.part("tips", STALK)
    angles = np.deg2rad(np.linspace(-bend, bend, 8))
    points = [(0.0, float(np.sin(a)), -float(np.cos(a))) for a in angles]
    width = [0.45, 0.75, 0.95, 1.0, 1.0, 0.95, 0.75, 0.45]
    for k in range(7):
        b.limb(points[k], points[k + 1], r * width[k], top=width[k + 1] / width[k])
    for end, inner, w in ((points[0], points[1], width[0]), (points[-1], points[-2], width[-1])):
        out = np.asarray(end) + 0.22 * (np.asarray(end) - np.asarray(inner))
        b.limb(end, out, 0.22 * (w + 0.3), tips, "tips", top=0.7)


@noun("carrot", "food", 0.2, front=False, parts=("leaves",))
def carrot(b: Builder) -> None:
    r, half = b.vary(0.42), b.vary(0.85)
    b.cylinder((0, 0, -0.1), r, half, rotate=(180, 0, 0), top=0.12)
    b.sphere((0, 0, half - 0.1), (r, r, 0.5 * r))
    leaves = b.part("leaves", LEAF)
    for x, y in around(b, 5, 0.16):
        b.limb((x, y, half), (3.0 * x, 3.0 * y, half + 0.62), 0.1, leaves, "leaves", top=0.8)
    b.limb((0, 0, half), (0, 0, half + 0.75), 0.12, leaves, "leaves", top=0.8)


@noun("pumpkin", "food", 0.3, front=True, parts=("eyes", "stalk"))
def pumpkin(b: Builder) -> None:
    r, flat = b.vary(0.62), b.vary(0.8)
    for x, y in around(b, 8, 0.42 * r):
        b.sphere((x, y, 0), (0.62 * r, 0.62 * r, flat * r), b.shade(b.colour, 0.97))
    b.limb((0, 0, 0.7 * flat * r), (0.12, 0, 1.35 * flat * r), 0.13, b.part("stalk", (0.25, 0.45, 0.15)), "stalk")
    eyes = b.part("eyes", (0.06, 0.05, 0.05))
    for side in (-1, 1):
        # a thin prism facing outwards looks like a triangle
        at = (0.9 * r, side * 0.42 * r, 0.26 * r)
        b.prism(at, (0.24 * r, 0.12 * r, 0.2 * r), eyes, "eyes", (0, 0, 90 + side * 24))
    for k in (-2, -1, 0, 1, 2):
        at = (0.97 * r - 0.045 * r * k * k, 0.2 * k * r, -0.34 * r + 0.03 * r * k * k)
        b.box(at, (0.1 * r, 0.12 * r, 0.1 * r), eyes, "eyes", (0, 0, 15 * k))


@noun("cake", "food", 0.15, front=False, parts=("candles", "icing"))
def cake(b: Builder) -> None:
    layers = b.pick(2, 3)
    icing = b.part("icing", CREAM)
    z, r = 0.0, b.vary(0.85)
    for _ in range(layers):
        half = b.vary(0.24)
        b.cylinder((0, 0, z + half), r, half)
        b.cylinder((0, 0, z + 2 * half), 1.04 * r, 0.07, icing, "icing")
        z, r = z + 2 * half + 0.05, r * b.vary(0.68, 0.05)
    candles = b.part("candles", b.pick((0.9, 0.3, 0.3), (0.95, 0.9, 0.4), (0.4, 0.5, 0.95)))
    for x, y in around(b, 4, 0.95 * r):
        b.cylinder((x, y, z + 0.2), 0.09, 0.24, candles, "candles")


@noun("cupcake", "food", 0.08, front=False, parts=("cherry", "cup"))
def cupcake(b: Builder) -> None:
    r = b.vary(0.6)
    b.cylinder((0, 0, -0.35), 1.0 * r, 0.42, b.part("cup", DOUGH), "cup", (180, 0, 0), 0.72)
    for k, w in enumerate((1.12, 0.86, 0.56)):
        b.sphere((0, 0, 0.16 + 0.3 * k), (w * r, w * r, 0.26))
    b.sphere((0, 0, 1.08), 0.22, b.part("cherry", (0.85, 0.08, 0.12)), "cherry")


@noun("hamburger", "food", 0.08, front=False, parts=("cheese", "salad"))
def hamburger(b: Builder) -> None:
    r = b.vary(0.8)
    b.cylinder((0, 0, -0.42), r, 0.13)
    b.cylinder((0, 0, -0.19), 1.1 * r, 0.06, b.part("salad", (0.35, 0.75, 0.2)), "salad")
    b.cylinder((0, 0, -0.02), 1.02 * r, 0.12, (0.36, 0.18, 0.08), "meat")
    at = (0, 0, 0.13)
    b.box(at, (0.86 * r, 0.86 * r, 0.045), b.part("cheese", (1.0, 0.78, 0.15)), "cheese", (0, 0, b.between(0, 90)))
    b.dome((0, 0, 0.17), (r, r, b.vary(0.62)))
    for x, y in around(b, 7, 0.45 * r):
        b.sphere((x, y, 0.17 + 0.54), (0.07, 0.05, 0.04), CREAM, "seeds")


@noun("donut", "food", 0.04, front=False, parts=("icing",))
def donut(b: Builder) -> None:
    tube = b.vary(0.34)
    tilt = (b.between(25, 50), 0, b.between(0, 360))
    icing = b.part("icing", b.shade(b.colour, b.pick(0.6, 2.2)))
    b.torus((0, 0, 0), 0.95, tube, rotate=tilt)
    lean, turn = np.deg2rad(tilt[0]), np.deg2rad(tilt[2])
    up = np.array([np.sin(turn) * np.sin(lean), -np.cos(turn) * np.sin(lean), np.cos(lean)])
    b.torus(up * 0.09, 0.94, 0.93 * tube, icing, "icing", tilt)


@noun("ice cream", "food", 0.18, front=False, parts=("cone", "cherry"))
def ice_cream(b: Builder) -> None:
    scoops, r = b.pick(1, 2, 3), b.vary(0.5)
    half = b.vary(0.62)
    b.cylinder((0, 0, -half), 0.9 * r, half, b.part("cone", DOUGH), "cone", (180, 0, 0), 0.08)
    for k in range(scoops):
        b.sphere((0, 0, 0.2 + 0.66 * r * k * 1.3), r * (1 - 0.1 * k), b.shade(b.colour, (1.0, 1.25, 0.85)[k]))
    top = 0.2 + 0.66 * r * (scoops - 1) * 1.3 + r * (1 - 0.1 * (scoops - 1))
    if "cherry" in b.named_parts or b.chance(0.3):
        b.sphere((0, 0, top + 0.08), 0.2, b.part("cherry", (0.85, 0.08, 0.12)), "cherry")
