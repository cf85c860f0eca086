"""Functions (recipes) that build the parts of procedural vehicles, which head towards +x.

The ground is at z = 0, except for the airplane.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder, Colour
from threedgen.toybox.world.grammar import noun
from threedgen.toybox.world.primitives import BOX, FRUSTUM

from .buildings import ALONG_X, WOOD, contrast, glass

RUBBER = (0.09, 0.09, 0.10)
METAL = (0.74, 0.75, 0.77)
DARK = (0.16, 0.16, 0.18)
ALONG_Y = (90, 0, 0)
BOW = (90, 0, 90)
"""Angles about x, y and z in degrees that rotate a prism to an upright wedge with its edge at +x, the bow of a boat.

The prism's ``size`` (3,) is then half the width, the height and the length of the wedge."""


def wheel(b: Builder, at, radius: float, half: float) -> None:
    tyre = b.part("wheels", RUBBER)
    b.cylinder(at, radius, half, tyre, "wheels", ALONG_Y)
    b.cylinder(
        at, radius * 0.5, half + 0.02, b.shade(tyre, 0.55) if "wheels" in b.named_parts else METAL, "hubs", ALONG_Y
    )


def axles(b: Builder, xs, y: float, radius: float, half: float) -> None:
    for x in xs:
        for side in (-1, 1):
            wheel(b, (x, side * y, radius), radius, half)


def lights(b: Builder, front: float, back: float, y: float, z: float, radius: float = 0.085) -> None:
    b.pair((front, y, z), (0.05, radius, radius), (1.0, 0.95, 0.65), "headlights")
    b.pair((back, y, z), (0.03, radius, radius * 0.7), (0.7, 0.03, 0.05), "taillights", kind=BOX)


def cab(b: Builder, x: float, z: float, size, front: float, back: float, roof: Colour) -> None:
    # front, back: horizontal lengths over which windscreen and rear window slope; 0: vertical
    long, wide, tall = size
    pane = glass(b.colour)
    b.box((x, 0, z + tall), (long, wide, tall), pane, "windows")
    for at, run in ((x + long, front), (x - long, back)):
        if run:  # the inner half of the prism is inside the box
            b.prism((at, 0, z + tall), (run, wide * 0.99, tall), pane, "windows")
    b.box((x, 0, z + 2 * tall + 0.04), (long * 1.04, wide * 1.04, 0.06), roof, "roof")
    b.box((x - 0.1 * long, 0, z + tall), (0.05, wide * 1.03, tall), None, "pillars")


@noun("car", "vehicles", 1.5, parts=("wheels", "roof"))
def car(b: Builder) -> None:
    length, width, low, radius = b.vary(0.78, 0.06), b.vary(0.42, 0.05), b.vary(0.18), b.vary(0.2)
    z = radius + 0.1
    b.box((0, 0, z), (length - low, width, low))
    for x in (-1, 1):
        b.cylinder((x * (length - low), 0, z), low, width, None, "body", ALONG_Y)
    roof = b.part("roof")
    if b.chance(0.7):
        back = b.pick(0.0, 0.1, 0.2)
        tall = b.vary(0.14)
        x, long = -0.15 - back / 2, 0.36 - back / 2
        cab(b, x, z + low - 0.01, (long, width * 0.86, tall), b.between(0.15, 0.28), back, roof)
        b.dome((x, 0, z + low + 2 * tall + 0.08), (0.34 - back / 2, width * 0.84, 0.09), roof, "roof")
    else:  # beetle: a round cabin whose upper half is the roof
        tall = b.vary(0.4)
        b.dome((-0.12, 0, z + low - 0.02), (0.52, width * 0.92, tall), glass(b.colour), "windows")
        b.dome((-0.16, 0, z + low + tall * 0.45), (0.46, width * 0.84, tall * 0.62), roof, "roof")
        b.box((-0.12, 0, z + low + tall * 0.25), (0.055, width * 0.92, tall * 0.3), None, "pillars")
    axles(b, (-0.55 * length, 0.55 * length), width * 0.95, radius, 0.1)
    lights(b, length - 0.02, -length + 0.01, width * 0.65, z + 0.03)
    b.box((length - 0.02, 0, z - 0.03), (0.035, width * 0.35, low * 0.4), DARK, "grille")
    for x in (-1, 1):
        b.box((x * length, 0, z - low * 0.75), (0.05, width * 0.96, 0.045), METAL, "bumpers")


