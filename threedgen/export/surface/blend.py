"""Blend colours of several images per texel (like the texturing of MV-Adapter, Huang et al. 2024), and Poisson blending
(Perez et al. 2003)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threedgen.run.arrays import Array

MIN_WEIGHT = 1e-5
"""Smallest sum of weights that fills a texel completely."""


@dataclass(frozen=True)
class BlendOptions:
    """Rules for which images contribute to a texel and with which weight.

    Lengths are fractions of the distance for perspective images, world units for parallel projection.
    """

    error: float = 0.02  # maximum distance between texel and visible surface
    cosine: float = 0.01  # minimum cosine of the viewing angle
    jump: float = 0.05  # depth step that counts as an edge
    beside_edge: float = 1e-4  # weight factor next to a depth edge; 0: not used
    margin: int = 1  # width of a depth edge, pixels
    feather: float = 0.0  # fraction of the image height over which weights rise from an edge
    power: float = 4.0  # exponent of the cosine in the weight
    window: bool = True  # reduce weights towards the image borders

    def valid(self, error: Array, cosine: Array, jump: Array) -> Array:
        """Return the mask of texels that an image may colour; all arrays have the same shape."""
        visible = (error < self.error) & (cosine > self.cosine)
        return visible if self.beside_edge else visible & (jump < self.jump)

    def weight(self, cosine: Array, valid: Array, view_weight: float = 1.0) -> Array:
        """Return (cosine valid)^(power / view_weight), 0 where invalid."""
        clipped = np.where(valid, np.maximum(cosine, 0), 0)
        weights: Array = clipped ** (self.power / view_weight)
        return weights


SCENE_BLEND = BlendOptions()
"""Options for views inside a scene: the nearest and most frontal view dominates."""
OBJECT_BLEND = BlendOptions(
    error=1e-3, cosine=0.2, jump=0.1, beside_edge=0.0, margin=2, feather=0.03, power=3.0, window=False
)
"""Options for views around an object with largest coordinate 0.5: MV-Adapter's limits, plus a feather that hides seams
between inconsistent images."""


class WeightedMean:
    """Running weighted mean of colours for N texels."""

    def __init__(self, texels: int) -> None:
        self.total, self.weights = np.zeros((texels, 3), np.float32), np.zeros(texels, np.float32)

    def add(self, colours: Array, weights: Array, index: Array | slice = slice(None)) -> None:
        """Add colours (M, C) with weights (M,) to the texels `index` (M distinct ones)."""
        self.total[index] += weights[:, None] * colours
        self.weights[index] += weights

    @property
    def known(self) -> Array:
        """Return the mask (N,) of texels with any weight."""
        return self.weights > 0

    def over(self, existing: Array, min_weight: float = MIN_WEIGHT) -> Array:
        """Return the mean colours (N, C), and `existing` where a texel has no weight."""
        mean = self.total / np.maximum(self.weights, min_weight)[:, None]
        return np.where(self.known[:, None], mean, existing)


def poisson(source: Array, target: Array, mask: Array, steps: int = 1000, start: Array | None = None) -> Array:
    """Return an image (H, W, C) in [0, 1] with the Laplacian of `source` inside the mask and equal to `target` outside.

    Solved by Jacobi iterations from `start` (default: target); the image border counts as outside. After n steps,
    pixels further than about sqrt(n) from the mask's border are still unchanged.
    """
    inside = np.zeros_like(mask, bool)
    inside[1:-1, 1:-1] = mask[1:-1, 1:-1]
    laplacian, result = 4 * source - _neighbour_sum(source), target.copy()
    if start is not None:
        result[inside] = start[inside]
    for _ in range(steps):
        result[inside] = (0.25 * (_neighbour_sum(result) + laplacian))[inside]
    return np.clip(result, 0, 1)


def _neighbour_sum(image: Array) -> Array:
    """Return the sum of each pixel's four neighbours; borders wrap around."""
    shifts = ((1, 0), (-1, 0), (1, 1), (-1, 1))
    return sum((np.roll(image, step, axis) for step, axis in shifts), np.zeros_like(image))
