"""Functions (recipes) that build the parts of procedural toys and presents."""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import noun
from threedgen.toybox.world.primitives import TORUS

DARK = (0.08, 0.08, 0.10)
LIGHT = (0.95, 0.93, 0.86)


@noun("ball", "toys", 0.22, front=False, parts=("stripe", "stars"))
def ball(b: Builder) -> None:
    b.sphere((0, 0, 0), 0.8)
    stripe = b.part("stripe", b.shade(b.colour, b.pick(0.5, 2.2)))
    b.cylinder((0, 0, 0), 0.81, 0.14, stripe, "stripe", (b.between(-40, 40), b.between(-40, 40), 0))
    if "stars" in b.named_parts:
        for k in range(10):
            a, z = 2 * np.pi * k / 5 + 0.6 * (k // 5), 0.48 if k < 5 else -0.48
            r = np.sqrt(0.64 - z * z)
            b.sphere((r * np.cos(a), r * np.sin(a), z), 0.17, b.named_parts["stars"], "stars")


@noun("balloon", "toys", 0.4, front=False, parts=("string", "stripe"))
def balloon(b: Builder) -> None:
    r = b.vary(0.62)
    b.sphere((0, 0, 0.3), (r, r, 1.12 * r))
    b.cylinder((0, 0, 0.3 - 0.95 * r), 0.6 * r, 0.32 * r, rotate=(180, 0, 0), top=0.1)
    b.cone((0, 0, 0.3 - 1.35 * r), 0.17, 0.12)
    string = b.part("string", LIGHT)
    z = 0.3 - 1.35 * r
    wave = [(0.0, 0.12 * np.sin(2.2 * k), z - 0.24 * k) for k in range(4)]
    for p, q in zip(wave, wave[1:], strict=False):
        b.limb(p, q, 0.06, string, "string")
    if "stripe" in b.named_parts:
        b.cylinder((0, 0, 0.32), 1.02 * r, 0.16, b.named_parts["stripe"], "stripe")


@noun("dice", "toys", 0.016, front=True, parts=("dots",))
def dice(b: Builder) -> None:
    b.box((0, 0, 0), 0.6)
    dots = b.part("dots", LIGHT if b.colour.mean() < 0.5 else DARK)
    places = {
        1: [(0, 0)], 2: [(-1, -1), (1, 1)], 3: [(-1, -1), (0, 0), (1, 1)], 4: [(-1, -1), (-1, 1), (1, -1), (1, 1)],
        5: [(-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0)], 6: [(x, y) for x in (-1, 1) for y in (-1, 0, 1)],
    }  # fmt: skip
    sides = [(0, 1, 1), (0, -1, 6), (1, 1, 2), (1, -1, 5), (2, 1, 3)]
    for axis, sign, count in sides:
        others = [k for k in range(3) if k != axis]
        for u, v in places[count]:
            at, size = np.zeros(3), np.full(3, 0.22 if count == 1 else 0.135)
            at[axis], size[axis] = sign * 0.6, 0.03
            at[others[0]], at[others[1]] = 0.34 * u, 0.34 * v
            b.sphere(at, size, dots, "dots")


@noun("drum", "toys", 0.4, front=False, parts=("sticks", "rims"))
def drum(b: Builder) -> None:
    r, half = b.vary(0.66), b.vary(0.42)
    b.cylinder((0, 0, 0), r, half)
    rims = b.part("rims", b.shade(b.colour, 0.45))
    for z in (-half, half):
        b.torus((0, 0, z), 1.08 * r, 0.11, rims, "rims")
    b.cylinder((0, 0, half + 0.03), 0.92 * r, 0.03, LIGHT, "skin")
    sticks = b.part("sticks", (0.7, 0.5, 0.28))
    b.limbs((0.25, 0.18, half + 0.16), (-0.45, 0.72, half + 0.6), 0.075, sticks, "sticks")
    b.pair((0.25, 0.18, half + 0.16), 0.13, sticks, "sticks")


@noun("guitar", "toys", 1, front=True, parts=("neck",))
def guitar(b: Builder) -> None:
    r = b.vary(0.5)
    flat = (0, 90, 0)
    b.cylinder((0, 0, -0.55), r, 0.17, rotate=flat)
    b.cylinder((0, 0, 0.02), 0.72 * r, 0.17, rotate=flat)
    b.cylinder((0.16, 0, -0.32), 0.36 * r, 0.03, DARK, "hole", flat)
    b.box((0.18, 0, -0.78), (0.05, 0.2, 0.06), DARK, "bridge")
    b.limb((-0.1, 0, -0.3), (-0.55, 0, -0.55 - r), 0.06, DARK, "stand")
    neck = b.part("neck", b.shade(b.colour, 0.4))
    b.box((0.12, 0, 0.68), (0.08, 0.1, 0.5), neck, "neck")
    b.box((0.1, 0, 1.28), (0.08, 0.17, 0.16), neck, "neck")
    for z in (1.2, 1.36):
        b.pair((0.1, 0.22, z), 0.07, LIGHT, "pegs")


@noun("present", "toys", 0.3, front=False, parts=("ribbon",))
def present(b: Builder) -> None:
    x, y, z = b.vary(0.6, 0.12), b.vary(0.6, 0.12), b.vary(0.5, 0.15)
    b.box((0, 0, 0), (x, y, z))
    ribbon = b.part("ribbon", b.shade(b.colour, b.pick(0.4, 2.6)))
    b.box((0, 0, 0), (x + 0.02, 0.13, z + 0.02), ribbon, "ribbon")
    b.box((0, 0, 0), (0.13, y + 0.02, z + 0.021), ribbon, "ribbon")
    b.pair((0, 0.24, z + 0.17), 0.26, ribbon, "ribbon", (0, 90, 0), TORUS, 0.1 / 0.26)
    b.sphere((0, 0, z + 0.12), 0.14, ribbon, "ribbon")
