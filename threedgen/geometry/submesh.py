"""Submesh, the data class that the readers of mesh files return, and the limits of these readers."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array

Wrap = Literal["repeat", "mirror", "clamp"]
MAX_BYTES = 1 << 30  # largest size in bytes of a mesh file, and of the part of a buffer that is read
MAX_TRIANGLES, MAX_PARTS = 5_000_000, 20_000
"""Largest number of triangles, and of submeshes (triangles with one material), in a mesh file."""
MAX_LINES = 20_000_000  # largest number of lines of a text file, and of rows of a table, such as vertices
MAX_VERTICES, MAX_WORDS = 10_000_000, 150_000_000  # largest number of vertices and of words in a text file

WHITE = b" \t\n\v\f\r"
MAX_UNIT = 1.5  # some programs write slightly more than 1 for 1


class TooLarge(ConfigError):
    """Error for a mesh file that is too large to read, for example because it has too many triangles."""


@dataclass(frozen=True)
class Submesh:
    """Triangles with one material, in the coordinates of the file's scene.

    Raises ConfigError if a vertex index is out of range, or if vertices and their attributes differ in number.

    Attributes:
        vertices: (V, 3) positions.
        normals: (V, 3), or None if the file has none.
        uv: (V, 2) texture coordinates, v upwards, or None.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        colours: (V, 3), or (V, 4) with alpha, in [0, 1]. Without a texture, these are sRGB colours of the vertices.
            With a texture, they are factors: the texture's colours are converted from sRGB to linear values and
            multiplied by them, and its alpha is multiplied by theirs. None: there are no vertex colours or factors.
        texture: texture, or None.
        wrap: wrap modes of the texture along u and v: "repeat", "mirror" or "clamp".
        cutoff: points with at least this alpha are opaque, others invisible. None: alpha is the opacity.
        flat: True if the file has neither vertex colours nor a texture for this submesh, so that `colours` has the
            material's colour, or white, at all vertices. False if colours were not read.
        file_index: (V,) index of each vertex in the file, if the reader has copied vertices with several texture
            coordinates or normals; all submeshes of a file have it, or none.
    """

    vertices: Array
    faces: Array
    normals: Array | None = None
    uv: Array | None = None
    colours: Array | None = None
    texture: Texture | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    cutoff: float | None = None
    flat: bool = False
    file_index: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.vertices)
        if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < count:
            raise ConfigError(f"a triangle has a vertex that does not exist; there are {count:,} vertices")
        if any(array is not None and len(array) != count for array in (self.normals, self.uv, self.colours)):
            raise ConfigError("its vertices and their attributes differ in number")


def in_unit_range(colours: Array) -> Array:
    """Return colours in [0, 1] from colours in [0, 1] or [0, 255]. NaN stays NaN.

    The range of all colours is taken to be [0, 255] if any value is above `MAX_UNIT` (1.5).
    """
    return colours / (255 if np.nanmax(colours, initial=0) > MAX_UNIT else 1)


def check_count(triangles: int, parts: int = 1, vertices: int = 0) -> None:
    """Raise TooLarge for more than 5 million triangles, 20,000 submeshes (`parts`) or 10 million vertices of a mesh."""
    if triangles > MAX_TRIANGLES:
        raise TooLarge(f"too many triangles: {triangles:,}; the maximum is {MAX_TRIANGLES:,}. Simplify the mesh")
    if parts > MAX_PARTS:
        raise TooLarge(f"too many parts: {parts:,}; the maximum is {MAX_PARTS:,}. Join its meshes by material")
    if vertices > MAX_VERTICES:
        raise TooLarge(f"it has more than {MAX_VERTICES:,} vertices. Simplify the mesh or save it as GLB")


def check_text(data: bytes | memoryview, max_words: int | None = None) -> bytes:
    """Check the size of a text file with the content `data`, and return the content as bytes.

    Raises TooLarge above 20 million lines (`MAX_LINES`) or `max_words` words. `max_words` None: 150 million.
    """
    data, max_words = bytes(data), max_words or MAX_WORDS
    if max(data.count(b"\n"), data.count(b"\r")) > MAX_LINES:
        raise TooLarge(f"it has more than {MAX_LINES:,} lines")
    if sum(map(data.count, WHITE)) > max_words:
        raise TooLarge(f"it has more than {max_words:,} words")
    return data
