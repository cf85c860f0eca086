"""Submeshes that the readers of mesh files return, and the textures, MTL files and buffers that mesh files name."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import LEGACY_ENCODING, read_bytes
from threedgen.geometry.images import to_linear, to_srgb
from threedgen.geometry.picture_file import load_image
from threedgen.run.arrays import Array

Wrap = Literal["repeat", "mirror", "clamp"]
MAX_BYTES, MAX_TEXTURE_BYTES = 1 << 30, 1 << 28
"""Largest size in bytes of a mesh file or a buffer, and of an MTL file or a texture."""
TEXTURES = "textures"


@dataclass(frozen=True)
class Submesh:
    """Triangles with one material, in the coordinates of the file's scene. Raises ConfigError for invalid indices.

    Attributes:
        vertices, normals: (V, 3). Normals are None if the file has none.
        uv: (V, 2) texture coordinates, v upwards, or None.
        faces: (F, 3) vertex indices, counter-clockwise seen from outside.
        colours: (V, 3) sRGB or (V, 4) with alpha, in [0, 1]. With a texture: linear factors of the texture, or None.
        texture: (H, W, 3) sRGB in [0, 1], or (H, W, 4) with straight alpha, or None.
        wrap: wrap modes of the texture along u and v.
        cutoff: points with at least this alpha are opaque, others invisible (None: alpha is the opacity).
        flat: True if the file has neither vertex colours nor a texture for this submesh.
    """

    vertices: Array
    faces: Array
    normals: Array | None = None
    uv: Array | None = None
    colours: Array | None = None
    texture: Array | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    cutoff: float | None = None
    flat: bool = False

    def __post_init__(self) -> None:
        count = len(self.vertices)
        if self.faces.size and not 0 <= self.faces.min() <= self.faces.max() < count:
            raise ConfigError(f"a triangle has vertex {self.faces.max()}, but there are {count} vertices")
        if any(array is not None and len(array) != count for array in (self.normals, self.uv, self.colours)):
            raise ConfigError("its vertices and their attributes differ in number")


class SideFiles:
    """Reader of the textures, MTL files and buffers that the mesh file `path` names.

    A relative path without ".." is searched below the folder of the mesh file. Then the last part of any path is
    searched in this folder, in `textures/` below it and in `textures/` beside it. Upper and lower case are equal, and
    slashes and backslashes. `failures` collects messages for the user about missing and unreadable files.
    """

    def __init__(self, path: Path) -> None:
        self.folder, self.failures, self._images = path.parent, list[str](), dict[str, Array | None]()

    def find(self, name: str) -> Path | None:
        parts = name.strip(" \t\"'").replace("\\", "/").split("/")
        last = parts[-1].rpartition(":")[2]
        places = [[last], [TEXTURES, last], ["..", TEXTURES, last]]
        if parts[0] and parts[0][1:2] != ":" and ".." not in parts:  # neither absolute nor out of the folder
            places.insert(0, parts)
        found = (_match(self.folder, place) for place in places)
        return next((path for path in found if path is not None and path.is_file()), None)

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """Read a file. Raises ConfigError if it is missing, too large or unreadable."""
        path = self.find(name)
        if path is None:
            last = short(name.replace("\\", "/").rpartition("/")[2])
            places = [str(self.folder), *(os.path.normpath(self.folder / up / TEXTURES) for up in (".", ".."))]
            raise ConfigError(f"{last} is missing. Searched in {', '.join(places)}.")
        try:
            return read_bytes(path, max_bytes)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror})") from None

    def image(self, name: str, data: bytes | None = None) -> Array | None:
        """Return the texture in the file `name`, or in `data`, as uint8 (H, W, 3), or (H, W, 4) with transparency.

        If it cannot be read, add a message to `failures` and return None.
        """
        if name not in self._images:
            try:
                data = self.read(name, MAX_TEXTURE_BYTES) if data is None else data
                self._images[name] = np.asarray(load_image(data, short(name), upright=False))
            except ConfigError as error:
                self.failures.append(f"texture {error.problem}")
                self._images[name] = None
        return self._images[name]


def _match(folder: Path, names: list[str]) -> Path | None:
    """Return the path folder / names[0] / names[1] ... of an existing file, ignoring case, or None."""
    try:
        for name in names:
            path = folder / name
            if not path.exists():
                path = next(entry for entry in sorted(folder.iterdir()) if entry.name.casefold() == name.casefold())
            folder = path
    except (OSError, ValueError, StopIteration):  # ValueError for impossible names
        return None
    return folder


def decode(data: bytes) -> str:
    """Decode text in UTF-8, or else in `LEGACY_ENCODING`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode(LEGACY_ENCODING, "replace")


def tinted(image: Array, factor: tuple[float, ...]) -> Array:
    """Multiply an image, uint8 (H, W, 3 or 4), by a linear RGB or RGBA factor. Returns sRGB in [0, 1].

    The result is (H, W, 4) if the factor is RGBA, and the image has alpha or the factor's alpha is not 1.
    """
    rgb = image[..., :3].astype(np.float32) / 255
    if factor[:3] != (1, 1, 1):
        rgb = to_srgb(to_linear(rgb) * np.asarray(factor[:3], np.float32))
    if len(factor) == 3 or (image.shape[2] == 3 and factor[3] == 1):
        return rgb
    alpha = image[..., 3:].astype(np.float32) / 255 if image.shape[2] == 4 else np.ones_like(rgb[..., :1])
    return np.concatenate([rgb, alpha * np.float32(factor[3])], axis=-1)
