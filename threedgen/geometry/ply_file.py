"""Reader of PLY meshes, text and binary.

It reads polygons, texture coordinates, colours of vertices or faces, and one texture.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.polygons import polygon_mesh
from threedgen.geometry.side_files import SideFiles, decode
from threedgen.geometry.submesh import (
    MAX_LINES,
    MAX_TRIANGLES,
    Submesh,
    TooLarge,
    check_count,
    check_text,
    in_unit_range,
)
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array

MAX_HEADER = 1_000_000  # largest size of the header, bytes
_NAMES = {"i1": "char int8", "u1": "uchar uint8", "i2": "short int16", "u2": "ushort uint16", "i4": "int int32"}
_NAMES |= {"u4": "uint uint32", "f4": "float float32", "f8": "double float64"}
DTYPES = {name: dtype for dtype, names in _NAMES.items() for name in names.split()}
UV_NAMES = [(prefix + u, prefix + v) for u, v in ("uv", "st") for prefix in ("", "texture_", "texcoord_")]

COLOUR_NAMES = [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")]


class Property(NamedTuple):
    """Property (column) of a PLY element (table, such as the vertices), either a scalar or a list.

    Attributes:
        name: name of the property.
        dtype: NumPy type of the values, such as "f4".
        length: NumPy type of the number of values in front of each list; "" for a scalar.
    """

    name: str
    dtype: str
    length: str


Table = Mapping[str, Array | Sequence[Array]]
"""N rows of a PLY element: property name -> values. A scalar property is an array (N,).

