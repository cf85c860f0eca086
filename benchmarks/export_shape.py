"""Shape of exported meshes against toybox objects, whose surfaces are known: normals, edges, contact with the ground.

The signed distance of an object is converted to a density with a soft transition at the surface, as in a trained field.
Surface extraction and simplification of the export then make the mesh and its levels of detail.
"""

import time
from statistics import mean

import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.nn import functional as F

from threedgen.export.shape.from_field import FieldView, dense_surface
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.simplify import simplify, simplify_level
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.bake import bake, texel_frames, with_dense_normals
from threedgen.geometry.raster import rasterise_uv, unit
from threedgen.run.arrays import Array
from threedgen.toybox.world.primitives import BOX, DOME, FRUSTUM, SPHERE, TORUS, Primitive

from .export_fields import PEAK, SKIN
from .table import Row, Table
from .toybox_truth import Truth
from .unseen import NOUNS

RESOLUTION, LEVELS, TEXTURE = 128, (3000, 1000, 250), 512
SAMPLES = 30_000  # number of points on each mesh
FAR, CONTACT = 0.1, 0.01
"""Distance from the surface, in world units, from which the field is empty; height up to which points count as contact
with the ground, as a fraction of the object's height."""


def signed_distance(solid: Primitive, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return approximate signed distances (N,) of ``points`` (N, 3) to a solid, negative inside, and normals (N, 3).

    Points and normals are in world space. A solid is an intersection of smooth shapes f <= 0, such as half spaces. The
    distance to a shape is approximated to first order, f / |grad f|, and that of the solid is the largest of these. The
    normal is the unit gradient of the shape with the largest distance.
    """
    inverse = np.linalg.inv(solid.matrix)
    x, y, z = q = ((points - solid.centre) @ inverse.T).T
    zero, one = np.zeros_like(x), np.ones_like(x)
    rho, r, p = np.maximum(np.hypot(x, y), 1e-9), np.maximum(np.linalg.norm(q, axis=0), 1e-9), solid.param
    bottom, ball = (-z - 1, (zero, zero, -one)), (r - 1, (x / r, y / r, z / r))
    if solid.kind == SPHERE:
        pieces = [ball]
    elif solid.kind == DOME:
        pieces = [ball, (-z, (zero, zero, -one))]
    elif solid.kind == BOX:
        pieces = [
            (np.abs(q[k]) - 1, tuple(np.copysign(one, q[k]) if k == j else zero for j in range(3))) for k in range(3)
        ]
    elif solid.kind == FRUSTUM:
        slope = (p - 1) / 2
        side = (rho - 1 - slope * (z + 1), (x / rho, y / rho, -slope * one))
        pieces = [bottom, (z - 1, (zero, zero, one)), side]
    elif solid.kind == TORUS:
        out = rho - (1 - p)
        tube = np.maximum(np.hypot(out, z), 1e-9)
        pieces = [(tube - p, (out / tube * x / rho, out / tube * y / rho, z / tube))]
    else:
        slant = (np.abs(x) - (1 - z) / 2, (np.copysign(one, x), zero, 0.5 * one))
        pieces = [(np.abs(y) - 1, (zero, np.copysign(one, y), zero)), bottom, slant]
    values, gradients = np.stack([f for f, _ in pieces]), np.stack([np.stack(g, 1) for _, g in pieces]) @ inverse
    length = np.maximum(np.linalg.norm(gradients, axis=2), 1e-9)  # 0 on an axis
    best = (values / length).argmax(axis=0)[None]
    first = np.take_along_axis(values / length, best, 0)[0]
    return first, np.take_along_axis(gradients / length[..., None], best[..., None], 0)[0]


class Shape:
    """Toybox object of the class `noun`, with signed distance, normals and field."""

    def __init__(self, noun: str) -> None:
        self.truth = Truth(noun, RESOLUTION)
        self.solids = self.truth.asset.primitives

    def normals(self, points: Array) -> tuple[Array, Array]:
        """Return signed distances (N,) of points (N, 3), and the normals (N, 3) of the object there."""
        parts = [signed_distance(solid, points) for solid in self.solids]
        values, normals = np.stack([d for d, _ in parts]), np.stack([n for _, n in parts])
        best = values.argmin(axis=0)[None]
        return np.take_along_axis(values, best, 0)[0], np.take_along_axis(normals, best[..., None], 0)[0]

    def view(self) -> FieldView:
        """Return the field of the object: density PEAK inside, with a transition of width SKIN at the surface."""
        axis = np.linspace(-1, 1, RESOLUTION)
        field = np.full((RESOLUTION,) * 3, FAR)
        for solid in self.solids:
            half = np.abs(solid.matrix).sum(1) * max(1.0, solid.param) + FAR
            ends = np.searchsorted(axis, np.stack([solid.centre - half, solid.centre + half])).T
            block = field[tuple(slice(*end) for end in ends)]
            grid = np.stack(np.meshgrid(*(axis[slice(*end)] for end in ends), indexing="ij"), -1).reshape(-1, 3)
            np.minimum(block, signed_distance(solid, grid)[0].reshape(block.shape), out=block)
        sigma = torch.from_numpy(PEAK / (1 + np.exp(field / SKIN)))[None, None].float()

        def density(x: Tensor) -> Tensor:  # grid_sample expects the last axis first
            return F.grid_sample(sigma, x.flip(-1).view(1, -1, 1, 1, 3), align_corners=True).view(-1)

        def colour(x: Tensor) -> Tensor:
            return torch.full_like(x, 0.7)

        return FieldView(density, colour)


def angles(a: Array, b: Array) -> Array:
    """Return the angles (N,) in degrees between pairs of unit vectors, both (N, 3)."""
    return np.degrees(np.arccos(np.clip((a * b).sum(1), -1, 1)))


def facet_errors(shape: Shape, vertices: Array, faces: Array) -> tuple[Array, Array]:
    """Compare a mesh with the true surface at SAMPLES random points on the mesh.

    Return the angles in degrees between face normals and true normals, and the distances to the true surface in world
    units.
    """
    body = trimesh.Trimesh(vertices, faces, process=False)
    points, index = trimesh.sample.sample_surface(body, SAMPLES, seed=0)
    gap, normals = shape.normals(points)
    return angles(body.face_normals[index], normals), np.abs(gap)


def ground_gaps(shape: Shape, vertices: Array, faces: Array) -> Array:
    """Return the gaps between a mesh and the ground at N points where the true object touches the ground.

    The mesh is moved so that its lowest vertex is on the ground. The result (N,) is in % of the object's height.
    """
    points = shape.truth.samples[0]
    low, high = points[:, 2].min(), points[:, 2].max()
    contact = points[points[:, 2] < low + CONTACT * (high - low)][:500]
    nearest, _, _ = trimesh.proximity.closest_point_naive(trimesh.Trimesh(vertices, faces, process=False), contact)
    return 100 * np.maximum(nearest[:, 2] - vertices[:, 2].min() - (contact[:, 2] - low), 0) / (high - low)


def shaded_errors(shape: Shape, low: TexturedMesh, normal_map: Array) -> Array:
    """Return the angles (N,) in degrees between shading normals and true normals at all N texels of the mesh `low`.

    Shading normals are those of the mesh, changed by the `normal_map` (H, W, 3) in tangent space.
    """
    buffers = rasterise_uv(low.uv, low.faces, TEXTURE)
    frames = texel_frames(low, buffers)
    x, y, z = normal_map[buffers.mask].T[..., None]
    across = np.cross(frames.normals, frames.tangents) * frames.signs[:, None]
    return angles(unit(x * frames.tangents + y * across + z * frames.normals), shape.normals(frames.points)[1])


def measure(noun: str) -> Row:
    """Return the row of an object of the class `noun`: times, and errors of the dense mesh and all levels of detail."""
    shape = Shape(noun)
    view = shape.view()
    start = time.process_time()
    dense, _ = dense_surface(view, RESOLUTION)
    middle = time.process_time()
    low = unwrap(*simplify(dense.vertices, dense.faces, LEVELS[0], nearest=True), TEXTURE)[0]
    seconds = time.process_time() - start
    low = with_dense_normals(low, dense)
    row: Row = {"object": noun, "surface s": middle - start, "s": seconds}
    found, _ = facet_errors(shape, dense.vertices, dense.faces)
    row |= {"dense mean": found.mean(), "dense 95%": float(np.percentile(found, 95))}
    mesh = low
    for count in LEVELS:
        mesh = low if count == LEVELS[0] else simplify_level(low, count)
        found, off = facet_errors(shape, mesh.vertices, mesh.faces)
        gaps = ground_gaps(shape, mesh.vertices, mesh.faces)
        row |= {
            f"{count} triangles": float(len(mesh.faces)),
            f"{count} mean": float(found.mean()),
            f"{count} 95%": float(np.percentile(found, 95)),
            f"{count} off": 100 * float(off.mean()),
            f"{count} gap": float(gaps.mean()),
            f"{count} gap max": float(gaps.max()),
        }
    shaded = shaded_errors(shape, low, bake(low, dense, TEXTURE).normal)
    return row | {"shaded mean": float(shaded.mean()), "shaded 95%": float(np.percentile(shaded, 95))}


def table() -> Table:
    """Return a table with a row per object, and a row with the means over the objects."""
    rows = [measure(noun) for noun in NOUNS]
    means: Row = {key: mean(float(row[key]) for row in rows) for key in rows[0] if key != "object"}
    return Table("Shape of exported meshes", [*rows, {"object": "mean"} | means])
