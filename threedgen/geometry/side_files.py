"""Reader of the files that a mesh file names: textures, MTL files and buffers."""

import codecs
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import LEGACY_ENCODING, read_bytes
from threedgen.geometry.image_file import load_image, open_image
from threedgen.geometry.submesh import MAX_BYTES, TooLarge
from threedgen.run.arrays import Array
from threedgen.run.disk import file_key

MAX_TEXTURE_BYTES, MAX_MTL_BYTES = 1 << 28, 1 << 24  # largest size in bytes of a texture and of all MTL files
MAX_TEXELS = 400_000_000  # largest number of pixels of all textures of a mesh file together
MAX_READ, MAX_SEARCHES = 4 << 30, 200_000  # largest total number of bytes read, and of searches for files
MAX_FAILURES = 20  # largest number of messages about missing and unreadable files
TEXTURES = "textures"


class SideFiles:
    """Reader of the textures, MTL files and buffers that the mesh file `path` names.

    A relative path without ".." is searched below the folder of the mesh file. Then the file name alone is searched in
    the folder of the mesh file, in its subfolder `textures/`, and in a folder `textures/` beside the folder of the mesh
    file. The search ignores case, and slashes and backslashes are equal. Pipes, devices and files in other folders,
    even behind symbolic links, are never opened. The list `failures` collects messages for the user about missing and
    unreadable files, and the set `paths` the files that are read.
    """

    def __init__(self, path: Path) -> None:
        self.folder, self.failures, self.texels = path.parent, list[str](), 0
        self.bytes, self.searches, self.paths = 0, 0, set[Path]()
        self._images, self._masked = dict[tuple[str, Path | None], Array | None](), dict[tuple[int, int], Array]()
        self._listings = Listings()

    def find(self, name: str, beside: Path | None = None) -> Path | None:
        """Return the path of the file that the mesh file or its MTL file calls `name`; None if it is not found.

        In each folder, four paths are tried in this order, where FILE is the last part of `name`:

        1. `name`, unless it is absolute or has "..",
        2. FILE,
        3. textures/FILE,
        4. ../textures/FILE.

        The folders are `beside`, if it is not None, and then the folder of the mesh file. Then all this is repeated
        with the percent-decoded `name`. Case is ignored.

        `beside` is the folder of the MTL file that names the file; None: the mesh file itself names it. Raises TooLarge
        if too many files are searched.
        """
        found = [*self._candidates(name, beside), *self._candidates(unquote(name), beside)]
        return next((path for path in found if os.path.isfile(path) and self._inside(path)), None)

    def require(self, name: str, beside: Path | None = None) -> Path:
        """Return the path of the file that the mesh file or its MTL file calls `name`, searched as by `find`.

        `beside` is the folder of the MTL file that names the file; None: the mesh file names it. Raises ConfigError
        with the reason if the file is not found or may not be opened.
        """
        if path := self.find(name, beside):
            return path
        for path in self._candidates(name, beside):
            if os.path.isfile(path):
                raise ConfigError(f"{path} is a link to another folder and is not followed. Copy the file there.")
            self.read(path, 0)  # raises the reason, such as a pipe
        last = short(name.replace("\\", "/").rpartition("/")[2])
        folders = dict.fromkeys((beside or self.folder, self.folder))
        places = [os.path.normpath(folder / place) for folder in folders for place in ("", TEXTURES, f"../{TEXTURES}")]
        raise ConfigError(f"{last} is missing. Searched in {', '.join(dict.fromkeys(places))}.")

    def read(self, path: Path, max_bytes: int = MAX_BYTES, start: int = 0, count: int | None = None) -> bytes:
        """Read `count` bytes of a file from the byte `start` on, or fewer at its end. `count` None: all up to the end.

        Raises ConfigError if the file is unreadable, or if more than `max_bytes` bytes would be read. Raises TooLarge
        if more than 4 GiB (`MAX_READ`) of all files together have been read.
        """
        self.paths.add(path)
        try:
            return self.count_bytes(read_bytes(path, max_bytes, start, count))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror})") from None

    def count_bytes(self, data: bytes) -> bytes:
        """Add the size of `data` to the number of bytes read so far from all files, and return `data`.

        Raises TooLarge if more than 4 GiB (`MAX_READ`) have been read.
        """
        self.bytes += len(data)
        if self.bytes > MAX_READ:
            raise TooLarge(f"it reads more than {MAX_READ >> 30} GiB of textures and buffers. Reduce them")
        return data

    def _candidates(self, name: str, beside: Path | None) -> list[Path]:
        self.searches += 1
        if self.searches > MAX_SEARCHES:
            raise TooLarge("it names too many other files")
        parts = name.strip(" \t\"'").replace("\\", "/").split("/")
        last = parts[-1].rpartition(":")[2]
        places = [[last], [TEXTURES, last], ["..", TEXTURES, last]] if last else []
        if parts[0] and parts[0][1:2] != ":" and ".." not in parts:  # neither absolute nor out of the folder
            places.insert(0, parts)
        folders = dict.fromkeys((beside or self.folder, self.folder))
        found = (self._listings.match(folder, place) for folder in folders for place in places)
        return [path for path in found if path is not None]

    def _inside(self, path: Path) -> bool:
        # after links are followed: in the mesh's folder, or in `textures/` beside it
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.folder))
        if real.is_relative_to(root):
            return True
        return real.is_relative_to(root.parent) and real.relative_to(root.parent).parts[0].casefold() == TEXTURES

    def image(self, name: str, beside: Path | None = None, load: Callable[[], bytes] | None = None) -> Array | None:
        """Load a texture as uint8 (H, W, 3), or (H, W, 4) with alpha. Return None if it cannot be read.

        `name` is the file name in the mesh file or its MTL file. `beside` is the folder of the MTL file; None:
        the mesh file names the texture. For an embedded texture, which has no file, `load` is a function that
        returns its bytes, and `name` its name in messages. If the texture cannot be read, a message is added to the
        list `failures`. Raises TooLarge if too many bytes are read or too many files are searched.
        """
        key = name, beside
        if key not in self._images:
            try:
                data = load() if load else self.read(self.require(name, beside), MAX_TEXTURE_BYTES)
                self._images[key] = self._decoded(data, short(name))
            except TooLarge:
                raise
            except ConfigError as error:
                self.failures.append(f"texture {error.problem}")
                self._images[key] = None
        return self._images[key]

    def _decoded(self, data: bytes, name: str) -> Array:
        with open_image(data, name) as image:
            self._reserve(image.width * image.height)
        return np.asarray(
            load_image(data, name, upright=False, profile=False)
        )  # glTF ignores EXIF rotation and colour profiles

    def masked(self, base: Array | None, mask: Array) -> Array:
        """Return the colours of a texture `base`, with another texture `mask` as alpha: (H, W, 4) uint8.

        Both are uint8 with 3 or 4 channels. `mask` is resized to H x W, the size of `base`. The alpha values are the
        alpha of `mask` or, if it has none, the mean of its channels. If `base` is None, the result has the size of
        `mask` and the alpha values in all four channels. Raises ConfigError if all textures together have too many
        pixels.
        """
        key = id(base), id(mask)
        if key not in self._masked:
            grey = mask[..., 3] if mask.shape[2] == 4 else mask[..., :3].mean(-1).round().astype(np.uint8)
            rgb = np.repeat(grey[..., None], 3, axis=2) if base is None else base[..., :3]
            self._reserve(rgb.size // 3)
            resized = Image.fromarray(grey).resize(rgb.shape[1::-1], Image.Resampling.BILINEAR)
            self._masked[key] = np.dstack([rgb, np.asarray(resized)])
        return self._masked[key]

    def _reserve(self, texels: int) -> None:
        self.texels += texels
        if self.texels > MAX_TEXELS:
            raise ConfigError(f"its textures have more than {MAX_TEXELS:,} pixels together. Reduce them.")


class Listings:
    """Finder of files by a name in any upper and lower case. It reads the file list of each folder only once."""

    def __init__(self) -> None:
        self._entries = cache(_entries)

    def match(self, folder: Path, names: Sequence[str], suffixes: Sequence[str] = ("",)) -> Path | None:
        """Return the path folder/names[0]/names[1]/... plus the first of `suffixes` with which it exists.

        Upper and lower case are equal in `names`; the result has the spelling on disk. None: no such file exists.
        """
        for number, name in enumerate(names, 1):
            ends = suffixes if number == len(names) else ("",)
            entry = next(filter(None, (self._entry(folder, name + end) for end in ends)), None)
            if entry is None:
                return None
            folder = folder / entry
        return folder

    def _entry(self, folder: Path, name: str) -> str | None:
        entries = self._entries(folder)  # empty if the folder may not be listed
        known = name in ("", os.curdir, os.pardir) or not entries and os.path.exists(folder / name)
        return name if known else entries.get(name) or entries.get(file_key(name))


def _entries(folder: Path) -> dict[str, str]:
    # key of a file name, or the name itself -> file name; of equal keys the first name wins
    try:
        names = sorted(os.listdir(folder), reverse=True)
        return {file_key(name): name for name in names} | {name: name for name in names}
    except OSError:
        return {}


def encoding(data: bytes) -> str:
    """Return the name of Python's codec for text bytes: "utf-16", "utf-8-sig" or "cp1252" (`LEGACY_ENCODING`).

    UTF-16 needs its byte order mark at the start. Without it, bytes that are valid UTF-8 are UTF-8, others cp1252.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return LEGACY_ENCODING
    return "utf-8-sig"


def decode(data: bytes) -> str:
    """Decode text bytes with the codec that `encoding` finds: UTF-16, UTF-8 or `LEGACY_ENCODING` (cp1252)."""
    return data.decode(encoding(data), "replace")
