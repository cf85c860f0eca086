"""Reader for mesh files: GLB, glTF, OBJ, and through trimesh PLY and STL."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.geometry.gltf_file import GltfFile, gltf_tree
from threedgen.geometry.obj_file import read_obj
from threedgen.geometry.submesh import MAX_BYTES, SideFiles, Submesh, decode, tinted
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

__all__ = ["MAX_BYTES", "PLY_HEADER", "MeshFile", "gltf_tree", "read_mesh_file"]

PLY_HEADER = 1 << 14  # number of bytes at the start of a PLY file that are searched for its header


@dataclass(frozen=True)
class MeshFile:
    """Submeshes of a mesh file, and messages for the user about textures and MTL files that cannot be read."""

    submeshes: tuple[Submesh, ...]
    failures: tuple[str, ...]


def read_mesh_file(path: Path, key: str = "", colours: bool = True) -> MeshFile:
    """Read a mesh file, with `colours` also its materials, vertex colours and textures.

    Raises ConfigError with the config `key` and the file name.
    """
    files, kind = SideFiles(path), path.suffix.lower()
    try:
        data = read_bytes(path, MAX_BYTES)
        if kind in (".glb", ".gltf"):
            submeshes = tuple(GltfFile(data, files).submeshes(colours))
        elif kind == ".obj":
            submeshes = tuple(read_obj(data, files, colours))
        else:
            submeshes = tuple(_read_by_trimesh(data, kind, files))
    except Exception as error:  # damaged files raise many types
        reason = error.problem if isinstance(error, ConfigError) else getattr(error, "strerror", None)
        reason = reason or f"it is damaged, or not a {kind[1:].upper()} file"
        raise ConfigError(f"{path} cannot be read as a mesh: {reason}", key) from None
    return MeshFile(submeshes, tuple(dict.fromkeys(files.failures)))


def _read_by_trimesh(data: bytes, kind: str, files: SideFiles) -> Iterator[Submesh]:
    import trimesh

    image = None
    options: Tree = {}
    if kind == ".ply":
        header = data[:PLY_HEADER].partition(b"end_header")[0]
        # trimesh allocates memory for the number of values that the header declares
        count = max(map(int, re.findall(rb"element\s+\S+\s+(\d+)", header)), default=0)
        if count > len(data):
            raise ConfigError(f"its header declares {count} values, but the file has {len(data)} bytes")
        if named := re.search(rb"comment\s+texturefile\s+([^\r\n]+)", header, re.IGNORECASE):
            image = files.image(decode(named[1]))
        options = {"skip_materials": True}  # trimesh would open textures in any folder
    scene = trimesh.load_scene(io.BytesIO(data), file_type=kind[1:], process=False, **options)
    for mesh in scene.geometry.values():
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            yield _coloured(mesh, image)


def _coloured(mesh: Any, image: Array | None) -> Submesh:
    """Convert a trimesh mesh with its vertex colours or face colours, or with the texture `image`."""
    points, faces, visual = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64), mesh.visual
    submesh = Submesh(points, faces, np.asarray(mesh.vertex_normals, np.float64), getattr(visual, "uv", None))
    if image is not None and submesh.uv is not None:
        return replace(submesh, texture=tinted(image, (1, 1, 1)))
    if visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors, np.float64)[:, :3] / 255, 3, axis=0)
        return Submesh(points[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3), colours=colours)
    if visual.kind == "vertex":
        return replace(submesh, colours=np.asarray(visual.vertex_colors, np.float64)[:, :3] / 255)
    return replace(submesh, colours=np.ones_like(points), flat=True)
