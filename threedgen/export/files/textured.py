"""A mesh that wears textures, and its place in a scene."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from threedgen.run.arrays import Array


@dataclass(frozen=True)
class TexturedMesh:
    """A triangle mesh in world axes (z up, front +x), split along its UV seams.

    vertices (V, 3) float32; faces (F, 3) int32, counter-clockwise seen from outside; normals (V, 3) float32,
    unit; uv (V, 2) float32 in [0, 1], v upwards (row = (1 - v) * height); tangents (V, 4) float32: unit, and the
    sign of the bitangent (see tangents.py).
    """

    vertices: Array
    faces: Array
    normals: Array
    uv: Array
    tangents: Array


@dataclass(frozen=True)
class Placement:
    """From the field's world to the asset's: x' = scale * (x - pivot). Axes stay as they are."""

    pivot: Array
    scale: float

    def points(self, vertices: Array) -> Array:
        """Points (N, 3) float32, placed."""
        return ((vertices.astype(np.float64) - self.pivot) * self.scale).astype(np.float32)

    def back(self, points: Array) -> Array:
        """Points (N, 3) float32 of the asset, where the field has them."""
        return (points.astype(np.float64) / self.scale + self.pivot).astype(np.float32)

    def mesh(self, mesh: TexturedMesh) -> TexturedMesh:
        """A mesh, placed; directions and texture stay."""
        return replace(mesh, vertices=self.points(mesh.vertices))


def stand(vertices: Array, height: float | None = None) -> Placement:
    """Puts a mesh with its middle over the origin and its lowest point at 0.

    height: metres from bottom to top (z); None: a unit of the world is a metre.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    pivot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return Placement(pivot, 1.0 if height is None else height / max(float(high[2] - low[2]), 1e-30))
