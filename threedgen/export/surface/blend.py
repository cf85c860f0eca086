"""What pictures say of the same texel, put together: which of them are believed, by how much, and their mean (as the
texturing of MV-Adapter, Huang et al. 2024, does it); and a picture with the gradients of another (Perez et al. 2003).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threedgen.run.arrays import Array

LEAST = 1e-5
"""Weights that sum up to less do not fill a texel wholly."""


@dataclass(frozen=True)
class Trust:
    """When a picture is believed about a texel, and by how much.

    error: how far the surface that it shows may be from the texel. cosine: of the angle at which it sees the texel, at
    least. jump: of the depth beside it, from which on there is an edge. Lengths are shares of the distance for pictures
    in perspective, and world units for those of parallel rays.
    """

    error: float = 0.02
    cosine: float = 0.01
    jump: float = 0.05
    beside_edge: float = 1e-4
    """Factor on the weight of a texel beside an edge; 0: it is not believed."""
    margin: int = 1
    """Pixels from an edge that are beside it."""
    feather: float = 0.0
    """Share of the picture's height over which the weight grows from there to what it is."""
    power: float = 4.0
    """Of the cosine, in its weight."""
    window: bool = True
    """Weights fall towards the picture's borders, where those of other pictures begin."""

    def valid(self, error: Array, cosine: Array, jump: Array) -> Array:
        """Which texels a picture may speak of, bool; arrays of one shape."""
        near = (error < self.error) & (cosine > self.cosine)
        return near if self.beside_edge else near & (jump < self.jump)

    def weight(self, cosine: Array, valid: Array, view_weight: float = 1.0) -> Array:
        """(cosine valid)^(power / view_weight), 0 where it is not valid."""
        straight = np.where(valid, np.maximum(cosine, 0), 0)
        weights: Array = straight ** (self.power / view_weight)
        return weights


SCENE = Trust()
"""For views in a scene, near and far: the nearest and straightest decides."""
OBJECT = Trust(error=1e-3, cosine=0.2, jump=0.1, beside_edge=0.0, margin=2, feather=0.03, power=3.0, window=False)
"""For views from around an object whose largest coordinate is 0.5: the reference's limits. The feather is not its:
without one, pictures that do not quite agree leave a line where one of them ends."""


class Mean:
    """The weighted mean of what is said of N texels, picture by picture."""

    def __init__(self, texels: int) -> None:
        self.total, self.weights = np.zeros((texels, 3), np.float32), np.zeros(texels, np.float32)

    def add(self, colours: Array, weights: Array, index: Array | slice = slice(None)) -> None:
        """Colours (M,C) of the texels ``index`` (M different ones), with weights (M,)."""
        self.total[index] += weights[:, None] * colours
        self.weights[index] += weights

    @property
    def known(self) -> Array:
        """Texels (N,), bool, of which anything is said."""
        return self.weights > 0

    def over(self, existing: Array, least: float = LEAST) -> Array:
        """Colours (N,C); those of ``existing`` where nothing is said."""
        mean = self.total / np.maximum(self.weights, least)[:, None]
        return np.where(self.known[:, None], mean, existing)


def poisson(source: Array, target: Array, mask: Array, steps: int = 1000, start: Array | None = None) -> Array:
    """The picture (H,W,C) in [0,1] that has the second differences of ``source`` inside of the mask (H,W) bool and is
    ``target`` elsewhere, after so many steps of Jacobi's method from the ``start``, by default the target; the
    picture's border is outside. After n steps what is farther than some sqrt(n) pixels inside is as it was."""
    inside = np.zeros_like(mask, bool)
    inside[1:-1, 1:-1] = mask[1:-1, 1:-1]
    wanted, found = 4 * source - _neighbours(source), target.copy()
    if start is not None:
        found[inside] = start[inside]
    for _ in range(steps):
        found[inside] = (0.25 * (_neighbours(found) + wanted))[inside]
    return np.clip(found, 0, 1)


def _neighbours(picture: Array) -> Array:
    """The sum of the four neighbours of each pixel; the picture goes on at its other side."""
    shifts = ((1, 0), (-1, 0), (1, 1), (-1, 1))
    return sum((np.roll(picture, step, axis) for step, axis in shifts), np.zeros_like(picture))
