"""Vehicles that fly: noses towards +x (the rocket: its window)."""

from __future__ import annotations

import numpy as np

from threedgen.data.toybox.builder import Builder
from threedgen.data.toybox.grammar import noun

from .buildings import ALONG_X, WOOD, contrast, glass
from .vehicles import ALONG_Y, DARK, METAL, RUBBER


@noun("airplane", "vehicles", parts=("wings", "tail"))
def airplane(b: Builder) -> None:
    body, span, sweep = b.vary(0.26), b.vary(0.74), b.pick(0, 15, 25)
    propeller = sweep == 0
    wings, tail = b.part("wings", b.shade(b.colour, 0.85)), b.part("tail", b.shade(b.colour, 0.85))
    b.limb((0.45, 0, 0), (-0.75, 0, 0.1), body, None, "body", top=0.42)
    b.sphere((0.45, 0, 0), (body * 1.55, body, body))
    b.sphere((0.46, 0, body * 0.64), (0.28, body * 0.76, body * 0.68), glass(b.colour), "cockpit")
    levels = (-0.1, 0.42) if propeller and b.chance(0.4) else (-0.06,)
    for z in levels:
        for side in (-1, 1):
            back = np.tan(np.deg2rad(sweep)) * span / 2
            b.box((0.12 - back, side * span / 2, z), (0.22, span / 2, 0.05), wings, "wings", (0, 0, side * sweep))
            if len(levels) > 1:
                b.limb(
                    (0.12, side * span * 0.7, -0.1), (0.12, side * span * 0.7, 0.42), 0.035, WOOD, "struts", caps=False
                )
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
        for side in (-1, 1):
            b.cylinder((0.12, side * span * 0.45, -0.2), 0.12, 0.18, METAL, "engines", ALONG_X)
        for x in (0.15, -0.05, -0.25):
            b.box((x, 0, body * 0.3), (0.055, body * 0.97, 0.055), glass(b.colour), "windows")


@noun("helicopter", "vehicles", parts=("rotor", "tail"))
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
    for side in (-1, 1):
        b.limb((-0.3, side * wide * 0.95, 0.06), (0.55, side * wide * 0.95, 0.06), 0.05, METAL, "skids")
        for x in (-0.05, 0.32):
            b.limb(
                (x, side * wide * 0.5, z - tall * 0.6), (x, side * wide * 0.95, 0.06), 0.04, METAL, "skids", caps=False
            )


@noun("rocket", "vehicles", parts=("fins", "nose"))
def rocket(b: Builder) -> None:
    """Ready to start; the round window is in front."""
    radius, half, rise = b.vary(0.3), b.vary(0.5), b.vary(0.24)
    bright = contrast(b.colour, (0.95, 0.95, 0.95), (0.8, 0.12, 0.1))
    fins, nose = b.part("fins", bright), b.part("nose", bright)
    z = 0.2 + half
    b.cylinder((0, 0, z), radius, half, top=0.9)
    b.cone((0, 0, z + half + rise), radius * 0.9, rise, nose, "nose")
    b.cylinder((0, 0, 0.12), radius * 0.75, 0.1, DARK, "engine", top=0.75)
    turn, reach = 45.0, b.vary(0.66)
    for k in range(2):  # each gable makes two opposite fins
        b.prism((0, 0, 0.42), (reach, 0.055, 0.42), fins, "fins", (0, 0, turn + 90 * k))
    ring = contrast(b.colour, (0.95, 0.85, 0.4), (0.25, 0.25, 0.28))
    b.cylinder((radius * 0.92, 0, z + half * 0.35), 0.22, 0.11, ring, "window", ALONG_X)
    b.sphere((radius * 0.98, 0, z + half * 0.35), (0.11, 0.16, 0.16), (0.45, 0.75, 0.95), "window")
    b.box((radius * 0.97, 0, z - half * 0.5), (0.06, 0.14, 0.18), ring, "hatch")
    if b.chance(0.5):
        b.cylinder((0, 0, z + half * 0.82), radius * 0.94, 0.05, b.shade(b.colour, 0.6), "band")
