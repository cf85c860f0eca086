"""Functions (recipes) that build the parts of procedural household objects and tools."""

import numpy as np

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import noun

STEEL = (0.66, 0.68, 0.72)
WOOD = (0.60, 0.40, 0.20)
DARK = (0.08, 0.08, 0.10)


@noun("mug", "household", 0.1, front=False, parts=("handle", "stripe"))
def mug(b: Builder) -> None:
    r, half = b.vary(0.55), b.vary(0.6)
    b.cylinder((0, 0, 0), r, half, top=b.vary(1.0, 0.05))
    b.cylinder((0, 0, half + 0.005), 0.85 * r, 0.01, b.shade(b.colour, 0.35), "inside")
    b.torus((0, r + 0.12, 0), 0.42, 0.11, b.part("handle"), "handle", (0, 90, 0))
    if "stripe" in b.named_parts:
        b.cylinder((0, 0, 0), 1.04 * r, 0.16, b.named_parts["stripe"], "stripe")


@noun("teapot", "household", 0.2, front=True, parts=("handle", "lid"))
def teapot(b: Builder) -> None:
    r = b.vary(0.62)
    b.sphere((0, 0, 0), (r, r, 0.85 * r))
    b.cylinder((0, 0, -0.72 * r), 0.6 * r, 0.1 * r)
    b.limb((0.75 * r, 0, -0.1 * r), (1.6 * r, 0, 0.74 * r), 0.24 * r, top=0.7)
    b.sphere((1.6 * r, 0, 0.75 * r), 0.13 * r, b.shade(b.colour, 0.3 if b.colour.mean() > 0.2 else 4.0), "spout")
    handle = b.part("handle", b.shade(b.colour, 0.6 if b.colour.mean() > 0.2 else 2.5))
    b.torus((-1.12 * r, 0, 0.05), 0.55 * r, 0.15 * r, handle, "handle", (90, 0, 0))
    lid = b.part("lid", b.shade(b.colour, 0.7))
    b.dome((0, 0, 0.66 * r), (0.62 * r, 0.62 * r, 0.3 * r), lid, "lid")
    b.sphere((0, 0, 1.04 * r), 0.15 * r, lid, "lid")


@noun("bottle", "household", 0.3, front=False, parts=("cap", "label"))
def bottle(b: Builder) -> None:
    r, half, neck = b.vary(0.42), b.vary(0.55), b.vary(0.3)
    b.cylinder((0, 0, 0), r, half)
    b.cylinder((0, 0, half + 0.17), r, 0.17, top=0.4)
    b.cylinder((0, 0, half + 0.34 + neck / 2), 0.4 * r, neck / 2)
    b.cylinder((0, 0, half + 0.34 + neck + 0.06), 0.52 * r, 0.12, b.part("cap", DARK), "cap")
    b.cylinder((0, 0, -0.05), 1.03 * r, 0.5 * half, b.part("label", b.shade(b.colour, 2.4)), "label")


@noun("bucket", "household", 0.35, front=False, parts=("handle", "stripe"))
def bucket(b: Builder) -> None:
    r, half = b.vary(0.62), b.vary(0.52)
    b.cylinder((0, 0, 0), r, half, rotate=(180, 0, 0), top=0.7)
    b.torus((0, 0, half), 1.08 * r, 0.08, b.shade(b.colour, 0.8))
    b.cylinder((0, 0, half + 0.005), 0.9 * r, 0.01, b.shade(b.colour, 0.3), "inside")
    handle = b.part("handle", STEEL)
    arc = [(0.0, r * np.cos(a), half + 0.85 * r * np.sin(a)) for a in np.linspace(0, np.pi, 7)]
    for p, q in zip(arc, arc[1:], strict=False):
        b.limb(p, q, 0.075, handle, "handle")
    if "stripe" in b.named_parts:
        b.cylinder((0, 0, 0.05), 0.93 * r, 0.16, b.named_parts["stripe"], "stripe", (180, 0, 0), 0.9)


@noun("hammer", "household", 0.3, front=True, parts=("handle",))
def hammer(b: Builder) -> None:
    half = b.vary(0.62)
    b.cylinder((0, 0, -0.15), 0.13, half, b.part("handle", WOOD), "handle")
    z = half
    b.box((-0.05, 0, z), (0.3, 0.22, 0.22))
    b.cylinder((0.45, 0, z), 0.26, 0.2, rotate=(0, 90, 0))
    b.prism((-0.6, 0, z), (0.22, 0.2, 0.32), rotate=(0, -90, 0))


@noun("umbrella", "household", 1, front=False, parts=("handle", "tip"))
def umbrella(b: Builder) -> None:
    r = b.vary(0.9)
    b.dome((0, 0, 0), (r, r, b.vary(0.55)))
    ring = [k * np.pi / 4 for k in range(8)]
    for a in ring:
        b.sphere((0.93 * r * np.cos(a), 0.93 * r * np.sin(a), 0.02), (0.12, 0.12, 0.1), b.shade(b.colour, 0.75))
    handle = b.part("handle", WOOD)
    b.cylinder((0, 0, -0.42), 0.075, 0.5, handle, "handle")
    hook = [(0.0, 0.17 - 0.17 * np.cos(a), -0.9 - 0.17 * np.sin(a)) for a in np.linspace(0, np.pi, 5)]
    for p, q in zip(hook, hook[1:], strict=False):
        b.limb(p, q, 0.085, handle, "handle")
    b.cone((0, 0, 0.68), 0.1, 0.18, b.part("tip", DARK), "tip")


@noun("candle", "household", 0.2, front=False, parts=("flame", "plate"))
def candle(b: Builder) -> None:
    r, half = b.vary(0.27), b.vary(0.6)
    b.cylinder((0, 0, 0), r, half)
    for _ in range(3):
        a = b.between(0, 2 * np.pi)
        at = (r * np.cos(a), r * np.sin(a), half - b.between(0.05, 0.3))
        b.sphere(at, (0.1, 0.1, 0.22), b.shade(b.colour, 1.3), "wax")
    b.cylinder((0, 0, half + 0.06), 0.04, 0.08, DARK, "wick")
    flame = b.part("flame", (1.0, 0.72, 0.15))
    b.sphere((0, 0, half + 0.26), (0.16, 0.16, 0.17), flame, "flame")
    b.cone((0, 0, half + 0.48), 0.14, 0.17, flame, "flame")
    b.cylinder((0, 0, -half - 0.02), b.vary(0.62), 0.08, b.part("plate", b.shade(b.colour, 0.5)), "plate")


@noun("television", "household", 0.7, front=True, parts=("screen", "legs"))
def television(b: Builder) -> None:
    w, h = b.vary(0.8), b.vary(0.56)
    b.box((0, 0, 0), (0.4, w, h))
    b.box((-0.5, 0, 0), (0.16, 0.6 * w, 0.6 * h), b.shade(b.colour, 0.6), "back")
    b.box((0.4, 0.2 * w, 0), (0.04, 0.66 * w, 0.78 * h), b.part("screen", (0.16, 0.22, 0.26)), "screen")
    for z in (0.4, -0.1):
        b.sphere((0.42, -0.74 * w, z * h), 0.11, (0.85, 0.85, 0.8), "knobs")
    legs = b.part("legs", DARK)
    for x in (-0.25, 0.25):
        b.limbs((x, 0.7 * w, -h), (1.3 * x, 1.15 * 0.7 * w, -h - 0.32), 0.09, legs, "legs")
    b.limbs((0, 0, h), (0, 0.42, h + 0.5), 0.045, STEEL, "antenna")