@noun("truck", "vehicles", 3, parts=("wheels", "cabin"))
def truck(b: Builder) -> None:
    width, radius, long = b.vary(0.38, 0.05), b.vary(0.2), b.vary(0.52)
    cabin = b.part("cabin", b.shade(b.colour, b.pick(1.0, 0.8)))
    z, front = radius + 0.06, 0.82
    b.box((0, 0, z), (0.8, width * 0.8, 0.07), DARK, "chassis")
    b.box((front - 0.2, 0, z + 0.33), (0.22, width * 0.96, 0.36), cabin, "cabin")
    b.prism((front, 0, z + 0.24), (0.12, width * 0.95, 0.26), cabin, "cabin")
    pane = glass(cabin)
    b.box((front + 0.015, 0, z + 0.48), (0.03, width * 0.8, 0.15), pane, "windows")
    b.box((front - 0.17, 0, z + 0.48), (0.12, width * 0.99, 0.13), pane, "windows")
    middle = front - 0.46 - long
    if b.chance(0.6):
        tall = b.vary(0.45)
        b.box((middle, 0, z + 0.07 + tall), (long, width * 1.08, tall))
        b.box((middle - long, 0, z + 0.07 + tall), (0.02, width * 0.85, tall * 0.8), b.shade(b.colour, 0.7), "doors")
    else:  # a dump truck with a heap of sand
        b.box((middle, 0, z + 0.35), (long, width * 1.08, 0.28))
        b.box((middle - 0.02, 0, z + 0.63), (long * 1.06, width * 1.16, 0.06), b.shade(b.colour, 0.75), "rim")
        b.sphere((middle, 0, z + 0.63), (long * 0.9, width * 0.95, b.between(0.18, 0.3)), (0.8, 0.65, 0.4), "load")
    axles(b, (front - 0.2, middle + 0.05, middle - 0.4), width, radius, 0.1)
    lights(b, front + 0.09, middle - long - 0.02, width * 0.7, z + 0.08, 0.075)
    b.box((front + 0.06, 0, z - 0.03), (0.05, width, 0.05), METAL, "bumper")


@noun("bus", "vehicles", 3.2, parts=("wheels", "stripe", "roof"))
def bus(b: Builder) -> None:
    length, width, radius, decks = b.vary(0.86, 0.05), b.vary(0.39, 0.05), b.vary(0.2), b.pick(1, 1, 2)
    deck = 0.68 if decks == 1 else 0.5
    bottom = radius * 0.8
    tall = deck * decks / 2 + 0.06
    b.box((0, 0, bottom + tall), (length, width, tall))
    at = (0, 0, bottom + 2 * tall + 0.03)
    b.box(at, (length * 0.97, width * 0.94, 0.06), b.part("roof", b.shade(b.colour, 1.4)), "roof")
    pane = glass(b.colour)
    for k in range(decks):
        z = bottom + 0.12 + deck * (k + 0.6)
        for x in (-0.74, -0.36, 0.02, 0.4):
            b.box((x * length, 0, z), (0.13, width + 0.02, deck * 0.22), pane, "windows")
        b.box((length, 0, z - 0.01), (0.025, width * 0.85, deck * 0.26), pane, "windows")
        b.box((-length, 0, z + 0.02), (0.02, width * 0.5, deck * 0.18), pane, "windows")
    b.box((0.75 * length, -width, bottom + 0.33), (0.1, 0.025, 0.27), contrast(b.colour, METAL, DARK), "door")
    if "stripe" in b.named_parts or b.chance(0.25):
        stripe = b.part("stripe", contrast(b.colour, (0.97, 0.97, 0.97), (0.7, 0.1, 0.1)))
        b.box((0, 0, bottom + 0.26), (length + 0.012, width + 0.012, 0.075), stripe, "stripe")
    axles(b, (-0.6 * length, 0.5 * length), width * 0.94, radius, 0.09)
    lights(b, length + 0.01, -length - 0.01, width * 0.7, bottom + 0.12, 0.075)


