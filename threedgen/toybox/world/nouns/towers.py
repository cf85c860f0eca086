"""Functions (recipes) that build the parts of procedural round buildings.

Their doors are in front (+x), and the ground is at z = 0.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import noun
from threedgen.toybox.world.primitives import BOX

from .buildings import SLATE, STONE, contrast, door, pane, tile, window


@noun("windmill", "buildings", 15, parts=("sails", "roof"))
def windmill(b: Builder) -> None:
    radius, height, top = b.vary(0.42), b.vary(0.95), b.between(0.62, 0.75)
    roof, sails = b.part("roof", tile(b)), b.part("sails", (0.93, 0.9, 0.82))
    upper = radius * top
    b.cylinder((0, 0, height / 2), radius, height / 2, top=top)
    if b.chance(0.5):
        b.dome((0, 0, height), (upper * 1.15, upper * 1.15, upper * 1.2), roof, "roof")
    else:
        b.cone((0, 0, height + 0.2), upper * 1.25, 0.2, roof, "roof")
    hub, x = height + 0.02, radius + 0.06
    b.limb((0, 0, hub), (x + 0.08, 0, hub), 0.08, SLATE, "axle")
    turn, reach = b.between(0, 90), b.vary(0.62)
    for k in range(4):
        a = np.deg2rad(turn + 90 * k)
        along, across = np.array((0, np.cos(a), np.sin(a))), np.array((0, -np.sin(a), np.cos(a)))
        at = np.array((x, 0, hub)) + 0.56 * reach * along + 0.05 * across
        b.box(at, (0.03, reach * 0.44, 0.105), sails, "sails", (turn + 90 * k, 0, 0))
        spar = np.array((x + 0.01, 0, hub)) + 0.5 * reach * along - 0.04 * across
        b.box(spar, (0.035, reach * 0.5, 0.025), b.shade(sails, 0.55), "sails", (turn + 90 * k, 0, 0))
    door(b, radius * 0.96, 0.12, 0.36)
    b.pair((0, radius * 0.85, height * 0.5), (0.08, 0.03, 0.09), pane(b), "windows", kind=BOX)


@noun("lighthouse", "buildings", 25, parts=("stripes", "roof"))
def lighthouse(b: Builder) -> None:
    radius, height, top = b.vary(0.4), b.vary(1.15), b.between(0.58, 0.72)
    white = contrast(b.colour, (0.97, 0.97, 0.97), (0.8, 0.1, 0.1))
    stripes, roof = b.part("stripes", white), b.part("roof", b.shade(b.colour, 0.6))
    count = 2
    edges = np.cumsum([0.0] + [b.vary(1.25) if k % 2 == 0 else 1.0 for k in range(2 * count + 1)])
    edges *= height / edges[-1]
    outline = radius * (1 - (1 - top) * edges / height)
    for k in range(2 * count + 1):
        colour, label = (stripes, "stripes") if k % 2 else (None, "body")
        middle, half = (edges[k] + edges[k + 1]) / 2, (edges[k + 1] - edges[k]) / 2
        b.cylinder((0, 0, middle), outline[k], half, colour, label, top=outline[k + 1] / outline[k])
    upper = radius * top
    b.cylinder((0, 0, height + 0.03), upper * 1.4, 0.045, (0.25, 0.25, 0.27), "gallery")
    b.cylinder((0, 0, height + 0.17), upper * 0.8, 0.13, (1.0, 0.93, 0.55), "light")
    if b.chance(0.5):
        b.dome((0, 0, height + 0.28), (upper * 1.15, upper * 1.15, 0.24), roof, "roof")
    else:
        b.cone((0, 0, height + 0.42), upper * 1.25, 0.15, roof, "roof")
    if b.chance(0.35):
        b.dome((0, 0, -0.06), (radius * 1.5, radius * 1.5, 0.16), STONE, "rock")
    door(b, radius * 0.95, 0.14, 0.4)
    b.box((radius * 1.25, 0, 0.05), (0.2, 0.18, 0.06), STONE, "step")
    window(b, (radius * 0.82, 0, height * 0.58), 0.07, 0.09)
