"""Reader for mesh files: GLB, glTF, OBJ, PLY, OFF and STL."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.geometry.gltf_file import GltfFile
from threedgen.geometry.obj_file import read_obj
from threedgen.geometry.off_file import read_off
from threedgen.geometry.ply_file import read_ply
from threedgen.geometry.raster import unit
from threedgen.geometry.side_files import MAX_FAILURES, SideFiles
from threedgen.geometry.submesh import MAX_BYTES, Submesh, check_count
from threedgen.run.arrays import Array

MAX_COVER = 5000
"""Largest sum of the squared longest edges of all triangles, relative to the squared diagonal of the bounding box.

The rendering time is proportional to this sum.
"""


@dataclass(frozen=True)
class MeshFile:
    """Content of a mesh file: `submeshes` (triangles with one material each), `failures` and `side_files`.

    `failures` are messages for the user about what differs from the file: textures that could not be read, features
    that are not supported, and NaN or infinite values that were set to 0 or left out. `side_files` are the paths of the
    other files that were read: textures, MTL files and buffers.
    """

    submeshes: tuple[Submesh, ...]
    failures: tuple[str, ...]
    side_files: tuple[Path, ...]


def read_mesh_file(path: Path, key: str = "", colours: bool = True) -> MeshFile:
    """Read a GLB, glTF, OBJ, PLY, STL or OFF file. Return its triangles, grouped by material, and messages.

    If `colours` is True, materials, vertex colours and textures are also read. Raises ConfigError with the config key
    `key` if the file cannot be read, or if its triangles would take too long to render: the sum of their squared
    longest edges is more than 5000 (`MAX_COVER`) times the squared diagonal of the bounding box.
    """
    files, kind = SideFiles(path), path.suffix.lower()
    try:
        with np.errstate(all="ignore"):  # for coordinates that are not finite
            data = read_bytes(path, MAX_BYTES)
            if kind in (".glb", ".gltf"):
                submeshes = tuple(GltfFile(data, files).submeshes(colours))
            elif kind == ".obj":
                submeshes = tuple(read_obj(data, files, colours))
            elif kind == ".ply":
                submeshes = (read_ply(data, files, colours),)
            elif kind == ".off":
                submeshes = (read_off(data, colours),)
            else:
                submeshes = (_read_stl(data, colours),)
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise many types
        reason = error.problem if isinstance(error, ConfigError) else getattr(error, "strerror", None)
        reason = reason or f"it is damaged, or not a {kind[1:].upper()} file"
        raise ConfigError(f"{path} cannot be read as a mesh: {reason}", key) from None
    submeshes = tuple(_finite(submesh, files.failures) for submesh in submeshes)
    if (cover := _cover(submeshes)) > MAX_COVER:
        reason = f"its triangles together are {cover:,.0f} times as large as the mesh; the maximum is {MAX_COVER:,}"
        raise ConfigError(f"{path}: {reason}. Remove copies at the same place, and long triangles", key)
    failures = list(dict.fromkeys(files.failures))
    if len(failures) > MAX_FAILURES:
        failures[MAX_FAILURES:] = [f"{len(failures) - MAX_FAILURES} more files cannot be read"]
    return MeshFile(submeshes, tuple(failures), tuple(sorted(files.paths)))


def _finite(submesh: Submesh, failures: list[str]) -> Submesh:
    """Return a submesh without NaN and infinity, and add messages about the changes to `failures`.

    Triangles with NaN or infinity in the position of a corner are removed. NaN and infinity in texture coordinates,
    colours and normals become 0.
    """
    attributes = {"texture coordinates": submesh.uv, "colours": submesh.colours, "normals": submesh.normals}
    wrong = [name for name, values in attributes.items() if values is not None and not np.isfinite(values).all()]
    failures += [f"{name} that are not finite were set to 0" for name in wrong]
    finite = np.asarray(np.isfinite(submesh.vertices).all(1))
    faces = submesh.faces[finite[submesh.faces].all(1)] if not finite.all() else submesh.faces
    if len(faces) < len(submesh.faces):
        failures.append("triangles with corners that are not finite were left out")
    elif not wrong and finite.all():
        return submesh

    def zeroed(values: Array | None) -> Array | None:
        return None if values is None else np.nan_to_num(values, posinf=0, neginf=0)

    vertices = np.where(finite[:, None], submesh.vertices, 0)
    uv, normals, colours = map(zeroed, (submesh.uv, submesh.normals, submesh.colours))
    return replace(submesh, vertices=vertices, faces=faces, uv=uv, normals=normals, colours=colours)


def _cover(submeshes: tuple[Submesh, ...]) -> float:
    """Measure how much surface a mesh has for its size, to detect meshes that take too long to rasterise.

    Returns the sum of the squared longest edges of all triangles, divided by the squared diagonal of the bounding box.
    """
    low, high, total = np.full(3, np.inf), np.full(3, -np.inf), 0.0
    with np.errstate(all="ignore"):
        for part in submeshes:
            corners = part.vertices[part.faces]
            if len(corners):
                low, high = np.minimum(low, corners.min((0, 1))), np.maximum(high, corners.max((0, 1)))
                total += float(np.square(corners - np.roll(corners, 1, axis=1)).sum(2).max(1).sum())
        cover = total / np.square(high - low).sum()
    return float(cover) if np.isfinite(cover) else 0.0


def _read_stl(data: bytes, colours: bool) -> Submesh:
    count = int.from_bytes(data[80:84], "little")
    if len(data) >= 84 + 50 * count and b"facet" not in data[84:400]:  # binary; some programs write more bytes after it
        check_count(count)
        row = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
        corners = np.frombuffer(data, row, count, 84)["corners"].astype(np.float64)
    else:
        check_count(data.lower().count(b"vertex") // 3)
        texts = re.findall(rb"\bvertex\s+(\S+\s+\S+\s+\S+)", data, re.IGNORECASE)
        corners = np.fromstring(b" ".join(texts), np.float64, sep=" ").reshape(-1, 3, 3)
    normals = unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    points = corners.reshape(-1, 3)
    white = np.ones_like(points) if colours else None
    faces = np.arange(len(points)).reshape(-1, 3)
    return Submesh(points, faces, np.repeat(normals, 3, axis=0), colours=white, flat=colours)
