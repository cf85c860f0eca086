"""Extract the dense mesh of a field. Reject fields that fill the scene, and add notes about other problems."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import Field, Mesh, extract, from_triangles, on_arrays
from threedgen.export.shape.opacity import HAZE
from threedgen.export.shape.topology import area_vectors
from threedgen.export.surface.pictures import ViewRenderer
from threedgen.run.arrays import Array

MAX_BORDER_SHARE = 0.2
"""Maximum fraction of the surface area on the scene boundary. Above it, no object can be extracted."""
CUT_BORDER_SHARE = 0.01
"""Fraction of the surface area on the scene boundary above which a note says that the object is cut off."""
MAX_HALF_DEPTH = 0.02
"""Maximum depth at which half of the light is absorbed, divided by the object's size. Above it, a note calls the object
translucent."""


class FullField(ConfigError):
    """Error for a field that fills the scene: more than MAX_BORDER_SHARE of its surface lies on the boundary."""


@dataclass(frozen=True)
class FieldView:
    """Field as the export needs it: functions of points, and optional data about the scene."""

    density: Field  # points (N, 3) in world units -> sigma (N,) per world unit
    colour: Field  # points (N, 3) in world units -> sRGB (N, 3) in [0, 1]
    radius: float  # radius of the scene sphere about the origin, world units
    mask: Array | None = None  # occupancy (M, M, M) bool, [x, y, z], over the sphere's cube; None: all True
    device: torch.device | str = "cpu"  # device of the points
    renderer: ViewRenderer | None = None  # renders unlit images of the field; None: no texture refinement
    mesh: Callable[[], tuple[Array, Array]] | None = None  # mesh field: returns vertices (N, 3), faces (F, 3)
    elevations: tuple[float, float] | None = None  # range of the training cameras, degrees; None: unknown

    def colours(self, points: Array) -> Array:
        """Return sRGB (N, 3) in [0, 1] at points (N, 3) in world units, as NumPy arrays, without gradients."""
        return np.clip(on_arrays(self.colour, self.device)(points), 0, 1)


def field_surface(field: FieldView, resolution: int) -> Mesh:
    """Return the surface mesh: the mesh of a mesh field, else marching cubes on a grid of `resolution` points per edge.

    Raises EmptyField for a field without a surface.
    """
    if field.mesh is not None:
        return from_triangles(*field.mesh(), field.colours)
    return extract(field.density, field.colour, resolution, field.radius, mask=field.mask, device=field.device)


def dense_surface(field: FieldView, resolution: int) -> tuple[Mesh, list[str]]:
    """Return the surface mesh as `field_surface` does, and notes for the user about a cut-off or translucent object.

    Raises EmptyField for a field without a surface, FullField for a field that fills the scene.
    """
    mesh = field_surface(field, resolution)
    share = border_share(mesh, field.radius, 2 * field.radius / (resolution - 1))
    if share > MAX_BORDER_SHARE:
        raise FullField(
            f"the object fills the whole scene: {share:.0%} of its surface lies on the scene boundary. Train longer "
            "or raise loss.sparsity"
        )
    notes = []
    if share > CUT_BORDER_SHARE:
        notes.append(f"the object is cut off at the scene boundary: {share:.0%} of its surface. Try another seed")
    depth = half_depth(mesh)
    if depth > MAX_HALF_DEPTH:
        notes.append(
            f"the object is translucent: half of the light reaches {depth:.0%} of its size deep. Thin parts may be "
            "lost; train longer (trainer.max_steps), use refine or raise loss.opaque"
        )
    return mesh, notes


def border_share(mesh: Mesh, radius: float, cell: float) -> float:
    """Return the area fraction of faces less than two cells inside the scene sphere, or outside it, in [0, 1].

    The radius of the sphere and the edge `cell` of a grid cell are in world units.
    """
    area = np.linalg.norm(area_vectors(mesh.vertices, mesh.faces), axis=1)
    middle = mesh.vertices[mesh.faces].astype(np.float64).mean(axis=1)
    far = np.linalg.norm(middle, axis=1) > radius - 2 * cell
    return float(area[far].sum() / max(area.sum(), 1e-30))


def half_depth(mesh: Mesh) -> float:
    """Return the depth at which half of the light is absorbed at typical density, divided by the longest side."""
    density = float(mesh.info.get("haze", 0.0)) / HAZE
    size = float(np.ptp(mesh.vertices, axis=0).max())
    return math.log(2) / density / size if density > 0 else 0.0
