"""Objects with a known number of fronts that are not toybox objects, built from boxes, balls, rods, lathes and hulls.

An object is a list of parts, each with one colour. World axes: z up, front +x, so y points to the object's left.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import trimesh
from PIL import ImageColor

from threedgen.data.coloured_mesh import Part, drop_degenerate
from threedgen.evaluation.corruption import SmoothNoise

Point = Sequence[float]


def solid(colour: str, body: trimesh.Trimesh) -> Part:
    """Return a body as a part in a colour with a CSS name."""
    rgb = np.array(ImageColor.getrgb(colour)) / 255
    corners = np.array(body.triangles)
    return drop_degenerate(Part(corners, np.tile(rgb, (len(corners), 3, 1))))


def box(colour: str, centre: Point, size: Point) -> Part:
    return solid(colour, trimesh.creation.box(size, trimesh.transformations.translation_matrix(centre)))


def ball(colour: str, centre: Point, radii: float | Point) -> Part:
    body = trimesh.creation.icosphere(3)
    return solid(colour, trimesh.Trimesh(body.vertices * radii + centre, body.faces, process=False))


def rod(colour: str, start: Point, end: Point, radius: float) -> Part:
    return solid(colour, trimesh.creation.cylinder(radius, segment=(start, end)))


def lathe(colour: str, profile: Sequence[Point], centre: Point = (0, 0, 0), axis: str = "z") -> Part:
    """Revolve points (radius, position along the axis) around an axis through `centre`."""
    part = solid(colour, trimesh.creation.revolve(profile))
    return replace(part, corners=np.roll(part.corners, "zxy".index(axis), axis=-1) + centre)


def ring(colour: str, centre: Point, radius: float, thickness: float, axis: str = "z") -> Part:
    angle = np.linspace(0, 2 * np.pi, 17)
    return lathe(colour, np.stack([radius + thickness * np.cos(angle), thickness * np.sin(angle)], 1), centre, axis)


def plate(colour: str, thickness: float, outline: Sequence[tuple[float, float]]) -> Part:
    """Extrude a convex outline of points (x, z) along y."""
    points = [(x, side * thickness / 2, z) for x, z in outline for side in (-1, 1)]
    return solid(colour, trimesh.convex.convex_hull(np.array(points)))


def pair(*parts: Part) -> list[Part]:
    """Return the parts and their mirror images on the other side of the plane y = 0."""
    return [*parts, *(replace(part, corners=part.corners[:, ::-1] * (1, -1, 1)) for part in parts)]


def snowman() -> list[Part]:
    body = [ball("white", (0, 0, z), r) for z, r in ((-0.5, 0.42), (0.12, 0.31), (0.56, 0.22))]
    buttons = [ball("black", (x, 0, z), 0.035) for x, z in ((0.29, 0.22), (0.31, 0.1), (0.27, -0.03))]
    mouth = [ball("black", (0.19 - 2 * y * y, y, 0.46 + 6 * y * y), 0.02) for y in (-0.09, -0.045, 0, 0.045, 0.09)]
    brim = [(0, 0.72), (0.26, 0.72), (0.26, 0.76), (0.16, 0.76), (0.16, 1.05), (0, 1.05)]
    scarf = [ring("red", (0, 0, 0.37), 0.19, 0.06), box("red", (0.27, 0.12, 0.24), (0.06, 0.09, 0.26))]
    eyes = pair(ball("black", (0.18, 0.08, 0.64), 0.035))
    arms = pair(rod("saddlebrown", (0, 0.28, 0.18), (0, 0.7, 0.4), 0.025))
    nose = lathe("darkorange", [(0.05, 0), (0, 0.28)], (0.2, 0, 0.56), "x")
    return [*body, *buttons, *mouth, *scarf, *eyes, *arms, nose, lathe("black", brim)]


def robot() -> list[Part]:
    body = [box("silver", (0, 0, 0), (0.4, 0.6, 0.6)), box("silver", (0, 0, 0.52), (0.36, 0.42, 0.34))]
    neck = [rod("navy", (0, 0, 0.2), (0, 0, 0.8), 0.08), ball("red", (0, 0, 0.82), 0.06)]
    arms = pair(box("steelblue", (0, 0.38, 0.02), (0.16, 0.12, 0.5)), ball("navy", (0, 0.38, -0.28), 0.09))
    legs = pair(
        box("steelblue", (0, 0.15, -0.5), (0.2, 0.18, 0.42)), box("navy", (0.06, 0.15, -0.74), (0.36, 0.2, 0.08))
    )
    face = [box("black", (0.18, 0, 0.53), (0.03, 0.36, 0.26)), box("red", (0.2, 0, 0.45), (0.03, 0.2, 0.04))]
    eyes = pair(ball("yellow", (0.2, 0.09, 0.58), 0.055))
    panel = [box("navy", (0.2, 0, 0.05), (0.03, 0.42, 0.34)), box("white", (0.22, 0, -0.04), (0.02, 0.3, 0.08))]
    lights = [ball(c, (0.22, y, 0.12), 0.04) for c, y in (("lime", -0.12), ("yellow", 0), ("red", 0.12))]
    return [*body, *neck, *arms, *legs, *face, *eyes, *panel, *lights]


def truck() -> list[Part]:
    body = [box("whitesmoke", (-0.25, 0, 0.18), (1, 0.58, 0.66)), box("dimgray", (-0.02, 0, -0.19), (1.46, 0.5, 0.1))]
    cab = plate("royalblue", 0.56, [(0.3, -0.15), (0.72, -0.15), (0.72, 0.14), (0.6, 0.42), (0.3, 0.42)])
    glass = plate("lightcyan", 0.46, [(0.72, 0.15), (0.735, 0.16), (0.63, 0.39), (0.61, 0.39)])
    front = [box("black", (0.72, 0, 0.02), (0.03, 0.24, 0.16)), box("silver", (0.74, 0, -0.13), (0.08, 0.6, 0.08))]
    sides = [ball("yellow", (0.72, 0.2, 0), (0.03, 0.06, 0.06)), box("lightcyan", (0.5, 0.28, 0.25), (0.2, 0.02, 0.2))]
    wheels = [rod("black", (x, 0.2, -0.26), (x, 0.32, -0.26), 0.15) for x in (-0.55, -0.2, 0.48)]
    return [*body, cab, glass, *front, *pair(*sides, *wheels)]


def dog() -> list[Part]:
    body = [ball("peru", (-0.05, 0, 0), (0.46, 0.22, 0.22)), ball("peru", (0.45, 0, 0.34), (0.22, 0.2, 0.2))]
    neck = [rod("peru", (0.25, 0, 0.05), (0.42, 0, 0.3), 0.13), rod("peru", (-0.45, 0, 0.05), (-0.65, 0, 0.35), 0.045)]
    nose = [ball("sandybrown", (0.66, 0, 0.27), (0.17, 0.11, 0.09)), ball("black", (0.82, 0, 0.31), 0.05)]
    sides = [ball("black", (0.62, 0.09, 0.42), 0.04), ball("saddlebrown", (0.42, 0.2, 0.35), (0.1, 0.05, 0.2))]
    legs = [rod("peru", (x, 0.12, -0.5), (x, 0.12, 0), 0.07) for x in (-0.35, 0.25)]
    return [*body, *neck, *nose, *pair(*sides, *legs)]


def television() -> list[Part]:
    case = [box("saddlebrown", (0, 0, 0), (0.5, 1.2, 0.8)), box("black", (0.25, -0.12, 0), (0.03, 0.86, 0.66))]
    picture = [box(c, (0.26, -0.12, z), (0.03, 0.78, h)) for c, z, h in (("cyan", 0.08, 0.42), ("green", -0.2, 0.18))]
    knobs = [rod("gold", (0.24, 0.46, z), (0.3, 0.46, z), 0.07) for z in (0.08, 0.28)]
    sides = [rod("silver", (0, 0.05, 0.4), (0, 0.4, 0.85), 0.02), rod("black", (0, 0.45, -0.55), (0, 0.4, -0.4), 0.05)]
    return [*case, *picture, *knobs, *pair(*sides)]


def house() -> list[Part]:
    walls = [box("wheat", (0, 0, 0), (1, 1, 0.7)), plate("firebrick", 1.1, [(-0.6, 0.34), (0.6, 0.34), (0, 0.8)])]
    more = [box("dimgray", (0.56, 0, -0.32), (0.14, 0.36, 0.06)), box("sienna", (0.2, 0.25, 0.72), (0.15, 0.15, 0.4))]
    door = [box("saddlebrown", (0.5, 0, -0.1), (0.04, 0.24, 0.46)), ball("gold", (0.53, 0.08, -0.12), 0.025)]
    window = [box(c, (x, 0.32, 0.04), (0.03, w, w)) for c, x, w in (("white", 0.5, 0.27), ("steelblue", 0.51, 0.21))]
    return [*walls, *more, *door, *pair(*window)]


def owl() -> list[Part]:
    body = [ball("saddlebrown", (0, 0, 0), (0.38, 0.4, 0.55)), ball("saddlebrown", (0, 0, 0.52), (0.34, 0.38, 0.3))]
    front = [ball("wheat", (0.1, 0, -0.1), (0.32, 0.3, 0.4)), lathe("gold", [(0.07, 0), (0, 0.2)], (0.3, 0, 0.5), "x")]
    eye = [ball("white", (0.28, 0.15, 0.6), (0.06, 0.14, 0.14)), ball("black", (0.31, 0.15, 0.6), (0.06, 0.08, 0.08))]
    ear = lathe("saddlebrown", [(0.1, 0), (0, 0.25)], (0, 0.22, 0.72))
    sides = [ball("sienna", (0, 0.38, -0.05), (0.25, 0.1, 0.42)), ball("gold", (0.15, 0.15, -0.54), (0.18, 0.1, 0.05))]
    return [*body, *front, *pair(*eye, ear, *sides)]


def fish() -> list[Part]:
    body = [ball("darkorange", (0, 0, 0), (0.6, 0.24, 0.36)), ball("white", (0.1, 0, 0), (0.08, 0.25, 0.37))]
    tail = plate("orangered", 0.06, [(-0.5, 0), (-0.9, 0.32), (-0.9, -0.32)])
    fin = plate("orangered", 0.06, [(0.2, 0.28), (-0.3, 0.24), (-0.3, 0.54)])
    eye = [ball("white", (0.43, 0.13, 0.1), 0.09), ball("black", (0.5, 0.16, 0.11), 0.055)]
    mouth = ring("darkred", (0.57, 0, -0.08), 0.06, 0.025, "x")
    return [*body, tail, fin, mouth, *pair(*eye, ball("orangered", (0.1, 0.3, -0.1), (0.16, 0.1, 0.06)))]


def clock() -> list[Part]:
    case = [rod("firebrick", (-0.15, 0, 0), (0.15, 0, 0), 0.5), rod("white", (0, 0, 0), (0.16, 0, 0), 0.43)]
    ticks = [ball("black", (0.16, 0.36 * np.sin(a), 0.36 * np.cos(a)), 0.03) for a in np.arange(12) * np.pi / 6]
    hands = [rod("black", (0.18, 0, 0), (0.18, y, z), 0.025) for y, z in ((0.24, 0.16), (-0.16, 0.12))]
    sides = [ball("gold", (0, 0.27, 0.5), 0.16), rod("dimgray", (0, 0.2, -0.4), (0, 0.35, -0.62), 0.045)]
    return [*case, *ticks, *hands, ball("red", (0.18, 0, 0), 0.04), *pair(*sides)]


def duck() -> list[Part]:
    body = [ball("gold", (0, 0, -0.1), (0.55, 0.36, 0.32)), ball("gold", (0.3, 0, 0.4), 0.26)]
    neck = [rod("gold", (0.26, 0, 0), (0.3, 0, 0.4), 0.16), ball("orangered", (0.58, 0, 0.36), (0.16, 0.13, 0.05))]
    tail = plate("gold", 0.2, [(-0.35, 0.1), (-0.35, -0.2), (-0.72, 0.22)])
    sides = [ball("black", (0.49, 0.11, 0.49), 0.045), ball("goldenrod", (-0.05, 0.33, -0.02), (0.3, 0.08, 0.18))]
    return [*body, *neck, tail, *pair(*sides)]


def crate() -> list[Part]:
    edges = product(range(3), (-0.5, 0.5), (-0.5, 0.5))
    beams = [box("saddlebrown", np.roll((0, a, b), k), np.roll((1.14, 0.14, 0.14), k)) for k, a, b in edges]
    return [box("burlywood", (0, 0, 0), (1, 1, 1)), *beams]


def marble() -> list[Part]:
    part = ball("white", (0, 0, 0), 1)
    noise = SmoothNoise(np.random.default_rng(0), 0.8)
    return [replace(part, values=np.clip(0.6 + 0.15 * noise(part.corners), 0, 1))]


def colour_cube() -> list[Part]:
    colours = zip(("red", "lime", "blue", "cyan", "magenta", "yellow"), product(range(3), (-0.5, 0.5)), strict=True)
    return [box(c, np.roll((side, 0, 0), k), np.roll((0.02, 1, 1), k)) for c, (k, side) in colours]


POT = [(0, -0.4), (0.35, -0.4), (0.5, 0.3), (0.57, 0.3), (0.57, 0.45), (0.48, 0.45), (0.31, -0.3), (0, -0.3)]
PILLAR = [(0, -1), (0.34, -1), (0.34, -0.88), (0.22, -0.8), (0.19, 0.8), (0.34, 0.88), (0.34, 1), (0, 1)]
VASE = [(0, -0.6), (0.2, -0.6), (0.36, -0.2), (0.34, 0), (0.14, 0.4), (0.22, 0.62), (0.1, 0.4), (0, 0.4)]
WITH_FRONT = (snowman, robot, truck, dog, television, house, owl, fish, clock, duck)
WITHOUT_FRONT: dict[str, Callable[[], list[Part]]] = {  # "NAME, named PROMPT" has another prompt than its name
    "cube": lambda: [box("mediumseagreen", (0, 0, 0), (1, 1, 1))],
    "sphere": lambda: [ball("royalblue", (0, 0, 0), 1)],
    "pot": lambda: [lathe("chocolate", POT)],
    "donut": lambda: [ring("peru", (0, 0, 0), 0.45, 0.22), ring("hotpink", (0, 0, 0.04), 0.45, 0.21)],
    "crate": crate,
    "marble": marble,
    "capsule": lambda: [solid("tomato", trimesh.creation.capsule(0.8, 0.3))],
    "pillar": lambda: [lathe("lightgray", PILLAR)],
    "colour cube, named a blue dog": colour_cube,
    "vase": lambda: [lathe("teal", VASE)],
}