@noun("train", "vehicles", 4, parts=("wheels", "chimney", "cabin"))
def train(b: Builder) -> None:
    radius, boiler, length = b.vary(0.2), b.vary(0.3), b.vary(0.78, 0.05)
    z = 2 * radius + boiler - 0.08
    cabin = b.part("cabin", b.shade(b.colour, 0.85))
    b.box((0, 0, radius * 1.45), (length, 0.3, 0.09), b.shade(b.colour, 0.6), "frame")
    b.cylinder((0.22, 0, z), boiler, length - 0.2, None, "body", ALONG_X)
    b.cylinder((length - 0.03, 0, z), boiler * 1.06, 0.09, DARK, "smokebox", ALONG_X)
    b.sphere((length + 0.07, 0, z + 0.04), (0.06, 0.12, 0.12), (1.0, 0.92, 0.55), "headlights")
    tall = b.vary(0.46)
    b.box((-length + 0.26, 0, radius * 1.5 + tall), (0.28, 0.38, tall), cabin, "cabin")
    b.box((-length + 0.26, 0, radius * 1.5 + 2 * tall + 0.03), (0.35, 0.45, 0.05), b.shade(b.colour, 0.6), "roof")
    b.box((-length + 0.28, 0, radius * 1.5 + 1.5 * tall), (0.15, 0.4, 0.14), glass(cabin), "windows")
    top, chimney = z + boiler, b.part("chimney", DARK)
    b.cylinder((length * 0.62, 0, top + 0.13), 0.15, 0.2, chimney, "chimney", top=1.2)
    b.cylinder((length * 0.62, 0, top + 0.33), 0.24, 0.08, chimney, "chimney")
    b.sphere((length * 0.12, 0, top), (0.15, 0.15, 0.17), (0.88, 0.7, 0.25), "dome")
    b.prism((length, 0, radius * 0.85), (0.24, 0.32, radius * 0.75), (0.65, 0.12, 0.1), "cowcatcher")
    axles(b, (-0.68 * length, -0.08 * length, 0.5 * length), 0.34, radius, 0.07)


def hull(b: Builder, length: float, width: float, height: float) -> float:
    low = b.shade(b.colour, 0.75)
    bow = length * 0.75
    for z, half, grow, colour in ((height * 0.3, height * 0.3, 0.88, low), (height * 0.8, height * 0.25, 1.0, None)):
        b.box((-0.15 * length, 0, z), (length * 0.6 * grow, width * grow, half), colour)
        at = (0.45 * length * grow + bow / 2 - 0.08, 0, z)
        b.prism(at, (width * grow, half * 0.99, bow / 2 * grow), colour, "body", BOW)
        b.cylinder((-0.73 * length, 0, z), width * 0.99 * grow, half * 0.98, colour)
    b.box((-0.2 * length, 0, height * 1.03), (length * 0.55, width * 0.8, 0.03), (0.78, 0.6, 0.38), "deck")
    return height * 1.06


@noun("boat", "vehicles", 4, parts=("sail", "cabin"))
def boat(b: Builder) -> None:
    length, width, height = b.vary(0.75), b.vary(0.36), b.vary(0.42)
    deck = hull(b, length, width, height)
    sailing = "sail" in b.named_parts or ("cabin" not in b.named_parts and b.chance(0.5))
    white = contrast(b.colour, (0.97, 0.97, 0.96), (0.85, 0.75, 0.58))
    if sailing:
        sail, tall = b.part("sail", white), b.vary(0.44)
        b.cylinder((0.08, 0, deck + tall + 0.08), 0.045, tall + 0.1, WOOD, "mast")
        b.prism((-0.16, 0.0, deck + tall + 0.12), (0.42, 0.05, tall * 0.95), sail, "sail", (0, 0, b.between(-20, 20)))
        b.prism((0.42, 0, deck + tall * 0.7 + 0.1), (0.26, 0.045, tall * 0.65), b.shade(sail, 0.9), "sail")
    else:
        cabin = b.part("cabin", white)
        x = b.between(-0.3, -0.12)
        b.box((x, 0, deck + 0.16), (0.36, width * 0.7, 0.18), cabin, "cabin")
        b.box((x + 0.12, 0, deck + 0.18), (0.25, width * 0.72, 0.08), glass(cabin), "windows")
        b.box((x - 0.02, 0, deck + 0.37), (0.42, width * 0.8, 0.045), b.shade(cabin, 0.8), "cabin")
        b.cylinder((x - 0.12, 0, deck + 0.54), 0.12, 0.17, (0.8, 0.15, 0.12), "funnel")
        b.cylinder((x - 0.12, 0, deck + 0.7), 0.13, 0.05, DARK, "funnel")


