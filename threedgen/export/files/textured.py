"""Data classes of a mesh with UVs, and of its transform from field space to asset space."""

from dataclasses import dataclass, replace

import numpy as np

from threedgen.run.arrays import Array


@dataclass(frozen=True)
class TexturedMesh:
    """Triangle mesh with UVs in world axes (z up, front +x). A vertex on a UV seam is stored once per side."""

    vertices: Array  # (V, 3) float32
    faces: Array  # (F, 3) int32, counter-clockwise seen from outside
    normals: Array  # (V, 3) float32, unit
    uv: Array  # (V, 2) float32 in [0, 1], v upwards: texture row = (1 - v) * height
    tangents: Array  # (V, 4) float32: unit vector along +u, and sign w; bitangent = w * cross(normal, tangent)


@dataclass(frozen=True)
class Placement:
    """Transform from field space to asset space: x' = scale * (x - pivot). Axes are unchanged.

    pivot (3,) float64 is the point of the field that becomes the origin; scale is in metres per field unit.
    """

    pivot: Array
    scale: float

    def points(self, vertices: Array) -> Array:
        """Transform points (N, 3) from field space to asset space (N, 3), float32."""
        return ((vertices.astype(np.float64) - self.pivot) * self.scale).astype(np.float32)

    def inverse(self, points: Array) -> Array:
        """Transform points (N, 3) from asset space back to field space (N, 3), float32."""
        return (points.astype(np.float64) / self.scale + self.pivot).astype(np.float32)

    def mesh(self, mesh: TexturedMesh) -> TexturedMesh:
        """Transform the vertices of a mesh to asset space; normals, tangents and UVs are unchanged."""
        return replace(mesh, vertices=self.points(mesh.vertices))


def place_on_ground(vertices: Array, height: float | None = None) -> Placement:
    """Return the placement that centres a mesh on the z axis and puts its lowest point at z = 0.

    Args:
        vertices: (V, 3) in field space.
        height: size of the placed mesh along z, in metres; None: one field unit is one metre.
    """
    low, high = vertices.min(axis=0).astype(np.float64), vertices.max(axis=0).astype(np.float64)
    pivot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return Placement(pivot, 1.0 if height is None else height / max(float(high[2] - low[2]), 1e-30))
