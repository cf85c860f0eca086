"""Reader for mesh files: GLB, glTF, OBJ, and through trimesh PLY, STL and OFF."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_bytes
from threedgen.geometry.gltf_file import GltfFile
from threedgen.geometry.obj_file import read_obj
from threedgen.geometry.side_files import MAX_FAILURES, SideFiles, decode
from threedgen.geometry.submesh import MAX_BYTES, Submesh, check_count
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

MAX_PLY_HEADER = 1_000_000  # largest size in bytes of the header of a PLY file
MAX_COVER = 5000
"""Largest sum of the sizes of all triangles, relative to the mesh. Rendering takes time in proportion to it."""


@dataclass(frozen=True)
class MeshFile:
    """Content of a mesh file: submeshes, and messages for the user about textures and MTL files that cannot be read."""

    submeshes: tuple[Submesh, ...]
    failures: tuple[str, ...]


def read_mesh_file(path: Path, key: str = "", colours: bool = True) -> MeshFile:
    """Read a GLB, glTF, OBJ, PLY, STL or OFF file. With `colours`, also read materials, vertex colours and textures.

    Raises ConfigError with the config key `key` and the file name if the file cannot be read.
    """
    files, kind = SideFiles(path), path.suffix.lower()
    try:
        data = read_bytes(path, MAX_BYTES)
        if kind in (".glb", ".gltf"):
            submeshes = tuple(GltfFile(data, files).submeshes(colours))
        elif kind == ".obj":
            submeshes = tuple(read_obj(data, files, colours))
        else:
            submeshes = tuple(_read_by_trimesh(data, kind, files, colours))
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
    return MeshFile(submeshes, tuple(failures))


def _finite(submesh: Submesh, failures: list[str]) -> Submesh:
    """Return a submesh without NaN and infinity, and add messages about the changes to `failures`.

    Triangles with NaN or infinity at a corner are removed. In texture coordinates, colours and normals they become 0.
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
    """Return the sum of the squared longest edges of all triangles, divided by the squared diagonal of the mesh."""
    low, high, total = np.full(3, np.inf), np.full(3, -np.inf), 0.0
    with np.errstate(all="ignore"):
        for part in submeshes:
            corners = part.vertices[part.faces]
            if len(corners):
                low, high = np.minimum(low, corners.min((0, 1))), np.maximum(high, corners.max((0, 1)))
                total += float(np.square(corners - np.roll(corners, 1, axis=1)).sum(2).max(1).sum())
        cover = total / np.square(high - low).sum()
    return float(cover) if np.isfinite(cover) else 0.0


def _read_by_trimesh(data: bytes, kind: str, files: SideFiles, colours: bool) -> Iterator[Submesh]:
    import trimesh

    image = None
    options: Tree = {}
    if kind == ".ply":
        header, end, _ = data[:MAX_PLY_HEADER].partition(b"end_header")
        if not end and len(data) > MAX_PLY_HEADER:
            raise ConfigError(f"its header has no end in the first {MAX_PLY_HEADER:,} bytes")
        # trimesh allocates memory for the number of values that the header declares
        counts = {name: int(count) for name, count in re.findall(rb"element\s+(\S+)\s+(\d+)", header)}
        check_count(counts.get(b"face", 0))
        if (count := max(counts.values(), default=0)) > len(data):
            raise ConfigError(f"its header declares {count} values, but the file has {len(data)} bytes")
        if colours and (named := re.findall(rb"comment\s+texturefile\s+([^\r\n]+)", header, re.IGNORECASE)):
            image = files.image(decode(named[0]))
            files.failures += [f"texture {short(decode(name))} is not used, only the first one" for name in named[1:]]
        data = re.sub(rb"(\nproperty\s+\w+\s+)(?:diffuse|texcoord)_(?=\w)", rb"\1", header) + data[len(header) :]
        options = {"skip_materials": True}  # trimesh would open textures in any folder
    elif kind == ".stl":
        binary = int.from_bytes(data[80:84], "little")
        check_count(binary if len(data) == 84 + 50 * binary else data.count(b"endfacet"))
    elif counted := re.match(rb"\s*\w*OFF\s+\d+\s+(\d+)", data):
        check_count(int(counted[1]))
    scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], process=False, **options)
    for mesh in scene.geometry.values():
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            check_count(len(mesh.faces))
            submesh = _coloured(mesh, image) if colours else _plain(mesh)
            if image is not None and submesh.uv is None:
                files.failures.append("it names a texture, but has no texture coordinates")
            yield submesh


def _plain(mesh: Any) -> Submesh:
    points, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    normals = np.asarray(mesh.vertex_normals, np.float64)  # of the file, or computed
    return Submesh(points, faces, normals, getattr(mesh.visual, "uv", None))


def _coloured(mesh: Any, image: Array | None) -> Submesh:
    # vertex colours, face colours, or the texture `image`
    points, faces, visual = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64), mesh.visual
    submesh = Submesh(points, faces, uv=getattr(visual, "uv", None))
    if image is not None and submesh.uv is not None:
        return replace(submesh, texture=Texture.tinted(image, (1, 1, 1)))
    if visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors, np.float64)[:, :3] / 255, 3, axis=0)
        return Submesh(points[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3), colours=colours)
    if visual.kind == "vertex":
        return replace(submesh, colours=np.asarray(visual.vertex_colors, np.float64)[:, :3] / 255)
    return replace(submesh, colours=np.ones_like(points), flat=True)