@noun("tank", "vehicles", 2.4, parts=("turret", "tracks"))
def tank(b: Builder) -> None:
    length, width, track = b.vary(0.7, 0.05), b.vary(0.44, 0.05), b.vary(0.18)
    tracks, turret = b.part("tracks", DARK), b.part("turret", b.shade(b.colour, 0.85))
    for side in (-1, 1):
        y = side * width
        b.box((0, y, track), (length - track, 0.13, track), tracks, "tracks")
        for x in (-1.0, 1.0):
            b.cylinder((x * (length - track), y, track), track, 0.13, tracks, "tracks", ALONG_Y)
        for x in (-0.7, 0.0, 0.7):
            b.cylinder((x * (length - track), y, track), track * 0.6, 0.15, b.shade(b.colour, 0.7), "hubs", ALONG_Y)
    top = 2 * track + 0.24
    b.box((0, 0, track + 0.05), (length * 0.85, width * 0.8, track))
    b.box((-0.04, 0, top - 0.1), (length * 0.9, width + 0.15, 0.12))
    b.prism((length * 0.85, 0, top - 0.12), (0.22, width + 0.14, 0.1))
    x = -0.12
    if b.chance(0.5):
        b.dome((x, 0, top), (0.4, 0.36, 0.34), turret, "turret")
    else:
        b.cylinder((x, 0, top + 0.14), 0.4, 0.16, turret, "turret", top=0.85)
    muzzle = (length + 0.22, 0, top + b.between(0.16, 0.3))
    b.limb((x + 0.2, 0, top + 0.15), muzzle, 0.075, b.shade(turret, 0.75), "turret", caps=False)
    b.cylinder((x - 0.1, 0.1, top + 0.32), 0.13, 0.05, b.shade(turret, 0.7), "turret")
    lights(b, length * 0.86 + 0.12, -length * 0.9 - 0.05, width * 0.75, top - 0.12, 0.07)


@noun("tractor", "vehicles", 2.8, parts=("wheels", "roof"))
def tractor(b: Builder) -> None:
    big, small = b.vary(0.38, 0.06), b.vary(0.22, 0.06)
    z = big + 0.06
    b.box((0.38, 0, z + 0.06), (0.46, 0.25, 0.22))
    b.cylinder((0.38, 0, z + 0.26), 0.25, 0.46, None, "body", ALONG_X)
    b.box((-0.32, 0, z + 0.04), (0.32, 0.3, 0.22))
    b.box((0.3, 0, z - 0.2), (0.45, 0.15, 0.1), DARK, "frame")
    for side in (-1, 1):
        wheel(b, (-0.4, side * 0.45, big), big, 0.12)
        wheel(b, (0.6, side * 0.36, small), small, 0.1)
        b.box((-0.4, side * 0.43, 2 * big + 0.03), (0.34, 0.15, 0.045))
    cab(b, -0.36, z + 0.24, (0.24, 0.28, 0.22), 0.0, 0.0, b.part("roof"))
    b.box((-0.36, 0, z + 0.79), (0.34, 0.36, 0.06), b.part("roof"), "roof")
    b.limb((0.5, -0.12, z + 0.4), (0.5, -0.12, z + 0.78), 0.06, METAL, "pipe", caps=False)
    b.box((0.84, 0, z + 0.1), (0.025, 0.18, 0.2), DARK, "grille")
    lights(b, 0.87, -0.66, 0.16, z + 0.3, 0.085)


@noun("airplane", "vehicles", 4, parts=("wings", "tail"))
def airplane(b: Builder) -> None:
    body, span, sweep = b.vary(0.26), b.vary(0.74), b.pick(0, 15, 25)
    propeller = sweep == 0
    wings, tail = b.part("wings", b.shade(b.colour, 0.85)), b.part("tail", b.shade(b.colour, 0.85))
    b.limb((0.45, 0, 0), (-0.75, 0, 0.1), body, None, "body", top=0.42)
    b.sphere((0.45, 0, 0), (body * 1.55, body, body))
    b.sphere((0.46, 0, body * 0.64), (0.28, body * 0.76, body * 0.68), glass(b.colour), "cockpit")
    levels = (-0.1, 0.42) if propeller and b.chance(0.4) else (-0.06,)
    back = np.tan(np.deg2rad(sweep)) * span / 2
    for z in levels:
        b.pair((0.12 - back, span / 2, z), (0.22, span / 2, 0.05), wings, "wings", (0, 0, sweep), BOX)
        if len(levels) > 1:
            b.limbs((0.12, span * 0.7, -0.1), (0.12, span * 0.7, 0.42), 0.035, WOOD, "struts", caps=False)
    b.box((-0.8, 0, 0.38), (0.17, 0.055, 0.3), tail, "tail", (0, -25, 0))
    b.box((-0.78, 0, 0.12), (0.15, 0.38, 0.05), tail, "tail")
    if propeller:
        nose = 0.45 + body * 1.5
        b.cone((nose + 0.05, 0, 0), 0.1, 0.1, METAL, "propeller", ALONG_X)
        b.box((nose + 0.02, 0, 0), (0.03, 0.06, 0.36), DARK, "propeller", (b.between(0, 180), 0, 0))
        for side in (-1, 1):
            b.limb((0.25, side * 0.1, -0.1), (0.3, side * 0.25, -0.4), 0.04, METAL, "gear", caps=False)
            b.cylinder((0.3, side * 0.25, -0.4), 0.12, 0.05, RUBBER, "gear", ALONG_Y)
    else:
        b.pair((0.12, span * 0.45, -0.2), (0.12, 0.12, 0.18), METAL, "engines", ALONG_X, FRUSTUM)
        for x in (0.15, -0.05, -0.25):
            b.box((x, 0, body * 0.3), (0.055, body * 0.97, 0.055), glass(b.colour), "windows")


