"""Functions (recipes) that build the parts of procedural small animals: rabbit, birds, frog, turtle and fish.

They face +x.
"""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import HEADWEAR, noun
from threedgen.toybox.world.primitives import FRUSTUM, TORUS

from .animals import BILL, BLACK, PINK, WEARS, WHITE, chain, egg, headwear, skull


@noun("rabbit", "animals", 0.3, parts=("ears", "belly"), wears=WEARS)
def rabbit(b: Builder) -> None:
    head, ear, long = b.vary(0.4), b.part("ears", b.shade(b.colour, 0.75)), b.vary(0.3)
    egg(b, 0.48, 0.5, 0.27)
    b.sphere((0.16, 0, 0.47), (0.37, 0.36, 0.38), b.part("belly", b.shade(b.colour, 1.8)), "belly")
    b.pair((0.3, 0.26, 0.1), (0.32, 0.14, 0.11), None, "feet")
    for side in (-1, 1):
        chain(b, ((0.3, side * 0.3, 0.72), (0.46, side * 0.15, 0.55)), 0.1, None, "arms")
    b.sphere((-0.5, 0, 0.24), 0.2, WHITE, "tail")
    skull(b, (0.08, 0, 1.15), head)
    b.pair((0.08 + 0.85 * head, 0.09, 1.07), (0.12, 0.12, 0.1), WHITE, "cheeks")
    b.sphere((0.12 + head, 0, 1.14), 0.09, PINK, "nose")
    b.box((0.1 + head, 0, 0.97), (0.04, 0.08, 0.08), WHITE, "teeth")
    if headwear(b):
        b.pair((-0.05, head + 0.08, 1.0), (0.14, 0.09, long), ear, "ears", (14, 0, 0))
    else:
        b.pair((0.0, 0.2, 1.4 + long), (0.1, 0.17, long + 0.08), ear, "ears", (-b.between(8, 22), b.between(-20, 0), 0))
    b.anchor(neck=(0.03, 0.85, 0.33))


@noun("duck", "animals", 0.4, parts=("beak", "wings"), wears=(*HEADWEAR, "scarf", "glasses", "bow"))
def duck(b: Builder) -> None:
    length, wide, head = b.vary(0.6), b.vary(0.42), b.vary(0.32)
    b.sphere((0, 0, 0.5), (length, wide, 0.38))
    b.cone((-length * 0.85, 0, 0.72), 0.26, 0.26, None, "tail", (0, -50, 0))
    at = (length * 0.68, 0, b.vary(1.18, 0.05))
    b.limb((length * 0.55, 0, 0.6), at, 0.22, caps=False)
    skull(b, at, head, eye=0.15, spread=0.5, height=0.3)
    bill = b.part("beak", BILL)
    b.sphere((at[0] + head + 0.08, 0, at[2] - 0.05), (0.26, 0.2, 0.08), bill, "beak", (0, -8, 0))
    b.sphere((at[0] + head + 0.02, 0, at[2] - 0.14), (0.2, 0.16, 0.06), b.shade(bill, 0.8), "beak", (0, 8, 0))
    wing = b.part("wings", b.shade(b.colour, 0.75))
    b.pair((-0.1, wide * 0.95, 0.56), (0.38, 0.1, 0.24), wing, "wings", (-10, b.between(-5, 20), 0))
    b.pair((0.1, 0.2, 0.07), (0.24, 0.16, 0.07), BILL, "feet")
    b.pair((0, 0.18, 0.15), (0.06, 0.06, 0.14), BILL, "feet", kind=FRUSTUM)
    b.anchor(neck=(length * 0.63, 0.83, 0.24), back=(-0.1, 0.87, wide), waist=(0, 0.5, wide))


@noun("penguin", "animals", 0.8, parts=("belly", "feet"), wears=(*WEARS, "belt"))
def penguin(b: Builder) -> None:
    wide, tall = b.vary(0.46, 0.05), b.vary(0.62, 0.05)
    orange = b.part("feet", BILL)
    egg(b, wide, tall, 0.33)
    b.sphere((0.13, 0, tall * 0.88), (wide * 0.8, wide * 0.8, tall * 0.8), b.part("belly", WHITE), "belly")
    at, head = (0.04, 0, 2 * tall + 0.1), b.vary(0.38, 0.05)
    skull(b, at, head, height=0.2)
    b.cone((at[0] + head + 0.1, 0, at[2] - 0.06), 0.15, b.vary(0.17), BILL, "beak", (0, 95, 0))
    spread = b.between(12, 50)
    spot = (0, wide + 0.2 * spread / 50 + 0.02, tall * 1.1)
    b.pair(spot, (0.16, 0.08, 0.4), b.shade(b.colour, 0.8), "flippers", (spread, 0, 0))
    b.pair((0.2, 0.24, 0.05), (0.3, 0.19, 0.09), orange, "feet")
    b.cone((-wide - 0.02, 0, 0.2), 0.16, 0.2, None, "tail", (0, -70, 0))
    b.anchor(neck=(0.02, 2 * tall - 0.2, 0.32))


