"""The mesh of a thing, as it is textured: its front facing +x, its middle at the origin, its largest coordinate 0.5."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from threedgen.config import ConfigError
from threedgen.export.files.textured import Placement, TexturedMesh
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.topology import area_vectors, topology, weld
from threedgen.export.surface.tangents import vertex_tangents
from threedgen.geometry.raster import interpolate, rasterise_views, shrink
from threedgen.geometry.rigs import six_sides
from threedgen.run.arrays import Array
from threedgen.systems.texture.scene import Coordinates, SceneMesh, read_scene, with_uv

from .options import TextureObjectConfig

HALF = 0.5
"""The largest coordinate."""
FRONTS = {"x": "+z", "y": "+z", "z": "-y"}
"""Where the front is, by the axis that points upwards: as glTF has it, and as Blender does."""
FLAT = 0.5
"""Cosine between a file's normal and its face: below this the normal belongs to something else."""


@dataclass(frozen=True)
class Thing:
    """A mesh with texture coordinates, where it was in its file, whether its surface is open, and what was done."""

    mesh: TexturedMesh
    placement: Placement
    open: bool
    notes: tuple[str, ...]

    def for_file(self) -> TexturedMesh:
        """The mesh where and as large as it was in its file; axes are ours, which the writers of files turn."""
        return replace(self.mesh, vertices=self.placement.back(self.mesh.vertices))


def coordinates(config: TextureObjectConfig) -> Coordinates:
    """Those of the mesh's file. Raises ConfigError for a front that is up or down."""
    up = Coordinates.of(config.mesh, config.up).up
    front = FRONTS[up[-1]] if config.front == "auto" else config.front
    if front[-1] == up[-1]:
        raise ConfigError(f"is {front}, along the axis that points upwards ({up}); try {FRONTS[up[-1]]}", "front")
    return Coordinates(up, front=front)


def read_thing(config: TextureObjectConfig) -> Thing:
    """The mesh of the config, made ready for a texture. Raises ConfigError."""
    whole, notes = read_scene(Path(str(config.mesh)).expanduser(), coordinates(config)), list[str]()
    low, high = whole.vertices.min(0).astype(np.float64), whole.vertices.max(0).astype(np.float64)
    placement = Placement((low + high) / 2, HALF / max(float((high - low).max()) / 2, 1e-30))
    whole = replace(whole, vertices=placement.points(whole.vertices))
    if len(whole.faces) > config.budget:
        notes.append(f"{len(whole.faces):,} triangles are too many and were simplified to {config.budget:,} (budget)")
        whole = simplified(whole, config.budget)
    mesh, how = with_uv(whole, config.texture, config.uv)
    notes += [f"the mesh has {how}"] if whole.uv is not None and how.startswith("new") else []
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    return Thing(with_normals(mesh, whole), placement, topology(vertices, faces).open_edges > 0, tuple(notes))


def simplified(mesh: SceneMesh, budget: int) -> SceneMesh:
    """With at most so many triangles, without texture coordinates. Raises ConfigError."""
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    return SceneMesh(*simplify(vertices, faces, budget))


def with_normals(mesh: TexturedMesh, whole: SceneMesh) -> TexturedMesh:
    """The mesh with the normals of ``whole``, whose triangles it has in their order: corners of one place that have
    different ones are vertices of their own. A normal that contradicts its face is not taken."""
    if whole.normals is None:
        return mesh
    flat = area_vectors(mesh.vertices, mesh.faces)[:, None]
    theirs, smooth = whole.normals[whole.faces], mesh.normals[mesh.faces]
    agree = (theirs * flat).sum(-1) > FLAT * np.linalg.norm(flat, axis=-1)
    corners = np.where(agree[..., None], theirs, smooth).reshape(-1, 3)
    key = np.column_stack([mesh.faces.reshape(-1), np.round(1000 * corners).astype(np.int64)])
    _, first, which = np.unique(key, axis=0, return_index=True, return_inverse=True)
    old = mesh.faces.reshape(-1)[first]
    faces, normals = which.reshape(-1, 3).astype(np.int32), corners[first].astype(np.float32)
    vertices, uv = mesh.vertices[old], mesh.uv[old]
    return TexturedMesh(vertices, faces, normals, uv, vertex_tangents(vertices, faces, normals, uv))


def control_maps(mesh: TexturedMesh, size: int, background: float = 0.5) -> Array:
    """What MV-Adapter is told of a mesh: (6,size,size,6) float32 in [0,1], places and normals of its six sides.

    Both in the model's world, z up and front -y, whatever the view: a place p is p + 0.5, a normal n is n / 2 + 0.5.
    """
    found = rasterise_views(mesh.vertices, mesh.faces, six_sides(size))
    smooth = interpolate(mesh.normals, mesh.faces, found)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=-1, keepdims=True), 1e-9)
    places = interpolate(mesh.vertices, mesh.faces, found)
    maps = np.concatenate([_front_to_minus_y(places) + 0.5, _front_to_minus_y(smooth) / 2 + 0.5], -1)
    return np.where(found.mask[..., None], maps, background).clip(0, 1).astype(np.float32)


def _front_to_minus_y(vectors: Array) -> Array:
    """Vectors (...,3) of our world, whose front is +x, in one whose front is -y."""
    return np.stack([vectors[..., 1], -vectors[..., 0], vectors[..., 2]], -1)


def preview(mesh: TexturedMesh, size: int = 256, finer: int = 2) -> Array:
    """The six sides (6,size,size,3) of the bare mesh, grey, lit from the camera and from above, on white."""
    at = six_sides(size * finer)
    found = rasterise_views(mesh.vertices, mesh.faces, at)
    normals = interpolate(mesh.normals, mesh.faces, found)
    facing = np.abs((normals * at.c2w[:, None, None, :3, 2].numpy()).sum(-1))
    light = 0.2 + 0.5 * facing + 0.15 * normals[..., 2]
    return np.repeat(shrink(np.where(found.mask, light, 1.0)[..., None], finer).clip(0, 1), 3, axis=-1)
