"""The mesh of a thing, as it is textured: its front facing +x, its middle at the origin, its largest coordinate 0.5."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.export.files.textured import Placement, TexturedMesh
from threedgen.export.shape.mesh import vertex_normals
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.topology import area_vectors, topology, weld
from threedgen.export.surface.tangents import vertex_tangents
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.raster import box_downsample, interpolate, rasterise_views, unit
from threedgen.guidance.mvadapter.cameras import GEOMETRY_VIEWS, HALF, geometry_maps, views
from threedgen.run.arrays import Array
from threedgen.systems.texture.scene import Coordinates, SceneMesh, read_scene, with_uv

from .options import TextureObjectConfig, ThingConfig

SIDES = ("front", "right", "back", "left", "top", "bottom")
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
        return replace(self.mesh, vertices=self.placement.inverse(self.mesh.vertices))


def coordinates(config: ThingConfig) -> Coordinates:
    """Those of the mesh's file. Raises ConfigError for a front that is up or down."""
    up = Coordinates.of(config.mesh, config.up).up
    front = FRONTS[up[-1]] if config.front == "auto" else config.front
    if front[-1] == up[-1]:
        raise ConfigError(f"is {front}, along the axis that points upwards ({up}); try {FRONTS[up[-1]]}", "front")
    return Coordinates(up, front=front)


def read_thing(config: TextureObjectConfig) -> Thing:
    """The mesh of the config, made ready for a texture. Raises ConfigError."""
    whole, placement, notes = placed(config)
    mesh, how = with_uv(whole, config.texture, config.uv)
    notes += [f"the mesh has {how}"] if whole.uv is not None and how.startswith("new") else []
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    return Thing(with_normals(mesh, whole), placement, topology(vertices, faces).open_edges > 0, tuple(notes))


def placed(config: ThingConfig) -> tuple[SceneMesh, Placement, list[str]]:
    """The mesh of the config where it is textured, where it was, and what was done. Raises ConfigError."""
    whole, notes = read_scene(Path(str(config.mesh)).expanduser(), coordinates(config)), list[str]()
    low, high = whole.vertices.min(0).astype(np.float64), whole.vertices.max(0).astype(np.float64)
    placement = Placement((low + high) / 2, HALF / max(float((high - low).max()) / 2, 1e-30))
    whole = replace(whole, vertices=placement.points(whole.vertices))
    if len(whole.faces) > config.budget:
        notes.append(f"{len(whole.faces):,} triangles are too many and were simplified to {config.budget:,} (budget)")
        whole = simplified(whole, config.budget)
    return whole, placement, notes


def without_uv(whole: SceneMesh) -> TexturedMesh:
    """The mesh with normals, for what does not ask for texture coordinates: those are zeros."""
    vertices, faces, _ = weld(whole.vertices, whole.faces)
    normals, uv = vertex_normals(vertices, faces), np.zeros((len(vertices), 2), np.float32)
    mesh = TexturedMesh(vertices, faces, normals, uv, vertex_tangents(vertices, faces, normals, uv))
    return with_normals(mesh, whole)


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


def six_sides(size: int) -> Cameras:
    """The ``SIDES`` by parallel rays, as MV-Adapter has them; from above, the front is upwards in the picture."""
    return views(GEOMETRY_VIEWS, size, size)


def control_maps(mesh: TexturedMesh, at: Cameras) -> Array:
    """What MV-Adapter is told of a mesh: (V,H,W,6) in [0,1], places and normals that its views see."""
    found = rasterise_views(mesh.vertices, mesh.faces, at)
    places, normals = (interpolate(part, mesh.faces, found) for part in (mesh.vertices, mesh.normals))
    maps = geometry_maps(torch.from_numpy(places), torch.from_numpy(unit(normals)), torch.from_numpy(found.mask))
    return maps.permute(0, 2, 3, 1).numpy()


def preview(mesh: TexturedMesh, size: int = 256) -> Array:
    """The six sides (6,size,size,3) of the bare mesh."""
    return bare(mesh, six_sides(size))


def bare(mesh: TexturedMesh, at: Cameras, finer: int = 2) -> Array:
    """Pictures (V,H,W,3) of a mesh without its texture, grey, lit from the camera and from above, on white."""
    at = at.with_size(at.height * finer, at.width * finer)
    found = rasterise_views(mesh.vertices, mesh.faces, at)
    normals = interpolate(mesh.normals, mesh.faces, found)
    facing = np.abs((normals * at.c2w[:, None, None, :3, 2].numpy()).sum(-1))
    light = 0.2 + 0.5 * facing + 0.15 * normals[..., 2]
    return np.repeat(box_downsample(np.where(found.mask, light, 1.0)[..., None], finer).clip(0, 1), 3, axis=-1)
