"""Functions (recipes) that build the parts of procedural buildings.

Their doors are in front (+x), and the ground is at z = 0.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder, Colour
from threedgen.toybox.world.grammar import noun
from threedgen.toybox.world.primitives import BOX, FRUSTUM

WOOD = (0.42, 0.25, 0.12)
STONE = (0.58, 0.56, 0.53)
ROOF = (0.55, 0.20, 0.13)
SLATE = (0.25, 0.27, 0.32)
ACROSS = (0, 0, 90)  # rotates a prism so that its ridge is parallel to x
ALONG_X = (0, 90, 0)


def contrast(against: Colour, light: Colour, dark: Colour) -> Colour:
    return dark if float(np.dot(against, (0.3, 0.6, 0.1))) > 0.5 else light


def glass(against: Colour) -> Colour:
    return contrast(against, (0.72, 0.88, 0.97), (0.16, 0.22, 0.32))


def tile(b: Builder) -> Colour:
    return contrast(b.colour, b.pick((0.85, 0.72, 0.52), (0.8, 0.8, 0.8)), b.pick(ROOF, SLATE))


def door(b: Builder, x: float, width: float, height: float, y: float = 0.0) -> None:
    # width: half the width of the door; x: position of the outer side of the front wall
    colour = contrast(b.colour, (0.8, 0.6, 0.35), WOOD)
    at = (x, y, height / 2 + 0.02)
    b.box(at, (0.025, width * 1.25, height / 2 + 0.04), contrast(b.colour, (0.95,) * 3, (0.2,) * 3), "frame")
    b.box((x, y, height / 2), (0.05, width, height / 2), colour, "door")
    b.sphere((x + 0.05, y - 0.6 * width, height * 0.5), 0.035, contrast(colour, (1, 0.85, 0.3), (0.15,) * 3), "handle")


def pane(b: Builder) -> Colour:
    return b.part("windows", glass(b.colour))


def window(b: Builder, at, half: float, tall: float) -> None:
    b.box(at, (0.03, half, tall), pane(b), "windows")


def flag(b: Builder, at, scale: float = 1.0) -> None:
    # turned by 40 degrees, to be visible from all sides
    (x, y, z), s = at, scale
    b.limb((x, y, z - 0.05), (x, y, z + 0.56 * s), 0.03 * s, (0.85, 0.85, 0.85), "pole")
    spot = (x + 0.19 * s, y + 0.16 * s, z + 0.37 * s)
    b.box(spot, (0.25 * s, 0.045 * s, 0.18 * s), b.part("flag", (0.85, 0.1, 0.1)), "flag", (0, 0, 40))


@noun("house", "buildings", 6, parts=("roof", "windows"))
def house(b: Builder) -> None:
    depth, width, height = b.vary(0.52), b.vary(0.56), b.between(0.62, 0.8)
    rise = b.vary(0.22)
    roof = b.part("roof", tile(b))
    b.box((0, 0, height / 2), (depth, width, height / 2))
    if b.chance(0.5):  # ridge across the front
        b.prism((0, 0, height + rise), (depth * 1.14, width * 1.08, rise), roof, "roof")
    else:  # gable towards the front, in the colour of the walls
        b.prism((0, 0, height + rise), (width * 1.14, depth * 1.05, rise), roof, "roof", ACROSS)
        b.prism((0, 0, height + rise * 0.72), (width, depth * 1.08, rise * 0.72), None, "body", ACROSS)
        at = (0.0, 0.0, height + rise * 0.5)
        b.cylinder(at, 0.1, depth * 1.08 + 0.02, pane(b), "windows", ALONG_X)
    at = (-0.25 * depth, 0.5 * width, height + rise * 1.5)
    b.box(at, (0.1, 0.1, rise * 0.75), b.pick((0.6, 0.3, 0.22), STONE), "chimney")
    side = b.pick(-0.3, 0.0, 0.3)
    door(b, depth, 0.16, 0.46, side * width)
    b.box((depth + 0.14, side * width, 0.04), (0.14, 0.22, 0.05), STONE, "step")
    b.prism((depth + 0.12, side * width, 0.56), (0.28, 0.14, 0.07), roof, "porch", ACROSS)
    for y in {-0.3: (0.4,), 0.3: (-0.4,)}.get(side, (-0.63, 0.63)):
        window(b, (depth, y * width, 0.36), 0.13, 0.14)
    window(b, (-depth, 0, height * 0.6), 0.32, 0.13)
    b.pair((0, width, height * 0.58), (0.2, 0.03, 0.15), pane(b), "windows", kind=BOX)


@noun("castle", "buildings", 20, parts=("roofs", "flag"))
def castle(b: Builder) -> None:
    half, wall = b.vary(0.58), b.vary(0.5)
    radius, height, rise = b.vary(0.2), wall * b.between(1.4, 1.7), b.vary(0.2)
    roofs = b.part("roofs", tile(b))
    dark = b.shade(b.colour, 0.75)
    b.box((0, 0, wall / 2), (half, half, wall / 2))
    for x in (-1, 1):
        b.pair((x * half, half, height / 2), (radius, radius, height / 2), kind=FRUSTUM)
        spire = (radius * 1.3, radius * 1.3, rise)
        b.pair((x * half, half, height + rise), spire, roofs, "roofs", kind=FRUSTUM, param=0.0)
    for k in (-0.42, 0, 0.42):  # battlements, in rows that run through the block
        b.box((0, k * half, wall), (half + 0.02, 0.07, 0.09), dark, "battlements")
        b.box((k * half, 0, wall), (0.07, half + 0.02, 0.088), dark, "battlements")
    b.box((-0.1, 0, wall * 0.9), (half * 0.5, half * 0.5, wall * 0.75))
    if "flag" in b.named_parts or b.chance(0.3):
        flag(b, (-0.1, 0, wall * 1.65), 1.3)
    else:
        b.prism((-0.1, 0, wall * 1.65 + 0.14), (half * 0.6, half * 0.6, 0.14), roofs, "roofs")
    gate = contrast(b.colour, (0.75, 0.55, 0.3), (0.22, 0.13, 0.07))
    b.box((half, 0, wall * 0.32), (0.05, 0.2, wall * 0.32), gate, "gate")
    b.cylinder((half, 0, wall * 0.64), 0.2, 0.05, gate, "gate", ALONG_X)
    b.box((half + 0.2, 0, 0.04), (0.26, 0.2, 0.05), gate, "bridge")


@noun("church", "buildings", 20, parts=("roof", "windows"))
def church(b: Builder) -> None:
    width, length, height = b.vary(0.4), b.vary(0.55), b.vary(0.6)
    rise, tower_half = b.vary(0.15), b.vary(0.26)
    tower_height, spire = height + 2 * rise + b.between(0.05, 0.15), b.vary(0.24)
    roof = b.part("roof", tile(b))
    front = length + tower_half
    b.box((0, 0, height / 2), (length, width, height / 2))
    b.prism((0, 0, height + rise), (width * 1.13, length * 1.05, rise), roof, "roof", ACROSS)
    b.box((length, 0, tower_height / 2), (tower_half, tower_half, tower_height / 2))
    b.cone((length, 0, tower_height + spire), tower_half * 1.3, spire, roof, "roof")
    top, gold = tower_height + 2 * spire, contrast(roof, (1, 0.85, 0.3), (0.85, 0.65, 0.1))
    b.box((length, 0, top + 0.06), (0.035, 0.035, 0.16), gold, "cross")
    b.box((length, 0, top + 0.1), (0.034, 0.11, 0.035), gold, "cross")
    door(b, front, 0.12, 0.4)
    at = (length, 0, tower_height * 0.76)
    b.cylinder(at, 0.13, tower_half + 0.03, pane(b), "windows", ALONG_X)
    window(b, (-length, 0, height * 0.55), 0.14, 0.18)
    for x in (-0.62, -0.02):
        b.pair((x * length, width, height * 0.53), (0.11, 0.03, 0.19), pane(b), "windows", kind=BOX)


@noun("tent", "buildings", 2, parts=("stripes", "flag"))
def tent(b: Builder) -> None:
    kind = b.pick("ridge", "ridge", "cone", "bell")
    striped, dark = "stripes" in b.named_parts or b.chance(0.25), (0.09, 0.08, 0.08)
    stripes = b.part("stripes", contrast(b.colour, (0.95, 0.95, 0.93), (0.45, 0.3, 0.2)))
    inside = contrast(b.colour, (0.9, 0.82, 0.65), dark)
    if kind == "ridge":
        width, length, rise = b.vary(0.62), b.vary(0.62), b.vary(0.44)
        top = 2 * rise
        b.prism((0, 0, rise), (width, length, rise), None, "body", ACROSS)
        if striped:
            for x in (-0.6, 0.05, 0.7):
                size = (width * 1.03, length * 0.14, rise * 1.03)
                b.prism((x * length, 0, rise * 1.03), size, stripes, "stripes", ACROSS)
        b.prism((length, 0, rise * 0.76), (width * 0.5, 0.03, rise * 0.76), inside, "door", ACROSS)
        at = (length + 0.03, width * 0.4, rise * 0.55)
        b.box(at, (0.03, 0.11, rise * 0.6), b.shade(b.colour, 0.7), "flap", (-28, 0, 0))
        for x in (-1, 1):
            b.limb((x * length, 0, 0.05), (x * length, 0, top + 0.1), 0.035, WOOD, "poles")
    else:
        radius, low = b.vary(0.62), 0.0 if kind == "cone" else b.vary(0.32)
        rise = b.vary(0.56 if kind == "cone" else 0.32)
        top = low + 2 * rise
        if low:
            b.cylinder((0, 0, low / 2), radius * 0.95, low / 2)
        b.cone((0, 0, low + rise), radius, rise)
        if striped:  # rings around the cone, each a slice of a slightly larger one
            for z in (0.12, 0.5):
                outer, inner = 1.04 * radius * (1 - z), 1.04 * radius * (1 - z - 0.18)
                at = (0, 0, low + 2 * rise * (z + 0.09))
                b.cylinder(at, outer, 2 * rise * 0.09, stripes, "stripes", top=inner / outer)
        if low:  # an upright door with a canopy
            b.box((radius * 0.93, 0, low * 0.5), (0.05, 0.2, low * 0.5), inside, "door")
            b.prism((radius * 0.9, 0, low + 0.08), (0.3, 0.16, 0.14), b.shade(b.colour, 0.75), "flap", ACROSS)
        else:  # a door that leans against the cone, and the ends of the poles
            height, slope = rise * 1.0, np.rad2deg(np.arctan2(radius, 2 * rise))
            middle = radius * (1 - height / (4 * rise))
            b.prism((middle - 0.01, 0, height / 2), (0.3, 0.07, height * 0.57), inside, "door", (-slope, 0, 90))
            for k in range(3):
                a = 2 * np.pi * k / 3
                b.limb((0, 0, top - 0.15), (0.13 * np.cos(a), 0.13 * np.sin(a), top + 0.14), 0.03, WOOD, "poles")
    reach = length if kind == "ridge" else radius  # a mat before the entrance
    b.box((reach + 0.16, 0, 0.025), (0.2, 0.24, 0.03), contrast(b.colour, WOOD, (0.8, 0.7, 0.5)), "mat")
    if "flag" in b.named_parts:
        flag(b, (0, 0, top - 0.03))


def plank(b: Builder, x: float, low, high, half: float, colour: Colour, label: str) -> None:
    (y0, z0), (y1, z1) = low, high
    angle = np.rad2deg(np.arctan2(z1 - z0, y1 - y0))
    b.box((x, (y0 + y1) / 2, (z0 + z1) / 2), (half, np.hypot(y1 - y0, z1 - z0) / 2, 0.04), colour, label, (angle, 0, 0))


@noun("barn", "buildings", 8, parts=("roof", "silo"))
def barn(b: Builder) -> None:
    width, length, height = b.vary(0.56), b.vary(0.56), b.vary(0.58)
    bend, rise, peak = width * 0.66, b.vary(0.22), b.vary(0.17)
    roof = b.part("roof", tile(b))
    trim = contrast(b.colour, (0.97, 0.97, 0.97), (0.35, 0.2, 0.12))
    # gambrel roof: steep below the bend, flat above; the inner halves of the prisms are inside the box
    b.box((0, 0, height / 2), (length, width, height / 2))
    b.box((0, 0, height + rise / 2), (length, bend, rise / 2))
    for side in (-1, 1):
        b.prism((0, side * bend, height + rise / 2), (width - bend, length, rise / 2), None, "body", ACROSS)
        knee = (side * bend * 1.04, height + rise)
        plank(b, 0, (side * width * 1.07, height - 0.06), knee, length * 1.08, roof, "roof")
        plank(b, 0, knee, (0, height + rise + peak + 0.02), length * 1.08, roof, "roof")
    b.prism((0, 0, height + rise + peak / 2), (bend, length, peak / 2), None, "body", ACROSS)
    tall, half = height * 0.88, 0.27
    b.box((length, 0, tall / 2), (0.03, half, tall / 2), b.shade(b.colour, 0.6), "door")
    for y, z in ((-half, 0), (half, 0)):
        plank(b, length + 0.02, (y, z + 0.03), (-y, tall), 0.025, trim, "trim")
    b.box((length, 0, tall + 0.02), (0.05, half + 0.05, 0.045), trim, "trim")
    b.box((length, 0, height + rise * 0.62), (0.04, 0.12, 0.12), trim, "loft")
    b.prism((length, 0, 0.08), (0.4, half, 0.08), STONE, "ramp")
    if "silo" in b.named_parts or b.chance(0.4):
        silo, tall = b.part("silo", (0.72, 0.73, 0.75)), b.vary(0.52)
        b.cylinder((-length * 0.4, width + 0.26, tall), 0.24, tall, silo, "silo")
        b.dome((-length * 0.4, width + 0.26, 2 * tall), (0.25, 0.25, 0.22), b.shade(silo, 0.7), "silo")
