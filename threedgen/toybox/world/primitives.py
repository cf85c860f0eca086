"""Solids of the toybox (sphere, box, frustum, torus, dome, prism) and the assets made of them.

In its local axes, every solid fits into [-1, 1]^3, except a frustum that widens upwards. An affine map places it in
the world. An asset is a captioned object, whose world axes are: z up, front +x.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

SPHERE, BOX, FRUSTUM, TORUS, DOME, PRISM = range(6)
"""Kinds of solids. SPHERE: unit sphere. BOX: cube [-1, 1]^3. FRUSTUM: z in [-1, 1], radius 1 at the bottom and
``param`` at the top (1: cylinder, 0: cone). TORUS: ring in the xy plane, outer radius 1, tube radius ``param``. DOME:
upper half of the unit sphere. PRISM: triangle in xz (base at z = -1, apex at x = 0, z = 1), extruded along y in
[-1, 1]."""


@dataclass(frozen=True)
class Primitive:
    """Coloured solid, such as a sphere or a box, placed by an affine map.

    A point p in local axes is at ``matrix`` @ p + ``centre`` in world space.

    Attributes:
        kind: shape in local axes: SPHERE, BOX, FRUSTUM, TORUS, DOME or PRISM (constants of this module). All fit into
            [-1, 1]^3, except a FRUSTUM that widens upwards.
        param: top radius of a FRUSTUM (bottom radius 1) or tube radius of a TORUS (outer radius 1); other kinds ignore
            it.
        matrix: (3, 3), from local axes to world axes.
        centre: (3,), position of the local origin in world space.
        colour: (3,), sRGB in [0, 1].
        label: name of the part or accessory to which the solid belongs, such as "body", "wheels" or "hat".
    """

    kind: int
    param: float
    matrix: np.ndarray
    centre: np.ndarray
    colour: np.ndarray
    label: str


@dataclass(frozen=True)
class Asset:
    """Captioned object made of solids. z is up, and the front faces +x.

    Objects of `Toybox` fit into the ball of radius 0.85 around the origin.

    Attributes:
        primitives: the solids.
        noun, colour, size: attributes of the object as words ("dog", "red", "small"). "" means unspecified.
        part, second: first and second part or accessory to name in captions, such as "hat"; "" for none.
        part_colour, second_colour: colour words of ``part`` and ``second``; "" means unspecified.
        family: group of the noun, such as "animals".
        front: False if the object looks the same from every side (a ball, an apple) and has no front.
        index: index of the object in its data set; -1 if it has none.
        labels: names of parts. The number k + 1 in label images and meshes stands for ``labels[k]``. Default: the
            different labels of the solids.
    """

    primitives: tuple[Primitive, ...]
    caption: str = ""
    noun: str = ""
    family: str = ""
    colour: str = ""
    size: str = ""
    part: str = ""
    part_colour: str = ""
    second: str = ""
    second_colour: str = ""
    front: bool = False
    index: int = -1
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.labels:
            object.__setattr__(self, "labels", tuple(dict.fromkeys(solid.label for solid in self.primitives)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the S solids as arrays for the ray caster.

        A solid is a standard shape in its local axes, which an affine map places in the world.

        Returns:
            Dict with these arrays; "kind" and "label" are int32, the others float32.
            "kind": (S,), constant of the standard shape: SPHERE, BOX, FRUSTUM, TORUS, DOME or PRISM, which are 0 to 5.
            "param": (S,), top radius of a FRUSTUM (bottom radius 1) or tube radius of a TORUS (outer radius 1).
            "inverse": (S, 3, 3), matrix from world axes to the local axes of the solid.
            "centre": (S, 3), position of the local origin in world space.
            "reach": (S,), radius of a ball around the centre that contains the solid.
            "colour": (S, 3), sRGB in [0, 1].
            "label": (S,), k + 1 for a solid of the part ``labels[k]``.
        """
        label_ids = {name: i + 1 for i, name in enumerate(self.labels)}
        matrix = np.stack([p.matrix for p in self.primitives])
        reach = np.sqrt(np.array([_reach(p.kind, p.param, p.matrix) for p in self.primitives]))
        return {
            "kind": np.array([p.kind for p in self.primitives], np.int32),
            "param": np.array([p.param for p in self.primitives], np.float32),
            "inverse": np.linalg.inv(matrix).astype(np.float32),
            "centre": np.stack([p.centre for p in self.primitives]).astype(np.float32),
            "reach": reach.astype(np.float32),
            "colour": np.stack([p.colour for p in self.primitives]).astype(np.float32),
            "label": np.array([label_ids[p.label] for p in self.primitives], np.int32),
        }

    def move_and_scale(self, centre: np.ndarray | float, scale: float) -> "Asset":
        """Return a copy, translated by -``centre`` and then scaled about the origin by the factor ``scale``.

        ``centre`` is a point (3,), or 0.0 for no translation.
        """
        poses = ((scale * solid.matrix, scale * (solid.centre - centre)) for solid in self.primitives)
        solids = zip(self.primitives, poses, strict=True)
        return replace(self, primitives=tuple(replace(s, matrix=m, centre=c) for s, (m, c) in solids))

    def mesh(self, segments: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return a triangle mesh of closed solids, which can overlap, in world space (z up, front +x).

        Circles around the local z axis of a solid have ``segments`` sides.

        Returns:
            Vertices (V, 3), vertex indices (F, 3), and per face sRGB colours (F, 3) in [0, 1] and integer labels (F,).
            Label k + 1 is the part ``labels[k]``.
        """
        vertices, faces, colours, labels, start = [], [], [], [], 0
        numbers = self.arrays()["label"]
        for solid, number in zip(self.primitives, numbers, strict=True):
            v, f = tessellate(solid.kind, solid.param, segments)
            if np.linalg.det(solid.matrix) < 0:
                f = f[:, ::-1]
            vertices.append(v @ solid.matrix.T + solid.centre)
            faces.append(f + start)
            colours.append(np.repeat(solid.colour[None], len(f), 0))
            labels.append(np.full(len(f), number, np.int32))
            start += len(v)
        return (np.concatenate(vertices), np.concatenate(faces), np.concatenate(colours), np.concatenate(labels))


def inside(solids: Iterable[Primitive], points: np.ndarray) -> np.ndarray:
    """Return a bool mask (N,): True for those of the ``points`` (N, 3) that lie in at least one of the solids."""
    result = np.zeros(len(points), bool)
    for solid in solids:  # a point is inside if all of the solid's functions are at most 0
        x, y, z = q = ((points - solid.centre) @ np.linalg.inv(solid.matrix).T).T
        rho, ball, p = np.hypot(x, y), np.linalg.norm(q, axis=0) - 1, solid.param
        functions = {
            SPHERE: (ball,),
            BOX: (abs(x) - 1, abs(y) - 1, abs(z) - 1),
            FRUSTUM: (abs(z) - 1, rho - 1 - (p - 1) / 2 * (z + 1)),
            TORUS: (np.hypot(rho - (1 - p), z) - p,),
            DOME: (ball, -z),
            PRISM: (abs(x) - (1 - z) / 2, abs(y) - 1, -z - 1),
        }
        result |= np.max(functions[solid.kind], axis=0) <= 0
    return result


def _reach(kind: int, param: float, matrix: np.ndarray) -> float:
    # squared radius of a ball around the centre of the solid that contains it
    stretch = np.linalg.svd(matrix, compute_uv=False)
    if kind in (SPHERE, DOME):
        return float(stretch[0] ** 2)
    wide = max(1.0, param) if kind == FRUSTUM else 1.0
    corners = np.array([[x, y, z] for x in (-wide, wide) for y in (-wide, wide) for z in (-1, 1)], float)
    return float(((corners @ matrix.T) ** 2).sum(1).max())


def profile(kind: int, param: float, segments: int) -> np.ndarray:
    """Return the outline of a solid of revolution about its local z axis, as P points (P, 2) with columns (radius, z).

    The outline of the first three kinds goes from the bottom up to the top, both on the axis:
    - SPHERE: half circle of radius 1, with ``segments`` // 2 edges.
    - DOME: one edge from the axis to radius 1 at z = 0, and ``segments`` // 4 edges for the quarter circle above.
    - FRUSTUM: three edges: bottom of radius 1 at z = -1, side, and top of radius ``param`` at z = 1.
    - TORUS: circle of radius ``param`` at the distance 1 - ``param`` from the axis, with ``segments`` // 2 edges. It
      starts and ends at its innermost point and goes down first.
    """
    if kind == SPHERE:
        a = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
        return np.stack([np.cos(a), np.sin(a)], 1)
    if kind == DOME:
        a = np.linspace(0, np.pi / 2, segments // 4 + 1)
        return np.concatenate([[[0.0, 0.0]], np.stack([np.cos(a), np.sin(a)], 1)])
    if kind == FRUSTUM:
        return np.array([[0.0, -1.0], [1.0, -1.0], [param, 1.0], [0.0, 1.0]])
    a = np.linspace(-np.pi, np.pi, segments // 2 + 1)
    return np.stack([1 - param + param * np.cos(a), param * np.sin(a)], 1)


def tessellate(kind: int, param: float, segments: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the closed triangle mesh of a solid in its local axes: vertices (V, 3), vertex indices (F, 3).

    ``kind`` and ``param`` are those of `Primitive`. Circles around the z axis have ``segments`` sides. Faces are
    counter-clockwise seen from outside.
    """
    if kind == BOX:
        v = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
        quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
        return v, np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    if kind == PRISM:
        v = np.array([[-1, -1, -1], [1, -1, -1], [0, -1, 1], [-1, 1, -1], [1, 1, -1], [0, 1, 1]], float)
        f = [(0, 1, 2), (3, 5, 4), (0, 3, 4), (0, 4, 1), (1, 4, 5), (1, 5, 2), (0, 2, 5), (0, 5, 3)]
        return v, np.array(f)
    line = profile(kind, param, segments)
    angle = np.arange(segments) * (2 * np.pi / segments)
    rim = np.stack([np.cos(angle), np.sin(angle)], 1)
    v = np.concatenate([np.concatenate([r * rim, np.full((segments, 1), z)], 1) for r, z in line])
    i = np.arange(segments)
    j = (i + 1) % segments
    bands = []
    for k in range(len(line) - 1):
        low, high = k * segments, (k + 1) * segments
        if line[k, 0] > 1e-9:
            bands.append(np.stack([low + i, low + j, high + j], 1))
        if line[k + 1, 0] > 1e-9:
            bands.append(np.stack([low + i, high + j, high + i], 1))
    return v, np.concatenate(bands)
