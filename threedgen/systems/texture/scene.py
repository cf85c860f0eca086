"""The mesh of a scene or a thing, from a file, in our world: z up; and the way back into the file's coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.mesh import vertex_normals
from threedgen.export.shape.topology import area_vectors, compact, degenerate, weld
from threedgen.export.shape.unwrap import UnwrapError, unwrap
from threedgen.export.shape.uv_layout import layout
from threedgen.export.surface.tangents import vertex_tangents
from threedgen.geometry.mesh_file import read_submeshes
from threedgen.geometry.raster import unit
from threedgen.run.arrays import Array

FARTHEST = 1e7
"""Metres of the largest coordinate in a file."""
ROOM = (1.0, 100.0)
"""Metres that a scene is long, at least and at most, if its unit is what was said."""
SHARED = 1e-3
"""Share of the covered texels that may belong to two places of the mesh: a rounded border here and there."""
LOST = 0.01
"""Share of the surface that may have no place in the texture."""
FRONT = {"y": "+z", "z": "+x"}
"""Where the front is if it does not matter: as glTF has it, and as we do."""


def axis(name: str) -> Array:
    """The unit vector (3,) that is called +x, x, -y, ..."""
    return np.eye(3)["xyz".index(name[-1])] * (-1 if name[0] == "-" else 1)


@dataclass(frozen=True)
class Coordinates:
    """Those of a mesh's file: which axis points upwards, how many metres a unit is, which axis the front faces."""

    up: str = "z"
    scale: float = 1.0
    front: str = ""

    @classmethod
    def of(cls, mesh: str | None, up: str, scale: float = 1.0, front: str = "") -> Coordinates:
        """As options say; ``up`` auto goes by the kind of file."""
        upwards = mesh is not None and Path(mesh).suffix.lower() in (".glb", ".gltf", ".obj")
        return cls({"auto": "y" if upwards else "z"}.get(up, up), scale, front)

    @property
    def turn(self) -> Array:
        """The rotation (3,3) from the axes of the file to ours."""
        front, up = axis(self.front or FRONT[self.up]), axis(self.up)
        return np.stack([front, np.cross(up, front), up])

    def points(self, points: Array) -> Array:
        """Points (N,3) of the file in our world."""
        return self.scale * points @ self.turn.T

    def back(self, points: Array) -> Array:
        """Points (N,3) of our world in the file."""
        return points @ self.turn / self.scale

    def for_file(self, points: Array) -> Array:
        """Points (N,3) float32 of our world in the file's unit, axes ours: the writers of files turn them."""
        return (points.astype(np.float64) / self.scale).astype(np.float32)

    def poses(self, c2w: Tensor) -> Tensor:
        """Cameras (N,4,4) of the file in our world."""
        moved = c2w.clone()
        moved[:, :3] = torch.from_numpy(self.turn).to(c2w) @ c2w[:, :3]
        moved[:, :3, 3] *= self.scale
        return moved

    def poses_back(self, c2w: Tensor) -> Tensor:
        """Cameras (N,4,4) of our world in the file."""
        moved = c2w.clone()
        moved[:, :3] = torch.from_numpy(self.turn.T.copy()).to(c2w) @ c2w[:, :3]
        moved[:, :3, 3] /= self.scale
        return moved


@dataclass(frozen=True)
class SceneMesh:
    """Triangles of a scene, any number of pieces, open or closed, metres, z up: vertices (V,3) float32, faces (F,3),
    uv (V,2), v up, if all of the file's pieces have them, and normals (V,3), unit, as the file has them."""

    vertices: Array
    faces: Array
    uv: Array | None = None
    normals: Array | None = None

    def warning(self) -> str | None:
        """What is said of a scene whose unit can hardly be the metre."""
        size = float(np.ptp(self.vertices, axis=0).max())
        if ROOM[0] <= size <= ROOM[1]:
            return None
        return f"the scene is {size:.4g} m long: if its unit is not the metre, give scale, such as 0.01 for centimetres"


