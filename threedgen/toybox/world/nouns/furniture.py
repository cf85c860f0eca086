"""Functions (recipes) that build the parts of procedural furniture.

Backs are at -x, fronts face +x, and the floor is at z = 0.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder, Colour
from threedgen.toybox.world.grammar import noun
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM

from .buildings import ACROSS, ALONG_X, WOOD, contrast

BOOKS = (
    (0.75, 0.15, 0.12), (0.15, 0.3, 0.6), (0.9, 0.75, 0.3), (0.2, 0.45, 0.25), (0.85, 0.85, 0.8), (0.45, 0.2, 0.45),
)  # fmt: skip


def four_legs(b: Builder, x: float, y: float, height: float, radius: float, colour: Colour, spread=0.0) -> None:
    square = b.chance(0.5) and not spread
    for sx in (-1, 1):
        if square:
            b.pair((sx * x, y, height / 2), (radius, radius, height / 2), colour, "legs", kind=BOX)
        else:
            foot = (sx * (x + spread), y + spread, 0)
            b.limbs((sx * x, y, height), foot, radius * 1.1, colour, "legs", top=0.85, caps=False)


def pillow(b: Builder, at, size, colour: Colour, label: str, rotate=(0, 0, 0)) -> None:
    x, y, z = size
    b.sphere(at, (x * 1.1, y * 1.12, z * 1.15), colour, label, rotate)
    b.box(at, (x * 0.72, y * 0.86, z * 0.86), colour, label, rotate)


@noun("chair", "furniture", 0.9, parts=("legs", "cushion"))
def chair(b: Builder) -> None:
    half, seat, thick = b.vary(0.42), b.vary(0.55), 0.07
    back = b.vary(0.72)
    four_legs(b, half * 0.82, half * 0.82, seat, 0.075, b.part("legs", b.shade(b.colour, 0.7)))
    b.box((0, 0, seat + thick), (half, half, thick))
    top, x = seat + 2 * thick, -half + 0.06
    if b.chance(0.5):
        b.box((x, 0, top + back / 2), (0.06, half, back / 2))
    else:  # two posts and two boards
        b.pair((x, half - 0.07, top + back / 2), (0.06, 0.07, back / 2), kind=BOX)
        for z, tall in ((0.82, 0.17), (0.38, 0.12)):
            b.box((x, 0, top + back * z), (0.05, half, tall))
    if b.chance(0.3):
        b.pair((-0.05, half - 0.05, top + 0.25), (half * 0.8, 0.06, 0.05), kind=BOX)
        b.pair((half * 0.55, half - 0.05, top + 0.11), (0.06, 0.055, 0.12), kind=BOX)
    if "cushion" in b.named_parts or b.chance(0.2):
        cushion = b.part("cushion", contrast(b.colour, (0.93, 0.88, 0.75), (0.5, 0.15, 0.15)))
        pillow(b, (0.04, 0, top + 0.08), (half * 0.85, half * 0.8, 0.1), cushion, "cushion")
        b.box((x + 0.07, 0, top + back * 0.55), (0.06, half * 0.68, back * 0.33), cushion, "cushion")


@noun("table", "furniture", 0.75, front=False, parts=("legs",))
def table(b: Builder) -> None:
    long, wide, height = b.vary(0.72), b.vary(0.6), b.vary(0.62)
    legs = b.part("legs", b.shade(b.colour, 0.75))
    kind = b.pick("square", "square", "round", "pedestal")
    if kind == "square":
        b.box((0, 0, height + 0.07), (long, wide, 0.075))
        b.box((0, 0, height - 0.06), (long * 0.85, wide * 0.85, 0.07), b.shade(b.colour, 0.9))
        four_legs(b, long * 0.84, wide * 0.84, height, 0.085, legs)
    else:
        b.cylinder((0, 0, height + 0.07), long, 0.08)
        b.cylinder((0, 0, height - 0.05), long * 0.8, 0.06, b.shade(b.colour, 0.9))
        if kind == "round":
            four_legs(b, long * 0.5, long * 0.5, height, 0.085, legs, b.pick(0.0, 0.06))
        else:
            b.cylinder((0, 0, height / 2), 0.13, height / 2, legs, "legs", top=0.9)
            b.cylinder((0, 0, 0.07), long * 0.52, 0.08, legs, "legs", top=0.5)


@noun("lamp", "furniture", 0.5, front=False, parts=("shade", "base"))
def lamp(b: Builder) -> None:
    foot, shade, rise = b.vary(0.34), b.vary(0.52), b.vary(0.27)
    base, cover = b.part("base"), b.part("shade", b.shade(b.colour, 1.25))
    kind = b.pick("vase", "ball", "column")
    if kind == "vase":
        b.sphere((0, 0, 0.34), (foot, foot, 0.36), base, "base")
        b.cylinder((0, 0, 0.06), foot * 0.7, 0.06, base, "base")
    elif kind == "ball":
        b.cylinder((0, 0, 0.06), foot * 1.05, 0.06, base, "base", top=0.85)
        b.sphere((0, 0, 0.38), foot * 0.95, base, "base")
    else:
        b.cylinder((0, 0, 0.08), foot * 1.2, 0.09, base, "base", top=0.7)
        b.cylinder((0, 0, 0.4), foot * 0.55, 0.33, base, "base", top=0.8)
    b.cylinder((0, 0, 0.76), 0.08, 0.14, (0.8, 0.68, 0.35), "neck")
    b.cylinder((0, 0, 0.82 + rise), shade, rise, cover, "shade", top=b.between(0.5, 0.8))
    b.sphere((0, 0, 0.8), 0.13, (1.0, 0.95, 0.7), "bulb")
    b.sphere((0, 0, 0.84 + 2 * rise), 0.06, (0.8, 0.68, 0.35), "neck")


@noun("bed", "furniture", 1, parts=("blanket", "pillows"))
def bed(b: Builder) -> None:
    length, width, low = b.vary(0.82), b.vary(0.52), b.vary(0.26)
    blanket = b.part("blanket", b.shade(b.colour, b.pick(0.75, 1.3)))
    b.box((0, 0, low), (length, width, 0.12))
    four_legs(b, length * 0.88, width * 0.85, low, 0.09, b.shade(b.colour, 0.6))
    b.box((-length * 0.02, 0, low + 0.19), (length * 0.95, width * 0.94, 0.11), (0.95, 0.95, 0.93), "mattress")
    b.box((length * 0.28, 0, low + 0.2), (length * 0.67, width * 1.03, 0.15), blanket, "blanket")
    head = b.vary(0.56)
    b.box((-length, 0, low + head / 2 + 0.1), (0.07, width * 1.05, head / 2 + 0.22))
    if b.chance(0.5):
        b.cylinder((-length, 0, low + head + 0.3), width * 0.6, 0.068, None, "body", ALONG_X)
    b.box((length, 0, low + 0.05), (0.07, width * 1.05, 0.2))
    pillows = b.part("pillows", (0.98, 0.98, 0.98))
    for y in (-1, 1):
        at = (-length * 0.68, y * width * 0.47, low + 0.42)
        pillow(b, at, (0.24, width * 0.4, 0.14), pillows, "pillows", (0, 25, 0))


@noun("sofa", "furniture", 0.9, parts=("cushions",))
def sofa(b: Builder) -> None:
    depth, width, seat = b.vary(0.42), b.vary(0.8), b.vary(0.3)
    cushions = b.part("cushions", b.shade(b.colour, 1.3))
    foot = b.vary(0.22)
    four_legs(b, depth * 0.82, width * 0.86, foot + 0.02, 0.12, b.part("legs", WOOD))
    z = foot + seat / 2
    b.box((0, 0, z), (depth, width, seat / 2))
    b.box((-depth + 0.1, 0, foot + 0.42), (0.14, width, 0.42))
    b.cylinder((-depth + 0.1, 0, foot + 0.84), 0.14, width, None, "body", (90, 0, 0))
    b.pair((0.02, width, foot + 0.28), (depth, 0.13, 0.28), kind=BOX)
    b.pair((0.02, width, foot + 0.56), (0.13, 0.13, depth), None, "body", ALONG_X, FRUSTUM)
    count = b.pick(2, 3)
    half = (width - 0.14) / count
    for k in range(count):
        y = (2 * k + 1 - count) * half
        b.box((0.09, y, foot + seat + 0.06), (depth * 0.85, half - 0.015, 0.09), cushions, "cushions")
        pillow(b, (-depth + 0.34, y, foot + seat + 0.33), (0.12, half * 0.85, 0.2), cushions, "cushions", (0, -15, 0))


@noun("bookshelf", "furniture", 2, parts=("books",))
def bookshelf(b: Builder) -> None:
    width, depth, height, rows = b.vary(0.52), b.vary(0.26), b.vary(1.35), b.pick(3, 3, 4)
    b.box((-depth + 0.03, 0, height / 2), (0.05, width, height / 2))
    b.pair((0, width, height / 2), (depth, 0.07, height / 2 + 0.03), kind=BOX)
    b.box((0.14, 0, 0.05), (depth, width, 0.1), b.shade(b.colour, 0.7), "plinth")
    b.box((0.08, 0, height + 0.05), (depth, width * 1.05, 0.06), b.shade(b.colour, 0.7), "cornice")
    gap = height / rows
    for k in range(rows + 1):
        b.box((0.01, 0, k * gap), (depth, width, 0.055))
    room = 2 * (width - 0.08)
    for k in range(rows):
        share = np.array([b.between(0.6, 1.4) for _ in range(b.pick(2, 3))])
        left = -width + 0.08
        for w in share / share.sum() * room * b.pick(0.75, 1.0, 1.0):
            tall = (gap - 0.11) * b.between(0.66, 0.92) / 2
            at = (-0.02, left + w / 2, k * gap + 0.05 + tall)
            b.box(at, (depth * 0.8, w / 2 - 0.01, tall), b.part("books", b.pick(*BOOKS)), "books")
            left += w


def dial(b: Builder, x: float, z: float, radius: float, scale: float = 1.0) -> None:
    face = b.part("face", (0.97, 0.95, 0.88))
    ink = contrast(face, (0.97, 0.97, 0.97), (0.06, 0.06, 0.06))
    b.cylinder((x, 0, z), radius * 1.13, 0.03, contrast(b.colour, (0.85, 0.68, 0.25), (0.45, 0.3, 0.1)), "rim", ALONG_X)
    b.cylinder((x, 0, z), radius, 0.05, face, "face", ALONG_X)
    for k in range(4):
        a = np.pi / 2 * k
        spot = (x + 0.05, 0.82 * radius * np.cos(a), z + 0.82 * radius * np.sin(a))
        b.box(spot, (0.02, 0.04 * scale, 0.04 * scale), ink, "marks")
    for long, thick in ((0.62, 0.04), (0.42, 0.05)):
        turn = b.between(0, 360)
        a = np.deg2rad(turn)
        at = (x + 0.06, radius * long / 2 * np.cos(a), z + radius * long / 2 * np.sin(a))
        b.box(at, (0.015 + thick / 5, radius * long / 2 + 0.02, thick * scale), ink, "hands", (turn, 0, 0))


@noun("clock", "furniture", 0.3, parts=("face",))
def clock(b: Builder) -> None:
    kind = b.pick("mantel", "grandfather", "alarm")
    if kind == "mantel":
        width, depth, half = b.vary(0.55), b.vary(0.24), b.vary(0.45)
        b.box((0, 0, half + 0.1), (depth, width, half))
        b.box((0.09, 0, 0.08), (depth * 1.3, width * 1.15, 0.09), b.shade(b.colour, 0.7), "base")
        if b.chance(0.5):
            size = (width * 1.15, depth * 1.12, 0.16)
            b.prism((0, 0, 2 * half + 0.25), size, b.shade(b.colour, 0.8), "top", ACROSS)
        else:
            b.cylinder((0, 0, 2 * half + 0.1), width, depth, None, "body", ALONG_X)
        dial(b, depth, half + 0.13, min(width, half) * 0.82, 1.2)
    elif kind == "grandfather":
        width, depth = b.vary(0.33), b.vary(0.24)
        b.box((0.08, 0, 0.18), (depth * 1.25, width * 1.15, 0.18), b.shade(b.colour, 0.8), "base")
        b.box((0, 0, 0.7), (depth, width * 0.85, 0.45))
        b.box((0, 0, 1.35), (depth * 1.1, width * 1.15, 0.36))
        b.prism((0, 0, 1.82), (width * 1.25, depth * 1.15, 0.13), b.shade(b.colour, 0.8), "top", ACROSS)
        dial(b, depth * 1.1, 1.36, width * 0.95)
        b.box((depth, 0, 0.72), (0.02, width * 0.5, 0.3), (0.12, 0.09, 0.07), "case")
        b.box((depth + 0.02, 0, 0.82), (0.02, 0.03, 0.2), (0.9, 0.72, 0.25), "pendulum")
        b.cylinder((depth + 0.02, b.between(-0.04, 0.04), 0.58), 0.1, 0.035, (0.9, 0.72, 0.25), "pendulum", ALONG_X)
    else:
        radius, depth, metal = b.vary(0.52), b.vary(0.22), (0.78, 0.78, 0.8)
        z = radius + 0.14
        b.cylinder((0, 0, z), radius, depth, None, "body", ALONG_X)
        b.torus((depth - 0.02, 0, z), radius * 1.05, 0.07, b.shade(b.colour, 0.8), "body", ALONG_X)
        at = (0, radius * 0.6, z - radius * 0.7)
        b.limbs(at, (0, radius * 0.85, 0.03), 0.08, b.shade(b.colour, 0.6), "feet")
        b.pair((0, radius * 0.58, z + radius * 0.9), (0.26, 0.26, 0.22), metal, "bells", (-32, 0, 0), DOME)
        b.limb((0, 0, z + radius), (0, 0, z + radius + 0.25), 0.05, metal, "bells")
        b.cylinder((-depth - 0.08, 0, z), 0.2, 0.09, metal, "winder", ALONG_X)
        dial(b, depth, z, radius * 0.8, 1.2)
