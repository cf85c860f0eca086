"""Buffers, accessors and images of GLB and glTF 2.0 files."""

import base64
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from pygltflib import Accessor, BufferView

from threedgen.config.errors import ConfigError, printable
from threedgen.config.plain_file import parse_json
from threedgen.geometry.side_files import SideFiles
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

T = TypeVar("T")

DRACO = "KHR_draco_mesh_compression"
NO_COMPRESSION, NO_TEXTURE_FORMAT = "Save it without compression.", "Save its textures as PNG or JPEG."
REFUSED = {
    DRACO: f"Draco. {NO_COMPRESSION}",
    "EXT_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "KHR_meshopt_compression": f"meshopt. {NO_COMPRESSION}",
    "KHR_texture_basisu": f"KTX2. {NO_TEXTURE_FORMAT}",
}
"""Extensions that cannot be read: key of the extension -> its common name and advice to the user, for the error."""
MAX_KEPT = 1 << 28  # largest size in bytes of a buffer file that is kept in memory
MAX_NUMBERS = 400_000_000  # largest number of numbers that are read from all accessors
DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def gltf_tree(data: bytes) -> Any:
    """Return the JSON part of a GLB or glTF file as dicts, lists, numbers and strings. `data` are the file's bytes.

    Raises ConfigError if the JSON part is invalid or has too many values.
    """
    text = data[20 : 20 + int.from_bytes(data[12:16], "little")] if data[:4] == b"glTF" else data
    try:
        return parse_json(text)
    except ValueError as error:
        raise ConfigError(f"its JSON part cannot be read ({printable(error, 80)})") from None