A list property is an array (N, L), or N arrays if the lists differ in length.
"""


def read_ply(data: bytes, files: SideFiles, colours: bool) -> Submesh:
    """Read the mesh in the bytes `data` of a PLY file; polygons become triangles.

    Normals and texture coordinates are read if the file has them. If `colours` is True, the result also has the first
    of these that is available: texture, colours of the vertices, colours of the faces, white vertices. `files` reads
    the image file that the PLY file names as its texture, which is ignored without texture coordinates. Raises
    ConfigError if the file has no faces. A damaged file can raise exceptions of any class.
    """
    header, tables, dtypes = _parse(data)
    vertex, face = tables["vertex"], tables.get("face", {})
    points = np.column_stack([vertex[axis] for axis in "xyz"]).astype(np.float64)
    polygons = face.get("vertex_indices", face.get("vertex_index", ()))
    if not len(polygons):
        kind = "strips of triangles" if "tristrips" in tables else "3D Gaussians" if "f_dc_0" in vertex else "points"
        raise ConfigError(f"it holds {kind}, not faces. Convert it to a mesh of triangles")
    uv = next((found for names in UV_NAMES if (found := _columns(vertex, names)) is not None), None)
    corner_uv = face.get("texcoord")
    result = Submesh(points, np.zeros((0, 3), np.int64), _columns(vertex, ("nx", "ny", "nz")), uv)
    image = _image(header, files) if colours else None
    if image is not None and uv is None and corner_uv is None:
        files.failures.append("it names a texture, but has no texture coordinates")
        image = None
    by_face = None
    if colours and image is None:
        by_vertex, by_face = _colours(vertex, dtypes["vertex"]), _colours(face, dtypes["face"])
        flat = by_vertex is None
        result = replace(result, colours=np.ones_like(points) if by_vertex is None else by_vertex, flat=flat)
        by_face = by_face if flat else None
    result = polygon_mesh(result, polygons, corner_uv if by_face is None else None, by_face)
    return result if image is None else replace(result, texture=Texture.tinted(image, (1, 1, 1)))


def read_vertices(data: bytes) -> tuple[Table, Array | None]:
    """Read the vertices of a PLY file from its bytes `data`.

    Returns the table of the vertices (property name, such as "x", -> values of N vertices), and their colours (N, 3),
    sRGB in [0, 1], or None if there are no colours. A damaged file can raise exceptions of any class.
    """
    _, tables, dtypes = _parse(data)
    return tables["vertex"], _colours(tables["vertex"], dtypes["vertex"])


def _parse(data: bytes) -> tuple[bytes, dict[str, Table], dict[str, dict[str, str]]]:
    # the header, the rows of all elements, and the dtypes of their properties as declared
    end = re.search(rb"\bend_header[ \t]*(\r\n|\n|\r)", data[:MAX_HEADER])
    if end is None and len(data) > MAX_HEADER:
        raise ConfigError(f"its header has no end in the first {MAX_HEADER:,} bytes")
    header = data[: end.end()] if end else data
    return header, *_tables(header, memoryview(data)[len(header) :])


def _columns(table: Table, names: Sequence[str]) -> Array | None:
    # properties side by side (N, len(names)); None if one is missing
    found = [table[name] for name in names if name in table]
    return np.column_stack(found).astype(np.float64) if len(found) == len(names) else None


def _colours(table: Table, dtypes: Mapping[str, str]) -> Array | None:
    # sRGB colours (N, 3) in [0, 1]; None without colours
    for names in COLOUR_NAMES:
        if (found := _columns(table, names)) is not None:
            dtype = np.dtype(dtypes[names[0]])
            if dtype.kind == "f":
                return in_unit_range(found)
            ranges = (255, 65535, np.iinfo(dtype).max)  # some programs write bytes as larger integers
            return found / next(top for top in ranges if found.max(initial=0) <= top)
    return None


def _image(header: bytes, files: SideFiles) -> Array | None:
    named = [decode(name) for name in re.findall(rb"comment\s+texturefile\s+([^\r\n]+)", header, re.IGNORECASE)]
    files.failures += [f"texture {short(name)} is not used, only the first one" for name in named[1:]]
    return files.image(named[0]) if named else None


def _tables(header: bytes, body: memoryview) -> tuple[dict[str, Table], dict[str, dict[str, str]]]:
    # rows of all elements, and the dtypes of their properties as declared
    elements, order, text = list[tuple[str, int, list[Property]]](), "<", True
    for line in header.decode("latin-1").splitlines():
        match line.split():
            case ["format", form, *_]:
                order, text = ">" if "big" in form else "<", form == "ascii"
            case ["element", name, number, *_]:
                elements.append((name, int(number), []))
            case ["property", "list", length, dtype, name]:
                elements[-1][2].append(Property(name, DTYPES[dtype], DTYPES[length]))
            case ["property", dtype, name]:
                elements[-1][2].append(Property(name, DTYPES[dtype], ""))
    check_count(sum(count for name, count, _ in elements if name == "face"))
    if max((count for _, count, _ in elements), default=0) > MAX_LINES:
        raise TooLarge(f"an element has more than {MAX_LINES:,} rows")
    dtypes = {name: {p.name: p.dtype for p in properties} for name, _, properties in elements}
    if text:  # as binary: all numbers are of one type
        body = np.fromstring(check_text(body), np.float64, sep=" ").data.cast("B")
    tables, position = dict[str, Table](), 0
    for name, count, properties in elements:
        types = [
            Property(p.name, "f8" if text else p.dtype, p.length and ("f8" if text else p.length)) for p in properties
        ]
        tables[name], position = _read(body, position, count, types, order)
    return tables, {"face": {}} | dtypes


def _read(body: memoryview, start: int, count: int, properties: list[Property], order: str) -> tuple[Table, int]:
    """Read `count` rows of an element (table) of a binary PLY file, from the byte `start` on.

    `properties` are the columns of the element, `order` is the byte order, "<" or ">". Return a dict from the name of a
    property to its values in the N = `count` rows, and the position of the byte after them. The values are an array
    (N,) or, for a list property, an array (N, L) or N arrays of different lengths.
    """
    if not count:
        return {}, start
    first, _ = _row(body, start, properties, order)
    fields = list[tuple[str, str, tuple[int, ...]]]()  # of a row in which all lists are as long as in the first row
    for p, values in zip(properties, first, strict=True):
        # the length of a list; a newline cannot occur in the name of a property
        fields += [(f"{p.name}\n", order + p.length, ())] if p.length else []
        fields += [(p.name, order + p.dtype, (len(values),) if p.length else ())]
    row = np.dtype(fields)
    if start + count * row.itemsize <= len(body):
        table = np.frombuffer(body, row, count, start)
        lists = [(p, values) for p, values in zip(properties, first, strict=True) if p.length]
        if all((table[f"{p.name}\n"] == len(values)).all() for p, values in lists):
            return {p.name: table[p.name] for p in properties}, start + count * row.itemsize
    if count > MAX_TRIANGLES:  # such rows are read one by one
        raise TooLarge(f"it has {count:,} lists of different lengths; the maximum is {MAX_TRIANGLES:,}")
    columns: list[list[Array]] = [[] for _ in properties]
    for _ in range(count):
        one, start = _row(body, start, properties, order)
        for column, value in zip(columns, one, strict=True):
            column.append(value)
    ragged: dict[str, Array | Sequence[Array]] = {}
    for p, column in zip(properties, columns, strict=True):
        ragged[p.name] = column if p.length else np.concatenate(column)
    return ragged, start


def _row(body: memoryview, position: int, properties: list[Property], order: str) -> tuple[list[Array], int]:
    # values (L,) of each property in the row at `position`, and the position after it
    values = list[Array]()
    for p in properties:
        count = 1
        if p.length:
            count = int(np.frombuffer(body, order + p.length, 1, position)[0])
            position += np.dtype(p.length).itemsize
        if count < 0 or position + count * np.dtype(p.dtype).itemsize > len(body):
            raise ConfigError("it ends too early")
        values.append(np.frombuffer(body, order + p.dtype, count, position))
        position += values[-1].nbytes
    return values, position
