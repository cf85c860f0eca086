"""Functions (recipes) that build the parts of procedural plants.

All look the same from every side, except the flower, whose blossom faces +x.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import noun

from .buildings import WOOD, contrast

LEAF = (0.16, 0.50, 0.14)
CLAY = (0.72, 0.36, 0.20)
SOIL = (0.20, 0.13, 0.08)


def ring(count: int, radius: float, start: float = 0.0):
    """Yield (x, y, azimuth in degrees) of ``count`` evenly spaced points of a circle of radius ``radius``.

    The centre of the circle is on the z axis. ``start`` is the azimuth of the first point in radians; 0 is +x.
    """
    for k in range(count):
        a = start + 2 * np.pi * k / count
        yield radius * np.cos(a), radius * np.sin(a), float(np.rad2deg(a))


def pot(b: Builder, radius: float, height: float) -> None:
    colour = b.part("pot", CLAY)
    b.cylinder((0, 0, height * 0.4), radius * 0.72, height * 0.4, colour, "pot", top=1.3)
    b.cylinder((0, 0, height * 0.87), radius, height * 0.14, colour, "pot")
    b.cylinder((0, 0, height * 0.9), radius * 0.85, height * 0.13, SOIL, "soil")


def scatter(b: Builder, count: int, at, size, spot: float, colour, label: str) -> None:
    start = b.between(0, 360)
    for k in range(count):
        z = -0.5 + 1.4 * (k + 0.5) / count
        a = np.deg2rad(start + 137.5 * k)
        n = np.array((np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z))
        b.sphere(np.asarray(at) + n * size, spot, colour, label)


@noun("tree", "plants", 8, front=False, parts=("trunk", "apples"))
def tree(b: Builder) -> None:
    trunk, height, crown = b.vary(0.14, 0.12), b.vary(0.58), b.vary(0.46)
    z = height + crown * 0.75
    b.limb((0, 0, 0.05), (0, 0, z), trunk * 1.25, b.part("trunk", WOOD), "trunk", top=0.75, caps=False)
    tall = b.between(0.85, 1.15)
    kind = b.pick("ball", "cloud", "cloud")
    low = b.shade(b.colour, 0.88)
    if kind == "ball":
        b.sphere((0, 0, z), (crown * 1.12, crown * 1.12, crown * 1.12 * tall))
        b.sphere((0, 0, z - crown * 0.35), crown * 0.98, low)
    else:
        b.sphere((0, 0, z + crown * 0.35), (crown * 0.85, crown * 0.85, crown * 0.85 * tall))
        for k, (x, y, _) in enumerate(ring(b.pick(4, 5), crown * 0.62, b.between(0, 6))):
            b.sphere((x, y, z - crown * b.between(0.1, 0.3)), crown * b.vary(0.62), low if k % 2 else None)
    if "apples" in b.named_parts:
        scatter(b, 16, (0, 0, z), np.array((1.08, 1.08, 1.08 * tall)) * crown, 0.1, b.part("apples"), "apples")


@noun("pine", "plants", 10, front=False, parts=("trunk", "balls", "star"))
def pine(b: Builder) -> None:
    count, radius, foot = b.pick(3, 3, 4), b.vary(0.52), b.vary(0.4)
    b.cylinder((0, 0, foot / 2 + 0.05), 0.19, foot / 2 + 0.08, b.part("trunk", WOOD), "trunk", top=0.85)
    step, z = b.vary(1.05) / count, foot
    for k in range(count):
        r, rise = radius * (1 - 0.62 * k / (count - 1)), step * 0.8
        b.cone((0, 0, z + rise), r, rise, b.shade(b.colour, 1 - 0.08 * (k % 2)))
        if "balls" in b.named_parts:
            for x, y, _ in ring(6 - k, r * 0.93, 0.5 * k):
                b.sphere((x, y, z + 0.06), 0.095, b.part("balls"), "balls")
        z += step
    top = z - step + 2 * step * 0.8
    if "star" in b.named_parts or b.chance(0.1):
        star(b, (0, 0, top + 0.1), 0.27)


def star(b: Builder, at, radius: float) -> None:
    colour = b.part("star", (1.0, 0.85, 0.2))
    for turn in (0, 90):
        for flip, shift in ((0, 0.25), (180, -0.25)):
            x, y, z = at
            size = (radius * 0.87, 0.06, radius * 0.75)
            b.prism((x, y, z + shift * radius), size, colour, "star", (flip, 0, turn))


@noun("palm", "plants", 8, front=False, parts=("trunk",))
def palm(b: Builder) -> None:
    height, lean, count = b.vary(0.9), b.between(0.05, 0.3), b.pick(6, 7, 8)
    toward = b.between(0, 2 * np.pi)
    trunk = b.part("trunk", (0.55, 0.38, 0.2))
    points = [
        np.array((lean * t * t * np.cos(toward), lean * t * t * np.sin(toward), height * t))
        for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    for k, (low, high) in enumerate(zip(points, points[1:], strict=False)):
        b.limb(low, high, 0.16 - 0.015 * k, b.shade(trunk, 1 - 0.12 * (k % 2)), "trunk", top=0.8, caps=False)
    x0, y0, z0 = points[-1]
    for k, (x, y, a) in enumerate(ring(count, 1.0, b.between(0, 6))):
        rise = b.between(10, 25)
        colour = b.shade(b.colour, 1 - 0.18 * (k % 2))
        # a leaf: a rising blade and a hanging one at its end
        b.sphere((x0 + 0.24 * x, y0 + 0.24 * y, z0 + 0.1), (0.3, 0.17, 0.08), colour, "body", (0, -rise, a))
        b.sphere((x0 + 0.54 * x, y0 + 0.54 * y, z0 + 0.01), (0.3, 0.15, 0.075), colour, "body", (0, 48, a))
    b.sphere((x0, y0, z0 + 0.03), 0.13)
    if "coconuts" in b.named_parts or b.chance(0.4):
        for x, y, _ in ring(4, 0.17):
            b.sphere((x0 + x, y0 + y, z0 - 0.12), 0.125, b.part("coconuts", (0.36, 0.22, 0.1)), "coconuts")


@noun("cactus", "plants", 1, front=False, parts=("pot", "flowers"))
def cactus(b: Builder) -> None:
    thick, height = b.vary(0.2), b.vary(1.0)
    potted = "pot" in b.named_parts or ("flowers" not in b.named_parts and b.chance(0.3))
    foot = 0.0
    if potted:
        foot = 0.36
        pot(b, 0.36, 0.4)
    b.limb((0, 0, foot), (0, 0, foot + height), thick)
    tops = [(0.0, 0.0, foot + height + thick)]
    turn = b.between(0, 2 * np.pi)
    for k in range(b.pick(2, 2, 3)):
        a = turn + (np.pi * k if k < 2 else np.pi / 2)
        reach, low, rise = thick * 2.1, foot + height * b.between(0.3, 0.6), b.between(0.22, 0.4)
        elbow = (reach * np.cos(a), reach * np.sin(a), low)
        end = (elbow[0], elbow[1], low + rise)
        b.limb((0, 0, low - 0.03), elbow, thick * 0.62)
        b.limb(elbow, end, thick * 0.62)
        tops.append((end[0], end[1], end[2] + thick * 0.55))
    for k, (x, y, _) in enumerate(ring(4, thick * 0.86, 0.4)):  # ribs
        b.limb((x, y, foot + 0.05), (x, y, foot + height), thick * 0.22, b.shade(b.colour, 0.72), "body", caps=k < 0)
    if "flowers" in b.named_parts or (not potted and b.chance(0.25)):
        for at in tops:
            b.sphere(at, (0.15, 0.15, 0.11), b.part("flowers", (0.95, 0.4, 0.65)), "flowers")


@noun("mushroom", "plants", 0.1, front=False, parts=("dots", "stem"))
def mushroom(b: Builder) -> None:
    cap, height, rise = b.vary(0.62), b.vary(0.6), b.vary(0.5)
    stem = b.part("stem", (0.94, 0.9, 0.8))
    b.cylinder((0, 0, height / 2), b.vary(0.26, 0.12), height / 2 + 0.02, stem, "stem", top=0.8)
    b.dome((0, 0, height - 0.03), (cap, cap, rise))
    b.torus((0, 0, height - 0.02), cap, 0.07)
    if "dots" in b.named_parts or b.chance(0.6):
        dots = b.part("dots", contrast(b.colour, (0.98, 0.98, 0.95), (0.55, 0.12, 0.1)))
        b.sphere((0, 0, height - 0.03 + rise * 0.98), (0.15, 0.15, 0.05), dots, "dots")
        for count, tilt, start in ((5, 42, b.between(0, 1)), (7, 72, b.between(0, 1))):
            t = np.deg2rad(tilt)
            for x, y, a in ring(count, cap * np.sin(t), start):
                # flat dots, tilted like the surface of the cap
                slope = float(np.rad2deg(np.arctan2(np.sin(t) / cap, np.cos(t) / rise)))
                b.sphere((x, y, height - 0.03 + rise * np.cos(t)), (0.12, 0.12, 0.045), dots, "dots", (0, slope, a))


@noun("flower", "plants", 0.4, parts=("centre", "pot"))
def flower(b: Builder) -> None:
    count, reach, tilt = b.pick(6, 7, 8), b.vary(0.3), b.between(8, 25)
    foot = 0.0
    if "pot" in b.named_parts or b.chance(0.3):
        foot = 0.3
        pot(b, 0.34, 0.36)
    z = foot + b.vary(0.75)
    b.limb((-0.06, 0, foot), (-0.08, 0, z), 0.06, LEAF, "stem")
    b.pair((-0.06, 0.2, foot + 0.2), (0.1, 0.24, 0.05), LEAF, "leaves", (35, 0, 0))
    t = np.deg2rad(tilt)
    right, up, out = (np.array((0, 1.0, 0)), np.array((-np.sin(t), 0, np.cos(t))), np.array((np.cos(t), 0, np.sin(t))))
    wide = min(0.24, 3.3 * reach / count)
    for x, y, a in ring(count, reach, b.between(0, 1)):
        at = np.array((0, 0, z)) + x * right + y * up
        b.sphere(at, (0.07, reach * 0.85, wide), b.shade(b.colour, 1.0), "body", (a, -tilt, 0))
    centre = b.part("centre", contrast(b.colour, (0.98, 0.8, 0.15), (0.4, 0.22, 0.08)))
    b.sphere(np.array((0, 0, z)) + 0.05 * out, (0.12, 0.24, 0.24), centre, "centre", (0, -tilt, 0))
    b.cone(np.array((0, 0, z)) - 0.1 * out, 0.15, 0.07, LEAF, "stem", (0, -90 - tilt, 0))
