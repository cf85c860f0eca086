"""From a density on a grid to a field whose surface is that of the object.

The surface is where a ray has lost a share of its light, not where the density passes some number: densities
of trained fields differ by a factor of a hundred, are hollow inside and hazy outside, and no fixed threshold
fits them. For each grid point the optical depth from the clearest of the six axis directions is summed up,

    tau(x) = min over directions of the integral of sigma from the border to x,

and the surface is tau = ln 2 / 2. At the middle of a thin part this means an optical thickness of ln 2 across
it: a part is kept when the renderer shows it at least half opaque. In matter so thin that this lies deep inside,
the surface is put nearer to where the matter begins, as an outline does that is looked at along it; in matter so dense
that its haze alone is opaque, deeper.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array

HALF_OPAQUE = math.log(2) / 2
HAZE = 0.1
"""What counts as empty, as a share of the density of typical matter."""
NOTHING = 0.005
"""What hides less than this is not there; a field that training has blown up ends so."""
BLUR, MOST_BLUR = 0.6, 0.03
"""Standard deviation of the blur of a density, in radii of the world: for the square of the free path of light through
typical matter, and at most."""
SHALLOWEST, DEEPEST = 0.008, 0.03
"""How deep in typical matter the surface lies at least and at most, in radii of the world. The least is about a cell of
the grid: where the light is lost on a shorter way, it would be lost in the haze before the object already."""


class EmptyField(ConfigError):
    """There is nothing in the field that a mesh could be made of."""


def depth_field(sigma: Array, cell: float, radius: float, smallest: float = 0.01) -> tuple[Array, dict[str, Any]]:
    """tau (R, R, R), whose surface {tau = info["level"]} is closed and without crumbs; and how it came about.

    sigma (R, R, R): density per world unit at points `cell` apart, in a world of `radius`; it is used up. The
    level is HALF_OPAQUE, unless that is too shallow or deep; smallest: as in `clean`. Raises EmptyField.
    """
    matter = typical(sigma)
    path = 1 / (matter * radius) if matter else 0.0  # of light through it, in radii
    blur = min(BLUR * path**2, MOST_BLUR) * radius
    sigma = soften(sigma, blur / cell)
    tau = optical_depth(np.maximum(sigma - HAZE * matter, 0, out=sigma), cell)
    for axis in range(3):
        np.moveaxis(tau, axis, 0)[[0, -1]] = 0
    if not tau.max() > HALF_OPAQUE:
        opacity = 1 - math.exp(-2 * float(tau.max()))
        what = f"nothing solid came out: at its densest it hides {100 * opacity:.0f} % of what is behind it"
        if opacity < NOTHING:
            raise EmptyField(f"{what}, so nothing is there; the learning rates (section optimizer) may be too high")
        raise EmptyField(f"{what}; train longer, or choose another seed")
    level = max(HALF_OPAQUE, min(SHALLOWEST * radius * matter, float(tau.max()) / 2))
    level = min(level, DEEPEST * radius * matter)
    tau, info = clean(tau, level, smallest)
    return tau, info | {"level": level, "haze": HAZE * matter, "blur": blur}


def typical(sigma: Array) -> float:
    """The density of the field's matter: that below which 2 % of sum(sigma^2) lies; 0 for an empty field.

    Weighted by sigma^2, the quantile sees neither empty space nor haze, so it does not depend on the size of
    the box, and it scales with the density.
    """
    values = np.sort(sigma[sigma > 0])
    if not len(values):
        return 0.0
    share = np.cumsum(values.astype(np.float64) ** 2)
    return float(values[np.searchsorted(share, 0.02 * share[-1])])


def soften(sigma: Array, blur: float) -> Array:
    """The density without what is finer than light can tell: blurred by a Gaussian of so many cells.

    Light goes about 1 / typical(sigma) into matter. Where that is far, pictures do not say how the density varies on
    the way: it is noise, and would crumple the surface. A blur below a quarter of a cell, as that of an opaque field,
    would change nothing and is left out.
    """
    return sigma if blur < 0.25 else ndimage.gaussian_filter(sigma, blur, truncate=3.0)


def optical_depth(sigma: Array, cell: float) -> Array:
    """tau (R, R, R): the smallest optical depth from the border to each point along the six axis directions.

    A point counts half of its own cell. sigma (R, R, R) per world unit, `cell` in world units.
    """
    tau = np.full_like(sigma, np.inf)
    for axis in range(3):
        upto = np.cumsum(sigma, axis=axis)
        upto -= sigma / 2
        np.minimum(tau, upto, out=tau)
        np.subtract(sigma.sum(axis=axis, keepdims=True), upto, out=upto)
        np.minimum(tau, upto, out=tau)
    tau *= cell
    return tau


def clean(tau: Array, level: float, smallest: float) -> tuple[Array, dict[str, Any]]:
    """tau, 0 at the border and above the level somewhere, without its small parts and inner cavities, in place; and
    what was found.

    Done on the grid because the surface then comes out closed. A part is what hangs together over corners,
    and its size is the number of its points on the surface; those of less than `smallest` of the largest are dropped.
    Values are cut at twice the level: a surface between an empty and an opaque point is then put half-way.
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
