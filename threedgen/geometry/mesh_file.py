"""Meshes in other people's files: GLB, glTF, OBJ and PLY, read by trimesh."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_bytes
from threedgen.run.arrays import Array

T = TypeVar("T")

LARGEST = 1 << 30
"""Bytes of a file."""
PLY_HEADER = 1 << 14
"""Bytes in which the header of a PLY file ends."""
PACKED = {"KHR_draco_mesh_compression": "Draco", "EXT_meshopt_compression": "meshopt"}
"""Extensions of glTF in which triangles are compressed, which trimesh does not undo."""


def read_pieces(path: Path, convert: Callable[[Any, Array], T], key: str = "") -> list[T]:
    """What ``convert`` makes of each piece with triangles, a trimesh.Trimesh, and its place in the file's scene (4, 4).

    Raises ConfigError for ``key``, naming the file, also for what goes wrong in ``convert``.
    """
    import trimesh

    found = list[T]()
    try:
        _check(path)
        scene = trimesh.load_scene(str(path), process=False)
        for place, name in (scene.graph[node] for node in scene.graph.nodes_geometry):
            piece: Any = scene.geometry[name]
            if isinstance(piece, trimesh.Trimesh) and len(piece.faces):
                found.append(convert(piece, place))
    except Exception as error:  # whatever a reader of other people's files may meet
        raise ConfigError(f"{path} cannot be read as a mesh: {_why(error, path)}", key) from None
    return found


def gltf_tree(data: bytes) -> Any:
    """The JSON of a GLB or glTF file. Raises ValueError."""
    return parse_json(data[20 : 20 + int.from_bytes(data[12:16], "little")] if data[:4] == b"glTF" else data)


def _check(path: Path) -> None:
    """Raises OSError for a file that is no ordinary one, ConfigError for one of more values than it has bytes, which
    the reader would make room for, and for one that is compressed."""
    data = read_bytes(path, LARGEST)
    kind, count = path.suffix.lower(), 0
    if kind == ".ply":
        count = max((int(number) for number in re.findall(rb"element\s+\S+\s+(\d+)", data[:PLY_HEADER])), default=0)
    elif kind in (".glb", ".gltf"):
        tree = gltf_tree(data)
        for name in tree.get("extensionsRequired", []):
            if name in PACKED:
                raise ConfigError(f"its triangles are compressed by {PACKED[name]}; save it without compression")
        if data[:4] == b"glTF":
            count = sum(max(0, accessor["count"]) for accessor in tree.get("accessors", []))
    if count > len(data):
        raise ConfigError(f"it tells of {count} values, but has {len(data)} bytes")


def _why(error: Exception, path: Path) -> str:
    """Why a file cannot be read, in other words than those of the libraries that tried."""
    if isinstance(error, ConfigError):
        return error.problem
    if isinstance(error, FileNotFoundError):
        return f"{error.filename or error} is missing"
    return getattr(error, "strerror", None) or f"it is damaged, or no {path.suffix[1:].upper()} file"
