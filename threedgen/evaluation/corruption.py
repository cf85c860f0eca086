"""Corruption of correct meshes with two typical defects of text-to-3D results: rough surfaces and two fronts.

The error rates of the Janus meter, which counts fronts, are measured on such meshes.
"""

from dataclasses import replace

import numpy as np

from threedgen.data.coloured_mesh import ColouredMesh, Part, drop_degenerate
from threedgen.run.arrays import Array

POSITION_NOISE, COLOUR_NOISE = 0.02, 0.07
"""Root mean square of the noise at strength 1: of coordinates in world units, and of colour channels in [0, 1]."""
WAVELENGTHS = 0.08, 0.3
"""Range of the wavelength of the noise in world units. Each object gets one random wavelength."""
MAX_EDGE = 0.1  # maximum edge length in world units after subdivision, so that noise also bends flat surfaces
NOISE_TERMS = 24


def rough(mesh: ColouredMesh, rng: np.random.Generator, strength: float = 1.0) -> ColouredMesh:
    """Return a mesh with smooth random noise added to its vertex positions and vertex colours.

    Edges are first split to at most 0.1 world units (`MAX_EDGE`). Vertices at equal positions get equal noise, so a
    closed mesh stays closed. Textures are not changed. ``strength`` scales the noise: 1 is typical of text-to-3D
    results, 0 returns ``mesh`` itself.
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
            rgb = np.clip(values[..., :3] + COLOUR_NOISE * strength * tint(fine.corners), 0, 1)
            values = np.concatenate([rgb, values[..., 3:]], axis=-1)
        corners = fine.corners + POSITION_NOISE * strength * offset(fine.corners)
        parts.append(replace(fine, corners=corners, values=values))
    return replace(mesh, parts=tuple(parts))


class SmoothNoise:
    """Smooth random vector field: a sum of sine waves of random directions.

    ``wavelength`` is the typical wavelength of the waves in world units. A call maps points (..., 3) to vectors
    (..., 3), whose components have mean 0 and variance 1.
    """

    def __init__(self, rng: np.random.Generator, wavelength: float) -> None:
        self.frequency = rng.normal(size=(3, NOISE_TERMS)) * (2 * np.pi / wavelength) / np.sqrt(3)
        self.phase = rng.uniform(0, 2 * np.pi, NOISE_TERMS)
        self.weight = rng.normal(size=(NOISE_TERMS, 3)) * np.sqrt(2 / NOISE_TERMS)

    def __call__(self, points: Array) -> Array:
        return np.sin(points @ self.frequency + self.phase) @ self.weight


def subdivided(part: Part) -> Part:
    """Return a mesh part whose triangles are split in halves until no edge is longer than `MAX_EDGE` world units.

    The longest edge of a triangle is split in the middle. An edge is split only if it is too long, so the triangles on
    both sides of it are split alike, and the mesh gets no cracks. The shape of the surface does not change.
    """
    triangles, done = np.concatenate([part.corners, part.values], axis=2), []
    while len(triangles):
        corners = triangles[..., :3]
        lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
        long = lengths.max(1) > MAX_EDGE
        done.append(triangles[~long])
        order = (lengths[long].argmax(1)[:, None] + np.arange(3)) % 3  # the longest edge first
        a, b, c = np.take_along_axis(triangles[long], order[..., None], axis=1).swapaxes(0, 1)
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack(half, axis=1) for half in ((a, middle, c), (middle, b, c))])
    result = np.concatenate(done)
    return replace(part, corners=result[..., :3], values=result[..., 3:])


def two_fronted(mesh: ColouredMesh) -> ColouredMesh:
    """Return a mesh whose back half is replaced by a copy of the front half, so that it has the Janus problem.

    World axes: z up, front +x. The front half has x > c, where c is the x of the bounding box's centre. Its copy is
    rotated by 180 degrees around the vertical line x = c, y = 0. A closed mesh that is symmetric in y stays closed.
    """
    x = mesh.corners[..., 0]
    centre = (x.min() + x.max()) / 2
    halves = [half for part in mesh.parts if len((half := _front_half(part, centre)).corners)]
    rotation = np.array([-1.0, -1.0, 1.0])
    copies = [replace(half, corners=half.corners * rotation + [2 * centre, 0, 0]) for half in halves]
    return replace(mesh, parts=tuple(halves + copies))


def _front_half(part: Part, centre: float) -> Part:
    from trimesh.intersections import slice_faces_plane

    vertices, values = part.corners.reshape(-1, 3), part.values.reshape(-1, part.values.shape[-1])
    faces = np.arange(len(vertices)).reshape(-1, 3)
    vertices, faces, values = slice_faces_plane(vertices, faces, [1, 0, 0], [centre, 0, 0], uv=values)
    return drop_degenerate(replace(part, corners=vertices[faces], values=values[faces]))
