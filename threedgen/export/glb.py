"""A mesh with vertex colours as a GLB file (glTF 2.0, binary): one buffer, one JSON chunk, no surprises.

Written here rather than by a library for two reasons: linear colours need more than eight bits to keep dark
shades apart, and equal input must give equal bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threedgen.export.mesh import Mesh
from threedgen.runs import write_atomic

Array = NDArray[Any]

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963
_JSON_CHUNK, _BINARY_CHUNK = 0x4E4F534A, 0x004E4942


def to_gltf_axes(vectors: Array) -> Array:
    """World axes (z up, front +x) to glTF's (y up, front +z), a rotation: x' = y, y' = z, z' = x."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]])


def linear(srgb: Array) -> Array:
    """sRGB in [0, 1] to linear light, which glTF's vertex colours are (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


class _Buffer:
    """Collects arrays into one binary chunk with its views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: Array, kind: str, component: int, target: int, **more: Any) -> int:
        """Appends an array; returns the number of its accessor. Every row is a multiple of 4 bytes."""
        raw = np.ascontiguousarray(array).tobytes()
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(raw), "target": target}
        self.views.append(view)
        accessor = {
            "bufferView": len(self.views) - 1,
            "componentType": component,
            "count": len(array) if kind != "SCALAR" else array.size,
            "type": kind,
        }
        self.accessors.append(accessor | more)
        self.data += raw + bytes(-len(raw) % 4)
        return len(self.accessors) - 1


def glb_bytes(mesh: Mesh, name: str = "mesh", extras: dict[str, Any] | None = None) -> bytes:
    """The file's content. `extras` (JSON data) go into the asset and into the node, which viewers keep."""
    positions = to_gltf_axes(mesh.vertices).astype("<f4")
    colours = np.ones((len(positions), 4))
    colours[:, :3] = linear(np.clip(mesh.colours, 0, 1))
    small = len(positions) < 65535
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.add(
            positions,
            "VEC3",
            _FLOAT,
            _VERTICES,
            min=positions.min(axis=0).tolist(),
            max=positions.max(axis=0).tolist(),
        ),
        "NORMAL": buffer.add(to_gltf_axes(mesh.normals).astype("<f4"), "VEC3", _FLOAT, _VERTICES),
        "COLOR_0": buffer.add(np.round(colours * 65535).astype("<u2"), "VEC4", _UINT16, _VERTICES, normalized=True),
    }
    indices = mesh.faces.astype("<u2" if small else "<u4").reshape(-1)
    primitive = {
        "attributes": attributes,
        "indices": buffer.add(indices, "SCALAR", _UINT16 if small else _UINT32, _INDICES),
        "material": 0,
    }
    tree = {
        "asset": {"version": "2.0", "generator": "threedgen", "extras": extras or {}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name, "extras": extras or {}}],
        "meshes": [{"name": name, "primitives": [primitive]}],
        "materials": [{"name": name, "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1}}],
        "buffers": [{"byteLength": len(buffer.data)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + len(buffer.data)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, total),
            struct.pack("<II", len(text), _JSON_CHUNK),
            text,
            struct.pack("<II", len(buffer.data), _BINARY_CHUNK),
            bytes(buffer.data),
        ]
    )


def save_glb(mesh: Mesh, path: Path | str, extras: dict[str, Any] | None = None) -> Path:
    """Writes `mesh` to `path`, whole or not at all; `extras` and how the mesh was made travel in the file."""
    path = Path(path)
    write_atomic(path, glb_bytes(mesh, path.stem, {**(extras or {}), **mesh.info}))
    return path
