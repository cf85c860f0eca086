"""Textures (H, W, C): reading them between texels, the adjoint of that, and filling what no face covers.

u runs to the right and v UP, both in [0, 1]: (0, 0) is the lower left corner of the picture, whose row 0 is the
upper one. glTF counts v downwards, so its writer stores 1 - v; OBJ and USD take v as it is here. The centre of the
texel in row j and column i is at u = (i + 0.5) / W, v = 1 - (j + 0.5) / H. Beyond the outermost centres a texture
goes on with its last texel.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.run.arrays import Array


def sample(texture: Array, uv: Array) -> Array:
    """Bilinear values (..., C) float32 of a texture (H, W, C) at uv (..., 2)."""
    where = np.ascontiguousarray(uv, np.float32).reshape(-1, 2)
    out = np.empty((len(where), texture.shape[-1]), np.float32)
    _sample(np.ascontiguousarray(texture, np.float32), where, out)
    return out.reshape(*uv.shape[:-1], texture.shape[-1])


def scatter(values: Array, uv: Array, shape: tuple[int, int]) -> Array:
    """The adjoint of `sample`: a texture (H, W, C) float32 in which each texel has the sum of values (..., C), each
    times the weight with which `sample` at its uv (..., 2) reads that texel. So if values are the gradient of a loss
    in what was read, this is its gradient in the texels.
    """
    where = np.ascontiguousarray(uv, np.float32).reshape(-1, 2)
    rows = np.ascontiguousarray(values, np.float32).reshape(len(where), -1)
    out = np.zeros((*shape, rows.shape[1]), np.float64)
    _scatter(rows, where, out)
    return out.astype(np.float32)


def fill(texture: Array, covered: Array) -> Array:
    """Each texel that is not covered gets the value of the nearest that is, so that neither bilinear reading at a
    chart's border nor mip-maps mix in what belongs to no surface.

    texture (H, W, C), covered (H, W) bool. Raises ConfigError if nothing is covered.
    """
    if not covered.any():
        raise ConfigError("no texel of the texture is covered by a face; its uv may lie outside of [0, 1]")
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    filled: Array = texture[tuple(nearest)]
    return filled


@njit(cache=True, error_model="numpy", inline="always")
def _corners(u, v, height, width):
    """Rows j0, j1 and columns i0, i1 around a point and the weights of j1 and i1."""
    x = u * width - 0.5
    y = (1.0 - v) * height - 0.5
    left, up = np.floor(x), np.floor(y)
    i, j = np.int64(left), np.int64(up)
    i0, i1 = min(max(i, 0), width - 1), min(max(i + 1, 0), width - 1)
    j0, j1 = min(max(j, 0), height - 1), min(max(j + 1, 0), height - 1)
    return j0, j1, i0, i1, y - up, x - left


@njit(cache=True, error_model="numpy", parallel=True)
def _sample(texture, uv, out):
    height, width, channels = texture.shape
    for n in prange(len(uv)):
        j0, j1, i0, i1, b, a = _corners(np.float64(uv[n, 0]), np.float64(uv[n, 1]), height, width)
        for c in range(channels):
            upper = (1 - a) * texture[j0, i0, c] + a * texture[j0, i1, c]
            lower = (1 - a) * texture[j1, i0, c] + a * texture[j1, i1, c]
            out[n, c] = (1 - b) * upper + b * lower


@njit(cache=True, error_model="numpy")
def _scatter(values, uv, out):
    """On one thread: many points write into the same texel, and their order must not depend on the machine."""
    height, width, channels = out.shape
    for n in range(len(uv)):
        j0, j1, i0, i1, b, a = _corners(np.float64(uv[n, 0]), np.float64(uv[n, 1]), height, width)
        for c in range(channels):
            value = values[n, c]
            out[j0, i0, c] += (1 - b) * (1 - a) * value
            out[j0, i1, c] += (1 - b) * a * value
            out[j1, i0, c] += b * (1 - a) * value
            out[j1, i1, c] += b * a * value
