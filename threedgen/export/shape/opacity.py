"""Turn a density grid into a scalar field whose level set is the object's surface.

The surface lies where a ray has lost a fixed part of its light, not at a fixed density: trained fields differ in
density by a factor of 100, are hollow inside and hazy outside. The optical depth at each grid point is

    tau(x) = min over the six axis directions of the integral of sigma from the border to x,

and the surface is tau = ln 2 / 2. A thin part is kept if its total optical thickness is at least ln 2, that is if it
renders at least half opaque. For very low density the surface is moved closer to where the density starts, like the
silhouette of the object; for density so high that its haze alone is opaque, it is moved deeper.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

HALF_OPAQUE = math.log(2) / 2
HAZE = 0.1
"""Density that counts as empty, as a fraction of the typical density."""
MIN_OPACITY = 0.005
"""Opacity below which a field counts as empty; a diverged training ends there."""
BLUR_SCALE, MAX_BLUR = 0.6, 0.03
"""Density blur (standard deviation, in scene radii) per squared free path of light, and its maximum."""
MIN_DEPTH, MAX_DEPTH = 0.008, 0.03
"""Limits of the surface's depth in typical density, in scene radii. The minimum is about one grid cell: above it, haze
in front of the object would count as surface."""


class EmptyField(ConfigError):
    """Field without a surface."""


def depth_field(sigma: Array, cell: float, radius: float, smallest: float = 0.01) -> tuple[Array, Tree]:
    """Return tau (R, R, R) with a closed surface {tau = info["level"]} without small parts, and statistics.

    sigma (R, R, R) is the density per world unit at a grid spacing of `cell` in a scene of `radius`; it is overwritten.
    smallest: minimum size of a part, as in `clean`. Raises EmptyField.
    """
    typical = typical_density(sigma)
    path = 1 / (typical * radius) if typical else 0.0  # free path of light, in scene radii
    blur = min(BLUR_SCALE * path**2, MAX_BLUR) * radius
    sigma = blur_density(sigma, blur / cell)
    tau = optical_depth(np.maximum(sigma - HAZE * typical, 0, out=sigma), cell)
    for axis in range(3):
        np.moveaxis(tau, axis, 0)[[0, -1]] = 0
    if not tau.max() > HALF_OPAQUE:
        opacity = 1 - math.exp(-2 * float(tau.max()))
        problem = f"the field has no solid object: its maximum opacity is {100 * opacity:.0f} %"
        if opacity < MIN_OPACITY:
            raise EmptyField(f"{problem}. The learning rates (section optimizer) may be too high")
        raise EmptyField(f"{problem}. Train longer or use another seed")
    level = max(HALF_OPAQUE, min(MIN_DEPTH * radius * typical, float(tau.max()) / 2))
    level = min(level, MAX_DEPTH * radius * typical)
    tau, info = clean(tau, level, smallest)
    return tau, info | {"level": level, "haze": HAZE * typical, "blur": blur}


def typical_density(sigma: Array) -> float:
    """Return the density below which 2 % of sum(sigma^2) lies; 0 for an empty field.

    Weighting by sigma^2 ignores empty space and haze: the value is independent of the box size and scales with sigma.
    """
    values = np.sort(sigma[sigma > 0])
    if not len(values):
        return 0.0
    share = np.cumsum(values.astype(np.float64) ** 2)
    return float(values[np.searchsorted(share, 0.02 * share[-1])])


def blur_density(sigma: Array, blur: float) -> Array:
    """Blur the density by a Gaussian of `blur` cells.

    Light reaches about 1 / typical_density(sigma) deep. Images do not constrain density variation below that length:
    it is noise that would roughen the surface. A blur below a quarter of a cell is skipped.
    """
    return sigma if blur < 0.25 else ndimage.gaussian_filter(sigma, blur, truncate=3.0)


def optical_depth(sigma: Array, cell: float) -> Array:
    """Return tau (R, R, R): minimum optical depth from the border to each point over the six axis directions.

    sigma (R, R, R) per world unit, `cell` in world units. A point counts half of its own cell.
    """
    tau = np.full_like(sigma, np.inf)
    for axis in range(3):
        depth = np.cumsum(sigma, axis=axis)
        depth -= sigma / 2
        np.minimum(tau, depth, out=tau)
        np.subtract(sigma.sum(axis=axis, keepdims=True), depth, out=depth)
        np.minimum(tau, depth, out=tau)
    tau *= cell
    return tau


def clean(tau: Array, level: float, smallest: float) -> tuple[Array, Tree]:
    """Remove small parts and fill inner cavities of tau, in place; return it with statistics.

    tau must be 0 at the border and above `level` somewhere. Parts are connected over faces, edges and corners; those
    with fewer surface points than `smallest` times the largest part's are removed. Values are clipped at 2 * level,
    which puts the surface half-way between an empty and an opaque point. Cleaning the grid instead of the mesh keeps
    the surface closed.
    """
    np.minimum(tau, 2 * level, out=tau)
    inside = tau > level
    corners = np.ones((3, 3, 3), bool)
    labels, count = ndimage.label(inside, corners)
    surface = inside & ~ndimage.binary_erosion(inside)
    sizes = np.bincount(labels[surface], minlength=count + 1)
    large = sizes >= max(smallest * sizes.max(), 1)
    large[0] = False
    kept = large[labels]
    dropped = inside & ~kept
    if dropped.any():
        near_dropped = ndimage.binary_dilation(dropped, corners)
        tau[dropped | (near_dropped & ~ndimage.binary_dilation(kept, corners))] = 0
    cavities = ndimage.binary_fill_holes(kept) & ~kept
    tau[cavities] = 2 * level
    return tau, {
        "parts_found": int(count),
        "parts_kept": int(large.sum()),
        "volume_dropped": float(dropped.sum() / inside.sum()),
        "cavities_filled": float(cavities.sum() / inside.sum()),
    }