@noun(
    "owl",
    "animals",
    0.3,
    parts=("belly", "wings"),
    wears=("hat", "crown", "headphones", "glasses", "scarf", "bow", "backpack"),
)
def owl(b: Builder) -> None:
    wide, tall = b.vary(0.52, 0.05), b.vary(0.68, 0.05)
    egg(b, wide, tall, 0.44)
    belly = b.part("belly", b.shade(b.colour, 1.7))
    b.sphere((0.14, 0, tall * 0.7), (wide * 0.82, wide * 0.72, tall * 0.62), belly, "belly")
    z, x = 1.55 * tall, wide * 0.74
    b.sphere((0, 0, z), (wide * 0.92, wide * 1.05, 0.4), None, "head")
    iris = b.pick((0.98, 0.75, 0.1), (0.98, 0.55, 0.1))
    for side in (-1, 1):
        for depth, radius, tint in ((0, 0.25, b.shade(b.colour, 2.4)), (0.05, 0.19, iris), (0.1, 0.1, BLACK)):
            b.cylinder((x + depth, side * 0.22, z + 0.05), radius, 0.08, tint, "eyes", (0, 88, side * 10))
        b.cone((-0.02, side * 0.38, z + 0.42), 0.16, 0.2, b.shade(b.colour, 0.7), "tufts", (-side * 25, 0, 0))
        b.box((0.26, side * 0.2, 0.04), (0.16, 0.13, 0.06), BILL, "feet")
    b.cone((x + 0.2, 0, z - 0.16), 0.11, 0.15, BILL, "beak", (0, 150, 0))
    at = (-0.06, wide * 0.98, tall * 0.85)
    b.pair(at, (0.34, 0.1, 0.5), b.part("wings", b.shade(b.colour, 0.6)), "wings", (8, 10, 0))
    b.box((-wide - 0.02, 0, 0.16), (0.1, 0.2, 0.2), b.shade(b.colour, 0.6), "tail", (0, 25, 0))
    b.anchor(head_top=(-0.02, z + 0.36, 0.36), head=(0, z, wide), eyes=(x + 0.14, z + 0.05, 0.52))
    b.anchor(neck=(0.02, 1.0 * tall, 0.45))


@noun("frog", "animals", 0.1, parts=("belly", "legs"), wears=("hat", "crown", "scarf", "backpack", "bow"))
def frog(b: Builder) -> None:
    wide, limb = b.vary(0.52, 0.05), b.part("legs", b.shade(b.colour, 0.8))
    b.sphere((-0.1, 0, 0.4), (0.56, wide, 0.38), None, "body", (0, -22, 0))
    b.sphere((0.2, 0, 0.72), (0.42, 0.52, 0.28), None, "head")
    b.sphere((0.1, 0, 0.36), (0.4, wide * 0.82, 0.3), b.part("belly", b.shade(b.colour, 1.9)), "belly", (0, -22, 0))
    b.sphere((0.3, 0, 0.66), (0.34, 0.46, 0.045), BLACK, "mouth", (0, -4, 0))
    b.pair((0.24, 0.3, 0.95), 0.19, None, "eyes")
    b.pair((0.32, 0.31, 0.98), 0.145, WHITE, "eyes")
    b.pair((0.41, 0.32, 0.99), 0.085, BLACK, "eyes")
    b.pair((-0.22, wide + 0.06, 0.26), (0.36, 0.17, 0.25), limb, "legs", (0, -25, 0))
    b.pair((0.12, wide + 0.2, 0.06), (0.32, 0.17, 0.075), limb, "legs", (0, 0, 25))
    b.limbs((0.3, 0.34, 0.42), (0.42, 0.38, 0.1), 0.095, limb, "legs", caps=False)
    b.pair((0.5, 0.4, 0.05), (0.18, 0.14, 0.06), limb, "legs", (0, 0, 20))
    b.anchor(head_top=(0.02, 0.96, 0.3), head=(0.2, 0.72, 0.5))
    b.anchor(neck=(0.14, 0.5, 0.38), back=(-0.3, 0.68, 0.4), waist=(-0.25, 0.3, 0.5))


