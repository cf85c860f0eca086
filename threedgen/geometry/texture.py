"""Textures (H, W, C): bilinear sampling, its adjoint, and filling of uncovered texels.

u points right and v up, both in [0, 1], as in OBJ and USD files (in glTF v points down). Row 0 is the top. The texel
centre of row j and column i is u = (i + 0.5) / W, v = 1 - (j + 0.5) / H. Points beyond the outermost texel centres get
the value of the border texels.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from scipy import ndimage

from threedgen.config.errors import ConfigError
from threedgen.geometry.images import to_linear, to_srgb
from threedgen.run.arrays import Array


@dataclass(frozen=True)
class Texture:
    """Texture of a material: an image of bytes, and a table that converts the bytes to colours.

    The table can include a colour factor of the material: a byte is converted to a linear value, multiplied by the
    factor, and converted back to sRGB. So the image itself stays unchanged.

    Attributes:
        pixels: (H, W, 3 or 4) uint8, sRGB and possibly alpha.
        table: (256, 3 or 4) float32 in [0, 1]. table[b, c] is the value of byte b in channel c: sRGB for c = 0, 1, 2,
            and straight (not premultiplied) alpha for c = 3. The texture has alpha if the table has 4 channels. If
            `pixels` then has only 3, the alpha of all pixels is table[255, 3].
    """

    pixels: Array
    table: Array

    @classmethod
    def tinted(cls, image: Array, factor: tuple[float, ...]) -> "Texture":
        """Create a texture from an sRGB image, uint8 (H, W, 3 or 4), multiplied by an RGB or RGBA factor.

        The factor multiplies linear colours, not sRGB values. With an RGB factor, the texture has no alpha. With an
        RGBA factor, it has alpha if the image has alpha or the factor's alpha is not 1.
        """
        levels = np.arange(256, dtype=np.float32)[:, None] / 255
        table = np.repeat(levels, 3, axis=1)
        if factor[:3] != (1, 1, 1):
            table = to_srgb(to_linear(table) * np.asarray(factor[:3], np.float32)).astype(np.float32)
        if len(factor) == 4 and (image.shape[2] == 4 or factor[3] != 1):
            table = np.hstack([table, levels * np.float32(factor[3])])
        return cls(image, table)

    def sample(self, uv: Array) -> Array:
        """Sample bilinearly at uv (P, 2) in [0, 1], v up.

        Returns (P, C) float32 in [0, 1]: sRGB, and alpha as a fourth channel if the texture has it.
        """
        out = np.empty((len(uv), self.table.shape[1]), np.float32)
        _sample(self.pixels, self.table, np.ascontiguousarray(uv, np.float32), out)
        return out


def sample(texture: Array, uv: Array) -> Array:
    """Sample a texture (H, W, C) bilinearly at uv (..., 2) in [0, 1], v up. Returns (..., C) float32."""
    points = np.ascontiguousarray(uv, np.float32).reshape(-1, 2)
    out = np.empty((len(points), texture.shape[-1]), np.float32)
    _sample(np.ascontiguousarray(texture, np.float32), np.empty((0, 0), np.float32), points, out)
    return out.reshape(*uv.shape[:-1], texture.shape[-1])


def scatter(values: Array, uv: Array, shape: tuple[int, int]) -> Array:
    """Add values (..., C) to a texture of zeros at uv (..., 2) in [0, 1], v up: the adjoint of bilinear sampling.

    Each value is added to the four texels around its uv, times their bilinear weights. `shape` is (height, width).
    Returns the texture (height, width, C) float32.
    """
    points = np.ascontiguousarray(uv, np.float32).reshape(-1, 2)
    rows = np.ascontiguousarray(values, np.float32).reshape(len(points), -1)
    out = np.zeros((*shape, rows.shape[1]), np.float64)
    _scatter(rows, points, out)
    return out.astype(np.float32)


def fill(texture: Array, covered: Array) -> Array:
    """Return a copy of a texture (H, W, C) in which uncovered texels have the value of the nearest covered texel.

    `covered` (H, W) is a bool mask of the texels to keep, such as those inside the UV triangle of a face. Raises
    ConfigError if no texel is covered.
    """
    if not covered.any():
        raise ConfigError("No face covers a texel. Check that uv coordinates are in [0, 1].")
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return texture[tuple(nearest)]


@njit(cache=True, error_model="numpy", inline="always")
def _corners(u, v, height, width):
    # rows j0, j1 and columns i0, i1 of the four nearest texels, and the weights of row j1 and column i1
    x = u * width - 0.5
    y = (1.0 - v) * height - 0.5
    left, up = np.floor(x), np.floor(y)
    i, j = np.int64(left), np.int64(up)
    i0, i1 = min(max(i, 0), width - 1), min(max(i + 1, 0), width - 1)
    j0, j1 = min(max(j, 0), height - 1), min(max(j + 1, 0), height - 1)
    return j0, j1, i0, i1, y - up, x - left


@njit(cache=True, error_model="numpy", inline="always")
def _texel(texture, table, j, i, c):
    if not len(table):
        return texture[j, i, c]
    return table[np.intp(texture[j, i, c]) if c < texture.shape[2] else 255, c]


@njit(cache=True, error_model="numpy", parallel=True)
def _sample(texture, table, uv, out):
    # `table` is for uint8 textures; empty for float textures
    height, width, _ = texture.shape
    for n in prange(len(uv)):
        j0, j1, i0, i1, b, a = _corners(np.float64(uv[n, 0]), np.float64(uv[n, 1]), height, width)
        for c in range(out.shape[1]):
            upper = (1 - a) * _texel(texture, table, j0, i0, c) + a * _texel(texture, table, j0, i1, c)
            lower = (1 - a) * _texel(texture, table, j1, i0, c) + a * _texel(texture, table, j1, i1, c)
            out[n, c] = (1 - b) * upper + b * lower


@njit(cache=True, error_model="numpy")
def _scatter(values, uv, out):
    # on one thread, so that the order of the sums does not depend on the machine
    height, width, channels = out.shape
    for n in range(len(uv)):
        j0, j1, i0, i1, b, a = _corners(np.float64(uv[n, 0]), np.float64(uv[n, 1]), height, width)
        for c in range(channels):
            value = values[n, c]
            out[j0, i0, c] += (1 - b) * (1 - a) * value
            out[j0, i1, c] += (1 - b) * a * value
            out[j1, i0, c] += b * (1 - a) * value
            out[j1, i1, c] += b * a * value