def read_scene(path: Path, place: Coordinates) -> SceneMesh:
    """The triangles of all pieces of a file where its scene graph puts them. Raises ConfigError, naming the file."""
    parts, normals, faces, uv, count = list[Array](), list[Array](), list[Array](), list[Array | None](), 0

    def add(piece: Any, matrix: Array) -> None:
        nonlocal count
        points = np.asarray(piece.vertices, np.float64)
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        parts.append(points @ matrix[:3, :3].T + matrix[:3, 3])
        normals.append(np.asarray(piece.vertex_normals, np.float64) @ np.linalg.pinv(matrix[:3, :3]))
        faces.append(np.asarray(piece.faces, np.int64)[:, :: -1 if mirrored else 1] + count)
        uv.append(_uv(piece))
        count += len(points)

    read_submeshes(path, add, "mesh")
    if not faces:
        raise ConfigError(f"{path} has no triangles", "mesh")
    points, triangles = place.points(np.concatenate(parts)).astype(np.float32), np.concatenate(faces)
    if triangles.min() < 0 or triangles.max() >= len(points) or not np.isfinite(points).all():
        raise ConfigError(f"{path} has coordinates that are not finite, or faces without corners", "mesh")
    if (far := float(np.abs(points).max())) > FARTHEST:
        raise ConfigError(f"{path} has coordinates of {far:.3g}, and {FARTHEST:.3g} is the most; scale it", "mesh")
    keep = ~degenerate(points, triangles)
    if not keep.any():
        raise ConfigError(f"{path} has no triangle with an area", "mesh")
    points, triangles, used = compact(points, triangles[keep])
    own = [part for part in uv if part is not None]
    directions = unit(np.concatenate(normals)[used] @ place.turn.T).astype(np.float32)
    return SceneMesh(points, triangles, np.concatenate(own)[used] if len(own) == len(uv) else None, directions)


def _uv(piece: Any) -> Array | None:
    """Texture coordinates (V,2) of a piece, None if it has none."""
    uv = getattr(piece.visual, "uv", None)
    if uv is None or np.shape(uv) != (len(piece.vertices), 2):
        return None
    uv = np.asarray(uv, np.float64)
    return np.where((uv > -1e-4) & (uv < 1 + 1e-4), uv.clip(0, 1), uv).astype(np.float32)


def with_uv(scene: SceneMesh, texture: int, choice: str = "auto") -> tuple[TexturedMesh, str]:
    """The mesh as it takes a texture of ``texture`` texels, and what was done: own uv, or new charts.

    choice: auto, own, unwrap. Raises ConfigError.
    """
    fault = "" if choice == "unwrap" else own_fault(scene, texture)
    if choice == "own" and fault:
        raise ConfigError(f"the mesh's own cannot be used: {fault}; take uv=unwrap", "uv")
    if not fault and choice != "unwrap" and scene.uv is not None:
        normals = vertex_normals(scene.vertices, scene.faces)
        tangents = vertex_tangents(scene.vertices, scene.faces, normals, scene.uv)
        faces = scene.faces.astype(np.int32)
        return TexturedMesh(scene.vertices, faces, normals, scene.uv, tangents), "the mesh's own texture coordinates"
    vertices, faces, _ = weld(scene.vertices, scene.faces)
    try:
        mesh, charts = unwrap(vertices, faces, texture)
    except UnwrapError as error:
        raise ConfigError(f"{str(error).partition(';')[0]}; try {2 * texture}", "texture") from None
    why = f" ({fault})" if fault and scene.uv is not None else ""
    return mesh, f"new texture coordinates in {charts} charts{why}"


def own_fault(scene: SceneMesh, texture: int) -> str:
    """Why the uv of a mesh cannot take a picture of the whole scene; empty if they can."""
    if scene.uv is None:
        return "it has none, or not for all of its pieces"
    if not np.isfinite(scene.uv).all():
        return "some of them are not numbers"
    if scene.uv.min() < 0 or scene.uv.max() > 1:
        return f"they run from {scene.uv.min():.3g} to {scene.uv.max():.3g}, outside of [0, 1]"
    space = np.linalg.norm(area_vectors(scene.vertices, scene.faces), axis=1)
    flat = np.pad(scene.uv, ((0, 0), (0, 1)))
    lost = float(space[degenerate(flat, scene.faces)].sum() / space.sum())
    if lost > LOST:
        return f"{lost:.0%} of the surface has no place in the texture"
    found = layout(scene.vertices, scene.faces, scene.uv, texture)
    if found.overlap > SHARED:
        return f"{found.overlap:.0%} of the texels belong to two places of the mesh"
    return "" if found.coverage > 0 else "they have no area"
