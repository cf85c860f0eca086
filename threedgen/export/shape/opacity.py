"""Turn a density grid into a scalar field whose level set is the object's surface.

The surface lies where a ray has lost a fixed part of its light, not at a fixed density. The reason is that densities
of trained fields differ by a factor of 100, and that the fields are hollow inside and hazy outside. The optical depth
at each grid point is

    tau(x) = min over the six axis directions of the integral of sigma from the border to x,

and the surface is tau = ln 2 / 2. A thin part is kept if its total optical thickness is at least ln 2, so that renders
show it with an opacity of at least one half. Some fields need another value than ln 2 / 2:

    very low density      a smaller value, or the surface would lie too far behind the silhouette (MAX_DEPTH)
    very high density     a larger value, or the surface would lie in the haze in front of the object (MIN_DEPTH)
"""

import math

import numpy as np
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

HALF_OPAQUE = math.log(2) / 2  # optical depth tau of the surface
HAZE = 0.1  # density that is subtracted everywhere because it counts as empty, as a fraction of the typical density
MIN_PART = 0.01  # smallest size of a connected part that is kept, as a fraction of the largest part's size
BLUR_SCALE, MAX_BLUR = 0.6, 0.03
"""Standard deviation of the density blur in scene radii: BLUR_SCALE * (mean free path of light)^2, at most MAX_BLUR."""
MIN_DEPTH, MAX_DEPTH = 0.008, 0.03
"""Minimum and maximum distance, in scene radii, that a ray travels through the typical density before the surface.

The minimum is about one grid cell. With a smaller minimum, haze in front of the object would count as surface.
"""


class EmptyField(ConfigError):
    """Error for a field (trained 3D representation) without a surface, for example if its density is too low."""


def depth_field(sigma: Array, cell: float, radius: float) -> tuple[Array, Tree]:
    """Compute, from a density grid, a scalar field tau whose level set is the object's surface.

    The density is blurred, and 0.1 (`HAZE`) times its typical value (see `typical_density`) is subtracted to remove
    haze. Then tau of a grid point is computed. Six straight lines along the axes lead from the grid's border to the
    point. The density is integrated along each, and tau is the smallest of the six integrals. Small parts of the object
    are removed and cavities filled (see `clean`).

    The standard deviation of the blur, in scene radii, is 0.6 / (typical density * `radius`)^2, at most 0.03
    (`BLUR_SCALE`, `MAX_BLUR`). A blur below a quarter of a grid cell is left out.

    Args:
        sigma: densities (R, R, R) per world unit; may be overwritten.
        cell: grid spacing in world units.
        radius: radius of the scene sphere in world units.

    Returns:
        tau (R, R, R), larger inside the object.
        Dict with "level": the surface is the set tau = level. The level is ln 2 / 2, because tau has this value in the
            middle of a wall that stops half of the light. If, at the typical density, light reaches this tau after less
            than 0.008 or more than 0.03 scene radii (`MIN_DEPTH`, `MAX_DEPTH`), the level is instead the tau of this
            limit, but it is raised at most to half the maximum of tau. Further keys: "haze", the subtracted density;
            "blur", the standard deviation in world units; "parts_found" and "parts_kept", the numbers of connected
            parts; "volume_dropped" and "cavities_filled", fractions of the object's volume.

    Raises:
        EmptyField: if tau is at most ln 2 / 2 everywhere, so that no part of the object stops half of the light along
            all three axes.
    """
    typical = typical_density(sigma)
    path = 1 / (typical * radius) if typical else 0.0  # free path of light, in scene radii
    blur = min(BLUR_SCALE * path**2, MAX_BLUR) * radius
    if blur / cell >= 0.25:  # finer variations, which images do not constrain, would roughen the surface
        sigma = ndimage.gaussian_filter(sigma, blur / cell, truncate=3.0)
    tau = optical_depth(np.maximum(sigma - HAZE * typical, 0, out=sigma), cell)
    for axis in range(3):
        np.moveaxis(tau, axis, 0)[[0, -1]] = 0
    if not tau.max() > HALF_OPAQUE:
        opacity = 100 * (1 - math.exp(-2 * float(tau.max())))
        problem = f"the field has no solid object: its maximum opacity is {opacity:.0f} %"
        raise EmptyField(f"{problem}. Train longer, use another seed or lower the learning rates (section optimizer)")
    level = max(HALF_OPAQUE, min(MIN_DEPTH * radius * typical, float(tau.max()) / 2))
    level = min(level, MAX_DEPTH * radius * typical)
    tau, info = clean(tau, level)
    return tau, info | {"level": level, "haze": HAZE * typical, "blur": blur}


def typical_density(sigma: Array) -> float:
    """Return a typical density of the object in a density grid sigma (R, R, R); 0 for an empty grid.

    It is near the lower end of the densities inside the object: points with smaller densities have only 2 % of the sum
    of sigma^2 over the grid. With squares, haze counts little and empty space not at all, so that the result hardly
    depends on the size of the grid's box.
    """
    values = np.sort(sigma[sigma > 0])
    if not len(values):
        return 0.0
    share = np.cumsum(values.astype(np.float64) ** 2)
    return float(values[np.searchsorted(share, 0.02 * share[-1])])


def optical_depth(sigma: Array, cell: float) -> Array:
    """Return the optical depth tau (R, R, R) of each point of a density grid sigma (R, R, R) per world unit.

    The density is integrated along the six axis directions from the grid's border to the point, the centre of its cell.
    tau is the minimum of the six integrals. `cell` is the grid spacing in world units.
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


def clean(tau: Array, level: float) -> tuple[Array, Tree]:
    """Remove small parts of an object and fill its cavities, in place. Return the grid `tau` and a dict of statistics.

    The object is the set of grid points with tau > level. A part is a connected set of these points; each point has 26
    neighbours. The size of a part is the number of its surface points, which have one of their 6 nearest neighbours
    outside the object. Parts below 1 % (`MIN_PART`) of the largest size are removed. Cavities are empty regions that
    the object encloses.

    Args:
        tau: optical depths (R, R, R), 0 at the grid's border and above `level` somewhere. They are clipped to at most
            twice the level, so that the interpolated surface tau = level is in the middle between an empty point and an
            opaque one.
        level: optical depth of the surface.

    Returns:
        `tau`.
        Dict with the numbers of parts "parts_found" and "parts_kept", and with "volume_dropped" and "cavities_filled",
            fractions of the object's volume.
    """
    np.minimum(tau, 2 * level, out=tau)
    inside = tau > level
    corners = np.ones((3, 3, 3), bool)
    labels, count = ndimage.label(inside, corners)
    surface = inside & ~ndimage.binary_erosion(inside)
    sizes = np.bincount(labels[surface], minlength=count + 1)
    large = sizes >= max(MIN_PART * sizes.max(), 1)
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
