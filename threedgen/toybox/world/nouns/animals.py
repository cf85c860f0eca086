"""Functions (recipes) that build the parts of procedural large animals.

They stand on four legs or upright and face +x.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import HEADWEAR, noun
from threedgen.toybox.world.primitives import FRUSTUM

WEARS = (*HEADWEAR, "scarf", "glasses", "backpack", "cape", "bow")
BLACK, WHITE, PINK, BILL = (0.05, 0.05, 0.05), (0.97, 0.97, 0.97), (0.95, 0.6, 0.65), (0.98, 0.6, 0.08)


def headwear(b: Builder) -> bool:
    # whether the animal wears headwear, for which its ears must leave room
    return any(word in b.named_parts for word in HEADWEAR)


def face(b: Builder, at, head: float, eye: float = 0.16, spread: float = 0.42, height: float = 0.25) -> None:
    """Add two eyes to the front (+x) of a head with the centre ``at`` (3,) and radius ``head``. Set the anchor "eyes".

    An anchor is a named place for accessories. An eye is a white ball of radius 2 * ``eye`` * ``head`` with a black
    pupil. Its centre lies ``spread`` * ``head`` to the side of the centre of the head, and ``height`` * ``head`` above.
    """
    x, _, z = at
    b.pair((x + 0.76 * head, spread * head, z + height * head), eye * head * 2.0, WHITE, "eyes")
    b.pair((x + 0.97 * head, spread * head, z + height * head), eye * head * 1.35, BLACK, "eyes")
    b.anchor(eyes=(x + 1.0 * head, z + height * head, spread / 0.42 * head))


def skull(b: Builder, at, radius: float, **eyes: float) -> None:
    b.sphere(at, radius, None, "head")
    face(b, at, radius, **eyes)
    b.anchor(head_top=(at[0] - 0.1 * radius, at[2] + 0.88 * radius, 0.85 * radius), head=(at[0], at[2], radius))


def chain(b: Builder, points, radius: float, colour=None, label: str = "tail", top: float = 1.0) -> None:
    for start, end in zip(points[:-1], points[1:], strict=True):
        b.limb(start, end, radius, colour, label, top, caps=False)
        radius *= top
        b.sphere(end, radius, colour, label)


def barrel(b: Builder, length: float, thick: float, leg: float, radius: float, legs=None, hooves=None) -> float:
    """Add a body: an ellipsoid on four legs. Return the height z of its centre; the ground is at z = 0.

    Set the anchors (named places for accessories) "back" and "waist".

    ``length`` is half the length of the ellipsoid along x, and ``thick`` half its width and height. ``leg`` is the
    visible height of the legs, and ``radius`` their radius. ``legs`` is the colour of the legs; None: the main colour.
    ``hooves`` is the colour of the hooves; None: no hooves.
    """
    z = leg + 0.8 * thick
    b.sphere((0, 0, z), (length, thick, thick))
    for x in (-0.62, 0.62):
        for y in (-0.55, 0.55):
            foot = (x * length * b.between(0.95, 1.15), y * thick, radius)
            chain(b, ((x * length, y * thick, z - 0.4 * thick), foot), radius, legs, "legs")
            if hooves is not None:
                b.cylinder((foot[0], foot[1], 0.08), 1.2 * radius, 0.09, hooves, "hooves", top=0.9)
    b.anchor(back=(-0.15 * length, z + 0.97 * thick, thick), waist=(0, z, thick))
    return z


def egg(b: Builder, radius: float, half: float, neck: float) -> None:
    """Add a body: an upright ellipsoid that stands on the ground, z = 0.

    ``radius`` is the largest horizontal radius of the ellipsoid, and ``half`` is half its height.

    Set the anchors (named places for accessories) "neck", "back" and "waist". The anchor "neck" is placed in the upper
    half, at the height where the horizontal radius of the ellipsoid is ``neck``.
    """
    b.sphere((0, 0, half), (radius, radius, half))
    up = half * np.sqrt(max(1 - (neck / radius) ** 2, 0.0))
    b.anchor(
        neck=(0, half + up, neck),
        back=(-0.95 * radius, 1.15 * half, 0.9 * radius),
        waist=(0, 0.85 * half, 0.985 * radius),
    )


@noun("dog", "animals", 0.5, parts=("ears", "legs"), wears=WEARS)
def dog(b: Builder) -> None:
    length, thick = b.vary(0.52), b.vary(0.3)
    z = barrel(b, length, thick, b.vary(0.34), 0.11, b.part("legs"))
    head = b.vary(0.36)
    hx, hz = length + 0.08, z + thick + 0.22
    b.limb((length * 0.6, 0, z), (hx, 0, hz), 0.18, caps=False)
    skull(b, (hx, 0, hz), head)
    b.sphere((hx + head * 0.95, 0, hz - 0.1), (0.22, 0.16, 0.13), b.shade(b.colour, 1.5), "snout")
    b.sphere((hx + head * 0.95 + 0.19, 0, hz - 0.05), 0.1, BLACK, "nose")
    b.pair((hx - 0.05, head * 1.0, hz), (0.13, 0.08, 0.3), b.part("ears", b.shade(b.colour, 0.55)), "ears", (-12, 0, 0))
    chain(b, ((-length * 0.9, 0, z + 0.1), (-length - 0.22, 0, z + b.between(0.3, 0.5))), 0.08)
    b.anchor(neck=(length * 0.85, z + thick * 0.6, 0.25))


@noun("cat", "animals", 0.35, parts=("ears", "tail"), wears=WEARS)
def cat(b: Builder) -> None:
    paws, tail, head = b.shade(b.colour, 1.8), b.part("tail", b.shade(b.colour, 0.75)), b.vary(0.36)
    if b.chance(0.5):  # sitting
        egg(b, 0.4, 0.5, 0.24)
        b.pair((0.05, 0.27, 0.2), (0.32, 0.19, 0.21), None, "legs")
        b.pair((0.36, 0.2, 0.09), (0.19, 0.13, 0.1), paws, "paws")
        b.limbs((0.25, 0.14, 0.6), (0.37, 0.13, 0.1), 0.1, None, "legs", caps=False)
        bend = ((-0.3, 0, 0.12), (-0.52, 0.3, 0.18), (-0.5, 0.52, 0.5), (-0.42, 0.5, 0.9))
        at = (0.14, 0, 1.12)
        b.anchor(neck=(0.08, 0.84, 0.26))
    else:
        z = barrel(b, 0.5, b.vary(0.25), 0.36, 0.1, None)
        for x in (-0.33, 0.34):
            b.pair((x, 0.14, 0.1), (0.15, 0.13, 0.1), paws, "paws")
        bend = ((-0.42, 0, z), (-0.62, 0, z + 0.22), (-0.56, 0, z + 0.62), (-0.72, 0, z + 0.82))
        at = (0.56, 0, z + 0.38)
        b.limb((0.35, 0, z), at, 0.17, caps=False)
        b.anchor(neck=(0.44, z + 0.1, 0.26))
    chain(b, bend, 0.085, tail)
    skull(b, at, head, eye=0.17)
    x, _, z = at
    ear, out = b.part("ears", b.shade(b.colour, 0.7)), 0.8 if headwear(b) else 0.58
    b.pair((x, out * head, z + 0.95 * head), (0.21, 0.21, 0.23), ear, "ears", (-22, 0, 0), FRUSTUM, 0.0)
    b.pair((x + 0.9 * head, 0.07, z - 0.3 * head), (0.1, 0.1, 0.08), WHITE, "cheeks")
    b.sphere((x + 1.1 * head, 0, z - 0.14 * head), (0.05, 0.06, 0.045), PINK, "nose")


@noun("bear", "animals", 1.5, parts=("belly", "ears", "paws"), wears=(*WEARS, "belt"))
def bear(b: Builder) -> None:
    head, light = b.vary(0.42), b.shade(b.colour, 1.6)
    paws, ear = b.part("paws", b.shade(b.colour, 0.6)), b.part("ears", b.shade(b.colour, 0.6))
    b.sphere((0, 0, 0.7), (0.46, 0.48, 0.5))
    b.sphere((0.16, 0, 0.68), (0.35, 0.36, 0.38), b.part("belly", light), "belly")
    raised = b.chance(0.4)
    for side in (-1, 1):
        foot, hand = (0.1, side * 0.28, 0.14), (0.18, side * 0.68, 1.2 if raised else 0.62)
        b.limb((0, side * 0.24, 0.45), foot, 0.19, None, "legs", caps=False)
        b.sphere((0.18, side * 0.29, 0.12), (0.24, 0.19, 0.15), paws, "paws")
        chain(b, (hand, (0, side * 0.36, 0.98)), 0.15, None, "arms")
        b.sphere(hand, 0.18, paws, "paws")
    skull(b, (0.06, 0, 1.42), head, eye=0.13, height=0.22)
    b.pair((0, 0.95 * head if headwear(b) else 0.8 * head, 1.42 + 0.62 * head), (0.1, 0.18, 0.18), ear, "ears")
    b.sphere((0.06 + 0.85 * head, 0, 1.3), (0.2, 0.2, 0.16), light, "muzzle")
    b.sphere((0.06 + 0.85 * head + 0.18, 0, 1.36), (0.06, 0.09, 0.06), BLACK, "nose")
    b.sphere((-0.45, 0, 0.5), 0.13, None, "tail")
    b.anchor(neck=(0.03, 1.1, 0.31), back=(-0.44, 0.82, 0.44), waist=(0, 0.62, 0.48))


@noun("pig", "animals", 0.8, parts=("snout", "ears", "legs"), wears=WEARS)
def pig(b: Builder) -> None:
    thick, length, head = b.vary(0.46), b.vary(0.62), b.vary(0.38)
    hooves = None if "legs" in b.named_parts else b.shade(b.colour, 0.45)
    z = barrel(b, length, thick, b.vary(0.24), 0.14, b.part("legs"), hooves)
    at = (length + 0.05, 0, z + 0.2)
    skull(b, at, head, eye=0.13, spread=0.48, height=0.35)
    snout = b.part("snout", b.shade(b.colour, 0.75 if b.colour.mean() > 0.3 else 2.0))
    tip = at[0] + head + 0.08
    b.cylinder((tip - 0.05, 0, at[2] - 0.06), 0.21, 0.15, snout, "snout", (0, 90, 0), top=0.9)
    b.pair((tip + 0.1, 0.075, at[2] - 0.06), (0.03, 0.045, 0.06), BLACK, "nostrils")
    top = (at[0] - 0.02, (0.95 if headwear(b) else 0.7) * head, at[2] + 0.78 * head)
    b.pair(top, 0.19, b.part("ears", b.shade(b.colour, 0.65)), "ears", (-40, 25, 0), FRUSTUM, 0.0)
    b.torus((-length - 0.06, 0, z + 0.15), 0.14, 0.045, b.shade(b.colour, 0.8), "tail", (90, 0, 0))
    b.anchor(neck=(length - 0.12, z + 0.08, 0.37))


@noun("elephant", "animals", 3, parts=("ears", "blanket"), wears=("hat", "crown", "glasses", "backpack"))
def elephant(b: Builder) -> None:
    thick, head = b.vary(0.48), b.vary(0.38)
    z = barrel(b, 0.62, thick, b.vary(0.42), 0.18, None)
    at = (0.68, 0, z + 0.32)
    skull(b, at, head, eye=0.12, spread=0.55, height=0.3)
    ear = b.vary(0.4)
    spot = (at[0] - 0.1, head + 0.18, at[2] - 0.04)
    b.pair(spot, (0.07, ear * 0.8, ear), b.part("ears", b.shade(b.colour, 0.7)), "ears", (12, 0, -30))
    x, up = at[0] + head, b.chance(0.4)
    bend = (x - 0.12, 0, at[2] - 0.05), (x + 0.14, 0, at[2] - 0.2), (x + 0.2, 0, at[2] - 0.52)
    tip = (x + 0.48, 0, at[2] - 0.3) if up else (x + 0.22, 0, at[2] - 0.85)
    chain(b, (*bend, tip), 0.17, None, "trunk", top=0.87)
    root, point = (x - 0.1, 0.2, at[2] - 0.2), (x + 0.2, 0.24, at[2] - 0.36)
    b.limbs(root, point, 0.065, (0.98, 0.95, 0.86), "tusks", top=0.6, caps=False)
    chain(b, ((-0.58, 0, z + 0.1), (-0.74, 0, z - 0.35)), 0.06)
    if "blanket" in b.named_parts:
        b.sphere((-0.05, 0, z + 0.03), (0.44, thick * 1.12, thick * 1.07), b.part("blanket"), "blanket")
    b.anchor(neck=(0.5, z + 0.1, 0.36))


@noun("horse", "animals", 1.7, parts=("mane", "saddle"), wears=("hat", "crown", "scarf", "backpack", "cape", "bow"))
def horse(b: Builder) -> None:
    thick, hair = b.vary(0.36), b.shade(b.colour, 0.4 if b.colour.mean() > 0.2 else 3.0)
    z = barrel(b, 0.56, thick, b.vary(0.46), 0.12, None, hair)
    poll = (b.between(0.66, 0.76), 0, z + b.between(0.66, 0.76))
    b.limb((0.36, 0, z + 0.06), poll, 0.28, top=0.78, caps=False)
    nose = (poll[0] + 0.42, 0, poll[2] - 0.24)
    chain(b, (nose, poll), 0.175, None, "head", top=1.31)
    b.sphere((nose[0] + 0.05, 0, nose[2]), (0.17, 0.19, 0.17), b.shade(b.colour, 0.7), "muzzle")
    blaze = WHITE if b.colour.mean() < 0.75 else hair
    b.limb((poll[0] + 0.16, 0, poll[2] + 0.14), (nose[0] + 0.06, 0, nose[2] + 0.16), 0.09, blaze, "blaze")
    b.pair((poll[0] + 0.17, 0.18, poll[2] + 0.04), 0.12, WHITE, "eyes")
    b.pair((poll[0] + 0.22, 0.225, poll[2] + 0.05), 0.085, BLACK, "eyes")
    b.pair((nose[0] + 0.19, 0.09, nose[2] + 0.04), 0.055, BLACK, "nostrils")
    at = (poll[0] - 0.02, 0.19 if headwear(b) else 0.12, poll[2] + 0.27)
    b.pair(at, (0.09, 0.09, 0.14), None, "ears", (-15, 0, 0), FRUSTUM, 0.0)
    mane = b.part("mane", hair)
    b.sphere((poll[0] + 0.12, 0, poll[2] + 0.17), (0.17, 0.12, 0.1), mane, "mane", (0, 30, 0))
    for t in (0, 0.33, 0.67, 1):
        spot = (0.2 + t * (poll[0] - 0.3), 0, z + 0.3 + t * (poll[2] - z - 0.16))
        b.sphere(spot, (0.2, 0.12, 0.2), mane, "mane")
    b.limb((-0.52, 0, z + 0.14), (-0.7, 0, z - 0.02), 0.09, hair, "tail", caps=False)
    b.sphere((-0.74, 0, z - 0.28), (0.13, 0.13, 0.34), hair, "tail", (0, 8, 0))
    if "saddle" in b.named_parts:
        b.sphere((-0.08, 0, z + 0.03), (0.26, thick * 1.08, thick * 1.07), b.part("saddle"), "saddle")
        for x in (-0.3, 0.16):
            b.sphere((x, 0, z + thick), (0.08, 0.2, 0.14), b.part("saddle"), "saddle")
    b.anchor(head_top=(poll[0] - 0.02, poll[2] + 0.18, 0.3), neck=(0.52, z + 0.3, 0.29))


@noun(
    "cow",
    "animals",
    1.5,
    parts=("spots", "horns"),
    wears=("hat", "crown", "scarf", "glasses", "backpack", "cape", "bow"),
)
def cow(b: Builder) -> None:
    thick, head = b.vary(0.4), b.vary(0.32)
    z = barrel(b, 0.66, thick, b.vary(0.4), 0.12, None, (0.15, 0.13, 0.12))
    patch = b.part("spots", b.shade(b.colour, 0.3) if b.colour.mean() > 0.3 else WHITE)
    for side in (-1, 1):
        for x in (-0.36, 0.26):
            spot = (x + b.between(-0.08, 0.08), side * 0.62 * thick, z + b.between(0.1, 0.45) * thick)
            b.sphere(spot, (b.vary(0.22), 0.5 * thick, b.vary(0.22)), patch, "spots")
    at = (0.78, 0, z + 0.38)
    b.limb((0.45, 0, z + 0.1), at, 0.24, caps=False)
    skull(b, at, head, eye=0.15, spread=0.5, height=0.3)
    b.sphere((at[0] + 0.85 * head, 0, at[2] - 0.16), (0.2, 0.25, 0.17), PINK, "muzzle")
    horn, out = b.part("horns", (0.95, 0.9, 0.78)), 1.0 if headwear(b) else 0.75
    b.pair((at[0] + 0.85 * head + 0.17, 0.1, at[2] - 0.12), 0.045, BLACK, "nostrils")
    tip = (at[0], out * head + 0.22, at[2] + 0.98 * head + 0.18)
    b.limbs((at[0], out * 0.8 * head, at[2] + 0.62 * head), tip, 0.095, horn, "horns", top=0.5, caps=False)
    b.pair((at[0] - 0.08, head + 0.12, at[2] + 0.1), (0.07, 0.18, 0.1), b.shade(b.colour, 0.7), "ears", (-15, 0, 0))
    b.sphere((-0.25, 0, z - 0.85 * thick), (0.2, 0.18, 0.15), PINK, "udder")
    b.limb((-0.63, 0, z + 0.12), (-0.76, 0, z - 0.3), 0.05, None, "tail", caps=False)
    b.sphere((-0.78, 0, z - 0.36), 0.1, patch, "tail")
    b.anchor(neck=(0.62, z + 0.14, 0.33))