@noun("turtle", "animals", 0.3, parts=("shell",), wears=("hat", "crown", "helmet", "scarf", "glasses"))
def turtle(b: Builder) -> None:
    long, wide, tall, head = b.vary(0.58), b.vary(0.56), b.vary(0.62), b.vary(0.34)
    shell = b.part("shell", b.shade(b.colour, 0.55))
    b.dome((0, 0, 0.3), (long, wide, tall), shell, "shell")
    b.add(TORUS, (0, 0, 0.31), (long * 1.1, wide * 1.1, 0.55), b.shade(b.colour, 1.3), "rim", param=0.16)
    b.sphere((0, 0, 0.28), (long, wide, 0.16), b.shade(b.colour, 1.6), "belly")
    plates = b.shade(shell, 0.7 if shell.mean() > 0.2 else 1.6)
    for a in range(0, 360, 60):
        c, s = np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a))
        b.sphere((0.68 * long * c, 0.68 * wide * s, 0.3 + 0.66 * tall), 0.12, plates, "shell")
    b.sphere((0, 0, 0.3 + 0.93 * tall), (0.2, 0.2, 0.1), plates, "shell")
    for x in (-0.48, 0.48):
        for side in (-1, 1):
            chain(b, ((x, side * 0.36, 0.28), (x * 1.2, side * 0.52, 0.13)), 0.17, None, "legs")
    at = (long + b.between(0.18, 0.26), 0, b.between(0.62, 0.72))
    b.limb((long * 0.7, 0, 0.34), at, 0.17, None, "head", caps=False)
    skull(b, at, head)
    b.sphere((at[0] + 0.8 * head, 0, at[2] - 0.3 * head), (0.13, 0.15, 0.09), b.shade(b.colour, 1.3), "snout")
    b.cone((-long - 0.12, 0, 0.27), 0.1, 0.16, None, "tail", (0, -95, 0))
    b.anchor(neck=(at[0] - 0.08, at[2] - 0.22, 0.25), back=(0, 0.3 + tall, wide), waist=(0, 0.3, wide))


@noun("fish", "animals", 0.2, parts=("fins", "stripes"), wears=("hat", "crown"))
def fish(b: Builder) -> None:
    long, wide, tall = b.vary(0.62), b.vary(0.32), b.vary(0.46)
    fin = b.part("fins", b.shade(b.colour, 0.6))
    b.sphere((0, 0, 0), (long, wide, tall))
    for sign in (-1, 1):
        b.sphere((-long - 0.2, 0, sign * 0.22), (0.32, 0.08, 0.17), fin, "fins", (0, sign * 42, 0))
    if not headwear(b):
        b.sphere((-0.08, 0, tall * 0.98), (0.34, 0.07, 0.22), fin, "fins", (0, 12, 0))
    b.sphere((-0.1, 0, -tall), (0.22, 0.07, 0.16), fin, "fins", (0, -20, 0))
    b.pair((0.02, wide + 0.1, -0.12), (0.22, 0.06, 0.15), fin, "fins", (-20, -20, 40))
    b.pair((long * 0.56, wide * 0.7, 0.12), 0.16, WHITE, "eyes")
    b.pair((long * 0.65, wide * 0.7 + 0.09, 0.13), 0.1, BLACK, "eyes")
    b.torus((long * 0.98, 0, -0.06), 0.15, 0.08, (0.95, 0.45, 0.4), "mouth", (0, 90, 0))
    if "stripes" in b.named_parts or b.chance(0.4):
        stripe = b.part("stripes", b.shade(b.colour, 1.8 if b.colour.mean() < 0.7 else 0.6))
        for x in (-0.6, -0.1, 0.32) if "stripes" in b.named_parts else (-0.5, 0.08):
            girth = np.sqrt(1 - x * x) + 0.035
            b.add(FRUSTUM, (x * long, 0, 0), (tall * girth, wide * girth, 0.1), stripe, "stripes", (0, 90, 0))
    b.anchor(head_top=(0.05, tall * 0.92, 0.3))