class GltfData:
    """JSON part, buffers and images of one GLB or glTF file.

    `data` are the bytes of the file. `files` reads the buffers and images that are stored in other files. Raises
    ConfigError if the file is glTF 1.0. For a damaged file, the methods raise exceptions of many classes.
    """

    def __init__(self, data: bytes, files: SideFiles) -> None:
        self.tree, self.files, self.numbers = gltf_tree(data), files, 0
        self.binary = memoryview(b"")
        if data[:4] == b"glTF":
            start = 20 + int.from_bytes(data[12:16], "little")
            self.binary = memoryview(data)[start + 8 : start + 8 + int.from_bytes(data[start : start + 4], "little")]
        if data[:5] == b"glTF\1" or isinstance(self.tree.get("nodes"), dict):
            raise ConfigError("it is glTF 1.0. Save it as glTF 2.0")
        self.buffer = cache(self._buffer)
        for index in range(len(self.tree.get("buffers", []))):
            self.buffer(index)

    def _buffer(self, index: int) -> bytes | memoryview | Path:
        # bytes of a buffer, or path of the file that has them
        uri = self.tree["buffers"][index].get("uri")
        if uri is None:
            return self.binary if index == 0 else b""
        if uri.startswith("data:"):
            return _data_uri(uri)
        path, size = self.files.require(self.file_name(uri)), self.tree["buffers"][index].get("byteLength", 0)
        # many parts can share a buffer, so it is read once; of a large buffer, only the needed parts are read
        return self.files.read(path, count=size) if 0 < size <= MAX_KEPT else path

    def file_name(self, uri: str) -> str:
        """Return the name of the file that a URI means: `uri` percent-decoded, such as "a b.png" for "a%20b.png".

        If no file of this name is found beside the glTF file (see `SideFiles.find`), but one with the name `uri` is,
        return `uri` unchanged.
        """
        name = unquote(uri)
        return uri if self.files.find(name) is None and self.files.find(uri) is not None else name

    def buffer_view(self, index: int, offset: int, dtype: str, count: int, columns: int = 1) -> Array:
        """Return an array (count, columns) from buffer view `index`, `offset` bytes after its start.

        `dtype` is the NumPy type of the numbers, such as "<f4".
        """
        view = typed(BufferView, self.tree["bufferViews"][index])
        data, size = self.buffer(view.buffer), np.dtype(dtype).itemsize
        if not data and (compressed := [name for name in view.extensions if name in REFUSED]):
            raise refusal(compressed[0])
        stride = view.byteStride or size * columns
        start, needed = view.byteOffset + offset, max(0, (count - 1) * stride + size * columns)
        length = max(0, min(needed, view.byteLength - offset))
        if isinstance(data, Path):
            data = self.files.read(data, start=start, count=length)
        else:
            data = memoryview(data)[start : start + length]
        if len(data) < needed:
            raise ConfigError(f"it has only {len(data):,} of {needed:,} bytes of an accessor")
        return np.ndarray((count, columns), dtype, data, 0, (stride, size))

    def accessor_array(self, index: int, rows: Array | None = None, normalise: bool = False) -> Array:
        """Return the values (count, columns) of accessor `index`; with `rows` (R,), only those rows: (R, columns).

        `columns` is the number of components of a value, such as 3 for positions. Integers are scaled to floats, signed
        ones in [-1, 1] and unsigned ones in [0, 1], if the accessor has the flag `normalized` or if `normalise` is
        True.
        """
        accessor = typed(Accessor, self.tree["accessors"][index])
        dtype, columns = DTYPES[accessor.componentType], COLUMNS[accessor.type]
        stored = accessor.bufferView is not None and not accessor.sparse
        self.numbers += columns * (len(rows) if rows is not None and stored else accessor.count)
        if self.numbers > MAX_NUMBERS:
            raise ConfigError(f"its accessors have more than {MAX_NUMBERS:,} numbers; one has {accessor.count} values")
        if accessor.bufferView is not None:
            values = self.buffer_view(accessor.bufferView, accessor.byteOffset, dtype, accessor.count, columns)
        else:
            values = np.zeros((accessor.count, columns), dtype)
        if accessor.sparse:
            where, new, count = (accessor.sparse[key] for key in ("indices", "values", "count"))
            kind = DTYPES[where["componentType"]]
            changed = self.buffer_view(where["bufferView"], where.get("byteOffset", 0), kind, count)[:, 0]
            values = values.copy()
            values[changed] = self.buffer_view(new["bufferView"], new.get("byteOffset", 0), dtype, count, columns)
        values = values if rows is None else values[rows]
        if values.dtype.kind in "iu" and (accessor.normalized or normalise):
            return np.maximum(values / np.iinfo(values.dtype).max, -1)
        return values

    def image(self, tree: Tree, index: int) -> Array | None:
        """Return an image as uint8 (H, W, 3 or 4), or None if it cannot be read.

        `tree` is the JSON object of the image. `index` is its number, by which messages name the image. Raises
        ConfigError if the image is a KTX2 file.
        """
        uri = tree.get("uri", "")
        if tree.get("mimeType") == "image/ktx2" or uri.lower().endswith(".ktx2"):
            raise refusal("KHR_texture_basisu")
        if "bufferView" in tree:
            length = self.tree["bufferViews"][tree["bufferView"]]["byteLength"]
            stored = partial(self.buffer_view, tree["bufferView"], 0, "u1", length)
            return self.files.image(f"image {index}", load=lambda: self.files.count_bytes(stored().tobytes()))
        if uri.startswith("data:"):
            return self.files.image(f"image {index}", load=lambda: self.files.count_bytes(_data_uri(uri)))
        return self.files.image(self.file_name(uri))


def typed(kind: type[T], tree: Tree) -> T:
    """Return the JSON object `tree` as an object of a pygltflib class, with glTF's default values of missing keys."""
    known = vars(kind)["__dataclass_fields__"]
    return kind(**{key: value for key, value in tree.items() if key in known})


def refusal(extension: str) -> ConfigError:
    """Return the error for a file that uses a glTF extension that cannot be read, a key of `REFUSED`."""
    return ConfigError(f"it uses {extension}: {REFUSED[extension]}")


def _data_uri(uri: str) -> bytes:
    header, _, body = uri.partition(",")
    return base64.b64decode(unquote(body) + "==") if header.endswith("base64") else unquote_to_bytes(body)