@noun("helicopter", "vehicles", 3.5, parts=("rotor", "tail"))
def helicopter(b: Builder) -> None:
    long, wide, tall = b.vary(0.54), b.vary(0.38), b.vary(0.4)
    rotor, tail = b.part("rotor", DARK), b.part("tail", b.shade(b.colour, 0.8))
    z = 0.28 + tall
    b.sphere((0.12, 0, z), (long, wide, tall))
    b.sphere((0.12 + long * 0.42, 0, z + 0.05), (long * 0.64, wide * 0.84, tall * 0.7), glass(b.colour), "cockpit")
    end = b.vary(0.8)
    b.limb((-0.15, 0, z + 0.08), (-end, 0, z + 0.14), 0.2, tail, "tail", top=0.5)
    b.box((-end, 0, z + 0.25), (0.13, 0.045, 0.24), tail, "tail", (0, -20, 0))
    b.box((-end - 0.02, 0.1, z + 0.22), (0.04, 0.03, 0.22), rotor, "rotor", (0, b.between(0, 180), 0))
    b.cylinder((0.08, 0, z + tall + 0.05), 0.08, 0.11, METAL, "mast")
    b.cylinder((0.08, 0, z + tall + 0.19), 0.12, 0.06, rotor, "rotor")
    turn, span, blades = b.between(0, 90), b.vary(0.64), b.pick((0, 90), (0, 90), (0, 60, 120))
    for k, a in enumerate(blades):
        b.box((0.08, 0, z + tall + 0.2 + 0.004 * k), (span, 0.085, 0.04), rotor, "rotor", (0, 0, turn + a))
    b.limbs((-0.3, wide * 0.95, 0.06), (0.55, wide * 0.95, 0.06), 0.05, METAL, "skids")
    for x in (-0.05, 0.32):
        b.limbs((x, wide * 0.5, z - tall * 0.6), (x, wide * 0.95, 0.06), 0.04, METAL, "skids", caps=False)


@noun("rocket", "vehicles", 30, parts=("fins", "nose"))
def rocket(b: Builder) -> None:
    radius, half, rise = b.vary(0.3), b.vary(0.5), b.vary(0.24)
    bright = contrast(b.colour, (0.95, 0.95, 0.95), (0.8, 0.12, 0.1))
    fins, nose = b.part("fins", bright), b.part("nose", bright)
    z = 0.2 + half
    b.cylinder((0, 0, z), radius, half, top=0.9)
    b.cone((0, 0, z + half + rise), radius * 0.9, rise, nose, "nose")
    b.cylinder((0, 0, 0.12), radius * 0.75, 0.1, DARK, "engine", top=0.75)
    turn, reach = 45.0, b.vary(0.66)
    for k in range(2):  # each prism gives two opposite fins
        b.prism((0, 0, 0.42), (reach, 0.055, 0.42), fins, "fins", (0, 0, turn + 90 * k))
    ring = contrast(b.colour, (0.95, 0.85, 0.4), (0.25, 0.25, 0.28))
    b.cylinder((radius * 0.92, 0, z + half * 0.35), 0.22, 0.11, ring, "window", ALONG_X)
    b.sphere((radius * 0.98, 0, z + half * 0.35), (0.11, 0.16, 0.16), (0.45, 0.75, 0.95), "window")
    b.box((radius * 0.97, 0, z - half * 0.5), (0.06, 0.14, 0.18), ring, "hatch")
    if b.chance(0.5):
        b.cylinder((0, 0, z + half * 0.82), radius * 0.94, 0.05, b.shade(b.colour, 0.6), "band")
