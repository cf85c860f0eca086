"""Reader for GLB, glTF, OBJ and PLY meshes, based on trimesh."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_bytes
from threedgen.run.arrays import Array

T = TypeVar("T")

MAX_BYTES = 1 << 30
"""Largest file size in bytes."""
PLY_HEADER = 1 << 14
"""Number of bytes at the start of a PLY file in which its header is searched."""
COMPRESSION = {"KHR_draco_mesh_compression": "Draco", "EXT_meshopt_compression": "meshopt"}
"""glTF extensions with compressed triangles, which trimesh cannot read, and the name of their method."""


def read_submeshes(path: Path, convert: Callable[[Any, Array], T], key: str = "") -> list[T]:
    """Read a mesh file and return `convert(submesh, transform)` for each of its submeshes that has faces.

    `convert` takes a trimesh.Trimesh and its submesh-to-scene transform (4, 4). Raises ConfigError with the config
    `key` and the file name, also for errors in `convert`.
    """
    import trimesh

    submeshes = list[T]()
    try:
        _check(path)
        scene = trimesh.load_scene(str(path), process=False)
        for transform, name in (scene.graph[node] for node in scene.graph.nodes_geometry):
            submesh: Any = scene.geometry[name]
            if isinstance(submesh, trimesh.Trimesh) and len(submesh.faces):
                submeshes.append(convert(submesh, transform))
        return submeshes
    except ConfigError as error:
        reason = error.problem
    except FileNotFoundError as error:
        reason = f"{error.filename or error} is missing"
    except Exception as error:  # trimesh and its readers raise many types
        reason = getattr(error, "strerror", None) or f"it is damaged, or not a {path.suffix[1:].upper()} file"
    raise ConfigError(f"{path} cannot be read as a mesh: {reason}", key)


def gltf_tree(data: bytes) -> Any:
    """Parse the JSON part of the bytes of a GLB or glTF file. Raises ValueError."""
    return parse_json(data[20 : 20 + int.from_bytes(data[12:16], "little")] if data[:4] == b"glTF" else data)


def _check(path: Path) -> None:
    """Raise an error for irregular, large or compressed files, and for headers with more values than bytes."""
    data = read_bytes(path, MAX_BYTES)
    kind, count = path.suffix.lower(), 0
    if kind == ".ply":
        count = max((int(number) for number in re.findall(rb"element\s+\S+\s+(\d+)", data[:PLY_HEADER])), default=0)
    elif kind in (".glb", ".gltf"):
        tree = gltf_tree(data)
        for method in (COMPRESSION[name] for name in tree.get("extensionsRequired", []) if name in COMPRESSION):
            raise ConfigError(f"its triangles are compressed by {method}; save it without compression")
        if data[:4] == b"glTF":
            count = sum(max(0, accessor["count"]) for accessor in tree.get("accessors", []))
    if count > len(data):
        raise ConfigError(f"its header declares {count} values, but the file has {len(data)} bytes")
