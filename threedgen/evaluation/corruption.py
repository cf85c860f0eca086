"""Corruption of correct meshes in the ways of text-to-3D results: rough surfaces, and two fronts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from threedgen.data.coloured_mesh import ColouredMesh, Part, drop_degenerate
from threedgen.run.arrays import Array

POSITION_NOISE, COLOUR_NOISE = 0.02, 0.07
"""Root mean square noise of positions (world units) and colours at strength 1."""
WAVELENGTHS = 0.08, 0.3
"""Range of the noise's wavelength, world units; one per object."""
MAX_EDGE = 0.1
"""Longer edges are subdivided, so that noise bends flat surfaces."""
NOISE_TERMS = 24


def rough(mesh: ColouredMesh, rng: np.random.Generator, strength: float = 1.0) -> ColouredMesh:
    """Add smooth noise to the positions and vertex colours of a mesh; strength 0 returns it unchanged.

    Equal positions get equal noise, so a closed mesh stays closed. Textures are not changed.
    """
    if strength == 0:
        return mesh
    wavelength = rng.uniform(*WAVELENGTHS)
    offset, tint = (SmoothNoise(rng, wavelength) for _ in range(2))
    parts = []
    for part in mesh.parts:
        fine = subdivided(part)
        values = fine.values
        if part.texture is None:
            values = np.clip(values + COLOUR_NOISE * strength * tint(fine.corners), 0, 1)
        corners = fine.corners + POSITION_NOISE * strength * offset(fine.corners)
        parts.append(replace(fine, corners=corners, values=values))
    return replace(mesh, parts=tuple(parts))


class SmoothNoise:
    """Three independent smooth random functions of points (..., 3) with mean 0 and variance 1."""

    def __init__(self, rng: np.random.Generator, wavelength: float) -> None:
        self.frequency = rng.normal(size=(3, NOISE_TERMS)) * (2 * np.pi / wavelength) / np.sqrt(3)
        self.phase = rng.uniform(0, 2 * np.pi, NOISE_TERMS)
        self.weight = rng.normal(size=(NOISE_TERMS, 3)) * np.sqrt(2 / NOISE_TERMS)

    def __call__(self, points: Array) -> Array:
        value: Array = np.sin(points @ self.frequency + self.phase) @ self.weight
        return value


def subdivided(part: Part) -> Part:
    """Split triangles in four until no edge is longer than `MAX_EDGE`; the surface does not change."""
    triangles, done = np.concatenate([part.corners, part.values], axis=2), []
    while len(triangles):
        corners = triangles[..., :3]
        long = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2).max(1) > MAX_EDGE
        done.append(triangles[~long])
        a, b, c = triangles[long].swapaxes(0, 1)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        quarters = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
        triangles = np.concatenate([np.stack(quarter, axis=1) for quarter in quarters])
    result = np.concatenate(done)
    return replace(part, corners=result[..., :3], values=result[..., 3:])


def two_fronted(mesh: ColouredMesh) -> ColouredMesh:
    """Join two front halves of a mesh back to back, like the result of a prior that samples the front from behind too.

    The front half is the part in front of the centre of the bounding box; its copy is rotated by 180 degrees around the
    vertical axis. The cuts of a symmetric closed mesh coincide, so it stays closed.
    """
    x = mesh.corners[..., 0]
    centre = (x.min() + x.max()) / 2
    halves = [half for part in mesh.parts if len((half := _front_half(part, centre)).corners)]
    rotation = np.array([-1.0, -1.0, 1.0])
    copies = [replace(half, corners=half.corners * rotation + [2 * centre, 0, 0]) for half in halves]
    return replace(mesh, parts=tuple(halves + copies))


def _front_half(part: Part, centre: float) -> Part:
    """Cut off x < centre, with interpolated values at the cut."""
    from trimesh.intersections import slice_faces_plane

    vertices, values = part.corners.reshape(-1, 3), part.values.reshape(-1, part.values.shape[-1])
    faces = np.arange(len(vertices)).reshape(-1, 3)
    vertices, faces, values = slice_faces_plane(vertices, faces, [1, 0, 0], [centre, 0, 0], uv=values)
    return drop_degenerate(replace(part, corners=vertices[faces], values=values[faces]))
