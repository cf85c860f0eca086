"""A box to stand in, with two solids, whose colour is a function of the place: pictures of it are exactly known."""

from dataclasses import replace
from math import radians
from pathlib import Path

import numpy as np
import torch
import trimesh

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import write_cameras
from threedgen.geometry.poses import look_at
from threedgen.geometry.raster import box_downsample, interpolate, rasterise_views
from threedgen.run.arrays import Array
from threedgen.systems.sample.mesh import MeshFrame, SourceMesh

SIZE = np.array([4.0, 5.0, 2.6])  # metres; the floor is at z = 0, the middle over the origin


def solids() -> list[tuple[trimesh.Trimesh, Array]]:
    """Pieces and where they stand (4,4): walls, a pillar, a ball."""
    places = [(0, 0, SIZE[2] / 2), (1.2, 1.5, 0.6), (-1.2, -1.4, 0.5)]
    pieces = [trimesh.creation.box(SIZE), trimesh.creation.box((0.6, 0.6, 1.2)), trimesh.creation.icosphere(2, 0.5)]
    pieces[0].invert()  # the walls face the inside
    return [(piece, trimesh.transformations.translation_matrix(at)) for piece, at in zip(pieces, places, strict=True)]


def scene() -> SourceMesh:
    whole = trimesh.util.concatenate([piece.copy().apply_transform(place) for piece, place in solids()])
    return SourceMesh(np.asarray(whole.vertices, np.float32), np.asarray(whole.faces, np.int64))


def write_glb(path: Path, scale: float = 1.0) -> Path:
    """A file with a node for each solid, y up; ``scale``: of its unit in metres."""
    made = trimesh.Scene()
    turn = np.eye(4)
    turn[:3, :3] = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) / scale  # x' = y, y' = z, z' = x
    for number, (piece, place) in enumerate(solids()):
        made.add_geometry(piece, node_name=f"solid{number}", transform=turn @ place)
    made.export(path)
    return path


def write_path(path: Path, at: Cameras, place: MeshFrame) -> None:
    """A file of cameras, in the coordinates of a mesh's file."""
    outside = replace(at, c2w=place.poses_to_file(at.c2w.double()))
    write_cameras(path, outside, ["a.png"] * len(at), [""] * len(at))


def colour(points: Array) -> Array:
    """sRGB (N,3) of places (N,3): smooth, and different on every wall."""
    x, y, z = np.moveaxis(points.astype(np.float64), -1, 0)
    waves = [np.sin(2.1 * x + 1.3 * z), np.sin(1.7 * y - 0.8 * x), np.cos(2.6 * z + 0.9 * y)]
    return (0.5 + 0.4 * np.stack(waves, -1)).astype(np.float32)


def look(count: int, size: tuple[int, int], first: float = 0.0, tilt: float = 0.0) -> Cameras:
    """Cameras that turn around near the middle; ``first`` in steps, ``tilt`` upwards, of all of them."""
    turn = 2 * np.pi * (torch.arange(count) + first) / count
    position = torch.stack([0.5 * torch.cos(turn), 0.5 * torch.sin(turn), torch.full_like(turn, 1.4)], -1)
    ahead = torch.stack([-torch.cos(turn), -torch.sin(turn), torch.full_like(turn, tilt)], -1)
    c2w = look_at(position, position + ahead, torch.tensor([[0.0, 0, 1]]).expand(count, 3))
    return Cameras(c2w, Projection.perspective(torch.full((count,), radians(70)), *size), *size)


def truth(mesh: SourceMesh, at: Cameras) -> Array:
    """Pictures (N,H,W,3) as they are."""
    fine = at.with_size(2 * at.height, 2 * at.width)
    found = rasterise_views(mesh.vertices, mesh.faces, fine)
    image = np.where(found.mask[..., None], colour(interpolate(mesh.vertices, mesh.faces, found)), np.float32(0.5))
    return box_downsample(image, 2).astype(np.float32)
