"""Builder of toybox objects, with which the recipes of nouns and accessories add solids and sample proportions.

A recipe is a function that adds the solids of an object, such as "dog", or of an accessory, such as "hat".
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partialmethod
from typing import Any

import numpy as np

from threedgen.data.options import OBJECT_RADIUS

from .primitives import BOX, DOME, FRUSTUM, PRISM, SPHERE, TORUS, Primitive, tessellate

Colour = Sequence[float] | np.ndarray


@lru_cache(maxsize=256)
def _outline(kind: int, param: float) -> np.ndarray:
    return tessellate(kind, param, 8)[0]


def corners(solids: Sequence[Primitive]) -> np.ndarray:
    """Return the vertices (N, 3) of coarse meshes of the solids, in world space. Round solids have 8 sides."""
    return np.concatenate([_outline(s.kind, s.param) @ s.matrix.T + s.centre for s in solids])


def bounds(solids: Sequence[Primitive]) -> np.ndarray:
    """Return the axis-aligned bounding box (2, 3) of the solids: minimum corner, then maximum corner.

    It is the box of coarse meshes, which can be slightly smaller than round solids.
    """
    points = corners(solids)
    return np.stack([points.min(0), points.max(0)])


def rotation(degrees: Sequence[float]) -> np.ndarray:
    """Return the matrix (3, 3) that rotates about the fixed axes x, then y, then z, by three angles in ``degrees``."""
    ax, ay, az = np.deg2rad(np.asarray(degrees, float))
    cx, sx, cy, sy, cz, sz = np.cos(ax), np.sin(ax), np.cos(ay), np.sin(ay), np.cos(az), np.sin(az)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


class ReducedVariation:
    """Random generator whose samples vary less than those of the numpy generator ``rng``.

    ``variation``, in [0, 1], multiplies ranges and standard deviations; the means stay the same. At 0, ``normal``,
    ``uniform`` and ``random`` return the mean. ``integers(count)`` returns 0 with the probability 1 - ``variation``,
    and otherwise a uniform sample from 0 to ``count`` - 1.
    """

    def __init__(self, rng: np.random.Generator, variation: float) -> None:
        self.rng, self.variation = rng, variation

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: int | None = None) -> Any:
        return self.rng.normal(loc, self.variation * scale, size)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        middle = (low + high) / 2
        return middle + self.variation * (float(self.rng.uniform(low, high)) - middle)

    def random(self) -> float:
        return self.uniform()

    def integers(self, count: int) -> int:
        return int(self.rng.integers(count)) if self.rng.random() < self.variation else 0


RandomSource = np.random.Generator | ReducedVariation


class Builder:
    """Builder of one object. Its methods add solids and sample proportions.

    Units are arbitrary, because ``finish`` scales the object. The front faces +x, the object's left is +y, and z is up.
    In all methods, ``at`` (3,) is the centre of a solid, ``colour`` (3,) is sRGB in [0, 1] or None for the main colour,
    ``label`` is the name of the part, and ``rotate`` has three angles in degrees, about x, then y, then z (fixed axes).

    Attributes:
        rng: random generator of the proportions.
        colour: main colour (3,), sRGB in [0, 1].
        named_parts: maps each part or accessory that the caption names to its sRGB colour (3,).
        solids: the solids that were added so far.
        anchors: maps a place where accessories can sit, such as "head_top", to a pair: position (3,) of the place, and
            radius of the body at the place.
    """

    def __init__(self, rng: RandomSource, colour: Colour, named_parts: dict[str, np.ndarray] | None = None) -> None:
        self.rng = rng
        self.colour = np.asarray(colour, float)
        self.named_parts = named_parts or {}
        self.solids: list[Primitive] = []
        self.anchors: dict[str, tuple[np.ndarray, float]] = {}

    def vary(self, value: float = 1.0, spread: float = 0.08) -> float:
        """Return ``value`` times exp(x), with a random x.

        x is normal with mean 0 and standard deviation ``spread``, clipped to +-2 ``spread``.
        """
        return float(value * np.exp(np.clip(self.rng.normal(0, spread), -2 * spread, 2 * spread)))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *choices):
        return choices[int(self.rng.integers(len(choices)))]

    def part(self, name: str, default: Colour | None = None) -> np.ndarray:
        """Return the sRGB colour (3,) of part ``name``.

        It is the colour in the caption (``named_parts``) if there is one, else ``default``; if ``default`` is None, it
        is the main colour of the object.
        """
        if name in self.named_parts:
            return self.named_parts[name]
        return self.colour if default is None else np.asarray(default, float)

    @staticmethod
    def shade(colour: Colour, factor: float) -> np.ndarray:
        """Return an sRGB colour (3,) in [0, 1], darkened by a ``factor`` below 1 or lightened by one above 1.

        A factor of at most 1 multiplies the colour; a factor above 1 divides its distance to white.
        """
        c = np.asarray(colour, float)
        return c * factor if factor <= 1 else 1 - (1 - c) / factor

    def add(self, kind: int, at, size, colour=None, label: str = "body", rotate=(0, 0, 0), param: float = 1.0) -> None:
        """Add a solid with centre ``at`` (3,).

        ``kind`` is the shape, such as SPHERE (radius 1) or BOX (side 2). ``size`` scales it along its local axes: one
        factor for all, or (3,). ``param`` is the top radius of a FRUSTUM (bottom radius 1) or the tube radius of a
        TORUS (outer radius 1), before the scaling. ``colour`` (3,) is sRGB in [0, 1]; None: the main colour. ``label``
        is the name of the part, and ``rotate`` has three angles in degrees, about x, then y, then z (fixed axes).
        """
        stretch = np.broadcast_to(np.asarray(size, float), (3,))
        self._place(kind, param, rotation(rotate) @ np.diag(np.maximum(stretch, 1e-3)), at, colour, label)

    def _place(self, kind: int, param: float, matrix: np.ndarray, at, colour, label: str) -> None:
        colour = np.clip(self.colour if colour is None else np.asarray(colour, float), 0, 1)
        self.solids.append(Primitive(kind, float(param), matrix, np.asarray(at, float), colour, label))

    sphere = partialmethod(add, SPHERE)
    box = partialmethod(add, BOX)
    dome = partialmethod(add, DOME)
    prism = partialmethod(add, PRISM)
    """Add a prism, the shape of a gable roof: a triangle in the local xz plane, extruded along y.

    The arguments are those of `add` without ``kind``."""

    def pair(self, at, size, colour=None, label="body", rotate=(0, 0, 0), kind: int = SPHERE, param: float = 1.0):
        """Add a solid on the left (+y), with centre ``at`` (3,), and its mirror image on the right.

        ``kind`` is the shape, such as SPHERE (radius 1) or BOX (side 2). ``size`` scales it along its local axes: one
        factor for all, or (3,). ``param`` is the top radius of a FRUSTUM (bottom radius 1) or the tube radius of a
        TORUS (outer radius 1), before the scaling. ``colour`` (3,) is sRGB in [0, 1]; None: the main colour. ``label``
        is the name of the part, and ``rotate`` has three angles in degrees, about x, then y, then z (fixed axes).
        """
        (x, y, z), (ax, ay, az) = at, rotate
        for side in (-1, 1):
            self.add(kind, (x, side * y, z), size, colour, label, (side * ax, ay, side * az), param)

    def limbs(self, start, end, *args: Any, **kwargs: Any) -> None:
        """Add a round rod from ``start`` to ``end``, each (3,), on the left (+y), and its mirror image on the right.

        Further arguments are those of `limb`: the radius at the start, colour, label (name of the part), ``top`` (ratio
        of the radius at the end to that at the start) and ``caps`` (spheres at both ends).
        """
        (ax, ay, az), (bx, by, bz) = start, end
        for side in (-1, 1):
            self.limb((ax, side * ay, az), (bx, side * by, bz), *args, **kwargs)

    def cylinder(self, at, radius: float, half: float, colour=None, label="body", rotate=(0, 0, 0), top: float = 1.0):
        """Add a cylinder or frustum of height 2 ``half`` along its local z axis, with centre ``at`` (3,).

        The lower radius is ``radius``, the upper radius ``top`` times ``radius``. ``colour`` (3,) is sRGB in [0, 1];
        None: the main colour. ``label`` names the part, and ``rotate`` has three angles in degrees, about x, then y,
        then z (fixed axes).
        """
        self.add(FRUSTUM, at, (radius, radius, half), colour, label, rotate, top)

    cone = partialmethod(cylinder, top=0.0)

    def torus(self, at, radius: float, tube: float, colour=None, label="body", rotate=(0, 0, 0)) -> None:
        """Add a torus that lies in its local xy plane, with centre ``at`` (3,).

        ``radius`` is its outer radius, which includes the tube, and ``tube`` is the radius of the tube. ``colour`` (3,)
        is sRGB in [0, 1]; None: the main colour. ``label`` is the name of the part, and ``rotate`` has three angles in
        degrees, about x, then y, then z (fixed axes).
        """
        self.add(TORUS, at, radius, colour, label, rotate, tube / radius)

    def limb(self, start, end, radius: float, colour=None, label="body", top: float = 1.0, caps: bool = True) -> None:
        """Add a round rod from ``start`` (3,) to ``end`` (3,), with spheres at both ends if ``caps``.

        The radius of the rod, and of the spheres, is ``radius`` at the start and ``top`` times ``radius`` at the end.
        ``colour`` (3,) is sRGB in [0, 1]; None: the main colour. ``label`` is the name of the part.
        """
        start, end = np.asarray(start, float), np.asarray(end, float)
        axis = end - start
        length = float(np.linalg.norm(axis))
        z = axis / max(length, 1e-9)
        helper = np.array([1.0, 0, 0]) if abs(z[0]) < 0.9 else np.array([0, 1.0, 0])
        x = np.cross(helper, z)
        x /= np.linalg.norm(x)
        frame = np.stack([x, np.cross(z, x), z], 1) @ np.diag([radius, radius, length / 2])
        self._place(FRUSTUM, top, frame, (start + end) / 2, colour, label)
        if caps:
            self.sphere(start, radius, colour, label)
            if top > 0:
                self.sphere(end, radius * top, colour, label)

    def anchor(self, **places: tuple[float, float, float]) -> None:
        """Set anchors, which are places where accessories can sit, such as ``head_top=(x, z, radius)``.

        x and z are the position of the place (y is 0), and ``radius`` is the radius of the object's body at the place.
        Earlier anchors of the same name are replaced.
        """
        for name, (x, z, radius) in places.items():
            self.anchors[name] = (np.array((x, 0.0, z), float), float(radius))

    def finish(self, size: float = 1.0, stretch: Sequence[float] | np.ndarray = (1, 1, 1)) -> tuple[Primitive, ...]:
        """Return the solids of the finished object, stretched by factors (3,) along x, y and z, centred and scaled.

        The centre of its bounding box is at the origin. It just fits into the ball of radius ``size`` times
        ``OBJECT_RADIUS`` (0.85) around the origin.
        """
        stretch_matrix = np.diag(np.asarray(stretch, float))
        points = corners(self.solids) @ stretch_matrix
        centre = (points.min(0) + points.max(0)) / 2
        # meshes of 8 segments lie inside curved solids, at most 3 % below the surface
        scale = OBJECT_RADIUS * size / (1.03 * float(np.linalg.norm(points - centre, axis=1).max()))
        return tuple(
            replace(s, matrix=scale * stretch_matrix @ s.matrix, centre=scale * (stretch_matrix @ s.centre - centre))
            for s in self.solids
        )
