"""The dense surface of a field, refused or remarked upon where no good asset can come of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import Field, Mesh, extract, from_triangles, on_arrays
from threedgen.export.shape.opacity import HAZE
from threedgen.export.shape.topology import area_vectors
from threedgen.export.surface.pictures import Pictures
from threedgen.run.arrays import Array

FULL = 0.2
"""Share of the surface on the border of the field's world from which on there is no object to be seen."""
CUT = 0.01
"""Share from which on it is worth a word."""
TRANSLUCENT = 0.02
"""How deep half of the light may come into the object, as a share of its size, for it to be opaque."""


class FullField(ConfigError):
    """The field is filled up to the border of its world."""


@dataclass(frozen=True)
class FieldView:
    """A field to be meshed.

    density: points (N, 3) in world units -> sigma (N,); colour: points -> sRGB (N, 3) in [0, 1]; radius of its
    world; mask (M, M, M) bool over the cube around that: where there may be something; device of the points;
    pictures: a renderer of it, if there is one (see pictures.py). mesh: for a field that is a mesh already, its
    vertices (N, 3) and faces (F, 3). elevations: degrees, lowest and highest from which it was looked at while it was
    optimised, if that is known: what is not seen from there has no colour of its own.
    """

    density: Field
    colour: Field
    radius: float
    mask: Array | None = None
    device: torch.device | str = "cpu"
    pictures: Pictures | None = None
    mesh: Callable[[], tuple[Array, Array]] | None = None
    elevations: tuple[float, float] | None = None

    def colours(self, points: Array) -> Array:
        """sRGB (N, 3) of points (N, 3), as arrays and without gradients."""
        return np.clip(on_arrays(self.colour, self.device)(points), 0, 1)


def surface_of(field: FieldView, resolution: int) -> Mesh:
    """Its mesh, if it is one, or else the surface from a grid of so many points along an edge. Raises EmptyField."""
    if field.mesh is not None:
        return from_triangles(*field.mesh(), field.colours)
    return extract(field.density, field.colour, resolution, field.radius, mask=field.mask, device=field.device)


def dense_surface(field: FieldView, resolution: int) -> tuple[Mesh, list[str]]:
    """The field's surface from a grid of so many points along an edge, and a note for each thing to be known.

    Raises EmptyField for a field without surface, FullField for one that fills its world.
    """
    mesh = surface_of(field, resolution)
    share = border_share(mesh, field.radius, 2 * field.radius / (resolution - 1))
    if share > FULL:
        raise FullField(
            f"the object fills all of its space ({share:.0%} of its surface lies on the border), so nothing can be cut "
            "out; train longer, or with a higher loss.sparsity"
        )
    notes = []
    if share > CUT:
        cut = f"the object is too large for its space and is cut off at the border ({share:.0%} of its surface)"
        notes.append(f"{cut}; another seed may fit")
    depth = half_depth(mesh)
    if depth > TRANSLUCENT:
        notes.append(
            f"the object is translucent (half of the light gets {depth:.0%} of its size deep into it), so thin parts "
            "may be lost; a longer run (trainer.max_steps), refinement (refine) or a higher loss.opaque makes it firm"
        )
    return mesh, notes


def border_share(mesh: Mesh, radius: float, cell: float) -> float:
    """Share of the surface within two cells of the sphere beyond which the field is not asked, in [0, 1]."""
    area = np.linalg.norm(area_vectors(mesh.vertices, mesh.faces), axis=1)
    middle = mesh.vertices[mesh.faces].astype(np.float64).mean(axis=1)
    far = np.linalg.norm(middle, axis=1) > radius - 2 * cell
    return float(area[far].sum() / max(area.sum(), 1e-30))


def half_depth(mesh: Mesh) -> float:
    """The depth in which half of the light is gone in typical matter of the field, over the object's size."""
    typical = float(mesh.info.get("haze", 0.0)) / HAZE
    size = float(np.ptp(mesh.vertices, axis=0).max())
    return math.log(2) / typical / size if typical > 0 else 0.0
