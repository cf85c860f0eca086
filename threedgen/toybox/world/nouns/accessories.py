"""Functions (recipes) that build the parts of procedural accessories, such as hats, on the object that wears them.

Place and size of an accessory depend on anchors: named points, each with a radius, that the recipe of the wearer sets.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import accessory
from threedgen.toybox.world.primitives import BOX, FRUSTUM, TORUS

GOLD = (0.93, 0.75, 0.2)


def upright(b: Builder) -> bool:
    # on upright wearers, the anchor "back" is behind the anchor "waist"; on four-legged ones, it is above "waist"
    away = b.anchors["back"][0] - b.anchors["waist"][0]
    return bool(abs(away[0]) > away[2])


@accessory("hat")
def hat(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["head_top"]
    band = b.shade(colour, 0.5 if colour.sum() > 0.5 else 3.0)
    kind = b.pick("top hat", "bowler", "straw hat")
    brim = {"top hat": 1.4, "bowler": 1.45, "straw hat": 1.75}[kind] * r
    b.cylinder(p + (0, 0, 0.05 * r), brim, 0.09 * r, colour, "hat")
    b.cylinder(p + (0, 0, 0.27 * r), 0.93 * r, 0.15 * r, band, "hat")
    if kind == "top hat":
        tall = b.vary(0.55) * r
        b.cylinder(p + (0, 0, 0.1 * r + tall), 0.88 * r, tall, colour, "hat", top=1.06)
    else:
        b.dome(p + (0, 0, 0.38 * r), (0.9 * r, 0.9 * r, b.vary(0.8) * r), colour, "hat")


@accessory("crown")
def crown(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["head_top"]
    b.cylinder(p + (0, 0, 0.15 * r), 0.9 * r, 0.3 * r, colour, "crown", top=1.15)
    points = b.pick(5, 6, 7)
    for k in range(points):
        a = 2 * np.pi * k / points
        out = np.array([np.cos(a), np.sin(a), 0]) * 0.87 * r
        b.cone(p + out + (0, 0, 0.8 * r), 0.34 * r, 0.42 * r, colour, "crown")


@accessory("helmet")
def helmet(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["head"]
    p = p + (-0.02 * r, 0, 0.18 * r)
    tilt = (0, -14, 0)
    b.dome(p, 1.24 * r, colour, "helmet", tilt)
    b.torus(p, 1.36 * r, 0.14 * r, b.shade(colour, 0.75), "helmet", tilt)
    b.box(p + (-0.28 * r, 0, 1.12 * r), (0.6 * r, 0.13 * r, 0.2 * r), b.shade(colour, 1.8), "helmet", tilt)
    b.sphere(p + (1.2 * r, 0, 0.36 * r), (0.5 * r, 0.75 * r, 0.1 * r), colour, "helmet", (0, -4, 0))


@accessory("headphones")
def headphones(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["head"]
    b.torus(p, 1.3 * r, 0.15 * r, colour, "headphones", (0, 90, 0))
    for side in (-1, 1):
        b.cylinder(p + (0, side * 1.12 * r, 0), 0.56 * r, 0.2 * r, colour, "headphones", (90, 0, 0))
        b.cylinder(p + (0, side * 1.34 * r, 0), 0.36 * r, 0.06 * r, b.shade(colour, 0.5), "headphones", (90, 0, 0))


@accessory("scarf")
def scarf(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["neck"]
    tilt = 0 if upright(b) else 25
    b.torus(p, 1.5 * r, 0.4 * r, colour, "scarf", (0, tilt, 0))
    drop = b.vary(1.45) * r
    for sign in (1, -1):
        top = p + (sign * 1.15 * r, sign * 0.4 * r, -0.05 * r if tilt == 0 else -sign * 0.35 * r)
        if sign == 1 or tilt == 0:
            end = top + (sign * 0.42 * r, sign * 0.12 * r, -drop)
        else:
            end = top + (-drop, -0.45 * r, 0.1 * r)  # on four-legged animals this end lies on the back
        b.limb(top, end, 0.3 * r, colour, "scarf", caps=False)
        b.sphere(end, 0.33 * r, b.shade(colour, 0.6), "scarf")


@accessory("glasses")
def glasses(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["eyes"]
    b.pair(p + (0.06 * r, 0.45 * r, 0), 0.44 * r, colour, "glasses", (0, 90, 0), TORUS, 0.11 * r / (0.44 * r))
    hinge, tip = p + (0, 0.86 * r, 0.05 * r), p + (-1.45 * r, 1.04 * r, 0.05 * r)
    b.limbs(hinge, tip, 0.12 * r, colour, "glasses", caps=False)
    b.box(p + (0.1 * r, 0, 0.1 * r), (0.09 * r, 0.14 * r, 0.09 * r), colour, "glasses")


@accessory("backpack")
def backpack(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["back"]
    dark = b.shade(colour, 0.6)
    if upright(b):
        middle = b.anchors["waist"][0]
        b.box(p + (-0.32 * r, 0, -0.1 * r), (0.4 * r, 0.72 * r, 0.8 * r), colour, "backpack")
        b.sphere(p + (-0.32 * r, 0, 0.7 * r), (0.42 * r, 0.73 * r, 0.35 * r), colour, "backpack")
        b.box(p + (-0.78 * r, 0, -0.4 * r), (0.16 * r, 0.5 * r, 0.35 * r), dark, "backpack")
        for side in (-1, 1):  # loops through the shoulders
            b.torus((middle[0], side * 0.58 * r, p[2]), 1.05 * r, 0.15 * r, colour, "backpack", (90, 0, 0))
        return
    b.box(p + (0, 0, 0.35 * r), (0.75 * r, 0.62 * r, 0.45 * r), colour, "backpack")
    b.sphere(p + (0, 0, 0.8 * r), (0.76 * r, 0.63 * r, 0.25 * r), dark, "backpack")
    b.pair(p + (0, 0.72 * r, 0.25 * r), (0.45 * r, 0.14 * r, 0.28 * r), dark, "backpack", kind=BOX)
    b.torus(p + (0, 0, -r), 1.14 * r, 0.13 * r, colour, "backpack", (0, 90, 0))


@accessory("cape")
def cape(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["back"]
    neck, around = b.anchors["neck"]
    b.torus(neck, 1.35 * around, 0.27 * around, colour, "cape", (0, 0 if upright(b) else 25, 0))
    if upright(b):
        top, low = neck[2], max(p[2] - 2.6 * r, 0.12)
        high, lean = (top - low) / 2, 9
        x = min(neck[0] - around, p[0]) - 0.12 * r
        size = (0.2 * r, b.vary(1.6) * r, high)
        b.add(FRUSTUM, (x - 0.16 * high, 0, low + high), size, colour, "cape", (0, lean, 0), 0.5)
        b.sphere(neck + (1.25 * around, 0, -0.1 * around), 0.32 * around, GOLD, "cape")
        return
    reach = (neck[0] - p[0]) * 0.62 + 0.3 * r
    centre = ((neck[0] + p[0]) / 2 - 0.75 * r, 0, p[2] - 1.05 * r)
    b.dome(centre, (reach + 0.75 * r, 1.2 * r, 1.2 * r), colour, "cape")


@accessory("bow")
def bow(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["neck"]
    q = p + (1.35 * r, 0, -0.1 * r)
    b.torus(p, 1.28 * r, 0.2 * r, b.shade(colour, 0.85), "bow", (0, 0 if upright(b) else 25, 0))
    b.pair(q + (0, 0.55 * r, 0), (0.3 * r, 0.62 * r, 0.55 * r), colour, "bow", (90, 0, 0), FRUSTUM, 0.15)
    b.sphere(q, 0.32 * r, b.shade(colour, 0.7), "bow")


@accessory("belt")
def belt(b: Builder, colour: np.ndarray) -> None:
    p, r = b.anchors["waist"]
    b.cylinder(p, 1.07 * r, 0.2 * r, colour, "belt")
    b.box(p + (1.05 * r, 0, 0), (0.08 * r, 0.3 * r, 0.26 * r), GOLD, "belt")
    b.box(p + (1.08 * r, 0, 0), (0.08 * r, 0.16 * r, 0.12 * r), b.shade(colour, 0.6), "belt")
