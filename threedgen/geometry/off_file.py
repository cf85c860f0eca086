"""Reader of OFF meshes (Geomview): polygons, and colours of vertices (COFF) or faces."""

import re
from dataclasses import replace

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.polygons import polygon_mesh
from threedgen.geometry.side_files import decode
from threedgen.geometry.submesh import Submesh, check_count, check_text, in_unit_range
from threedgen.run.arrays import Array

MAX_WORDS = 40_000_000  # largest number of words in a file
_HEADER = re.compile(r"\s*((?:ST|C|N)*)OFF(?![a-zA-Z])( +BINARY)?", re.IGNORECASE)


def read_off(data: bytes, colours: bool) -> Submesh:
    """Read the mesh in the bytes `data` of an OFF file; polygons become triangles.

    If `colours` is True, the colours of the vertices or, without these, of the faces are also read; without both, the
    vertices are white. In the file, colours are integers up to 255 or floats up to 1; the result has floats in [0, 1].
    Raises ConfigError, IndexError or ValueError if the file is damaged.
    """
    text = decode(check_text(data, MAX_WORDS)).encode("ascii", "replace").decode()  # so that only ASCII spaces separate
    text = re.sub(r"#[^\n]*", "", text.replace("\r", "\n"))
    header = _HEADER.match(text)
    if header is None or header[2]:
        raise ConfigError("it has no header OFF, COFF or NOFF" if header is None else "it is binary. Save it as text")
    rows = [row for line in text[header.end() :].split("\n") if (row := line.split())]
    vertices, faces = int(rows[0][0]), int(rows[0][1])
    check_count(faces)
    points, lists = rows[1 : 1 + vertices], rows[1 + vertices : 1 + vertices + faces]
    if len(lists) < faces:
        raise ConfigError(f"it has only {len(points)} of {vertices} vertices and {len(lists)} of {faces} faces")
    letters = header[1].upper()  # Geomview writes CN and the normal first; MeshLab writes NC and the colour first
    skipped = 3 if "NC" in letters or "N" not in letters else 6
    lengths = [int(row[0]) for row in lists]
    corners = " ".join(part for row, n in zip(lists, lengths, strict=True) for part in row[1 : 1 + n])
    flat = np.fromstring(corners, np.int64, sep=" ")
    equal = len(set(lengths)) == 1
    polygons = flat.reshape(faces, -1) if equal else np.split(flat, np.cumsum(lengths[:-1], dtype=np.int64))
    position = np.array([row[:3] for row in points], np.float64).reshape(vertices, 3)
    mesh = Submesh(position, np.zeros((0, 3), np.int64))
    if not colours:
        return polygon_mesh(mesh, polygons, None, None)
    by_vertex = _colours([row[skipped : skipped + 3] for row in points]) if "C" in letters or not letters else None
    by_face = _colours([row[1 + n :][:3] for row, n in zip(lists, lengths, strict=True)])
    mesh = replace(mesh, colours=np.ones_like(position) if by_vertex is None else by_vertex, flat=by_vertex is None)
    return polygon_mesh(mesh, polygons, None, by_face if by_vertex is None else None)


def _colours(texts: list[list[str]]) -> Array | None:
    # sRGB colours (N, 3) in [0, 1]; white where there is none. None if no text has three numbers
    known = np.array([len(row) == 3 for row in texts], bool)
    if not known.any():
        return None
    found = np.ones((len(texts), 3))
    found[known] = in_unit_range(np.array([row for row in texts if len(row) == 3], np.float64)).clip(0, 1)
    return found
