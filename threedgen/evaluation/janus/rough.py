"""True objects made rough, as objects of methods are: surface and colours are shaken by smooth noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .coloured_mesh import Array, ColouredMesh, Part

SHAKE, PAINT = 0.02, 0.07
"""Root mean square of the noise on places (world units) and on colours, at strength 1."""
WAVES = 0.08, 0.3
"""Wavelengths, world units: one is drawn for each object."""
EDGE = 0.1
"""Longer edges are halved until none is left, so that noise bends what was flat."""
TERMS = 24


def rough(mesh: ColouredMesh, rng: np.random.Generator, strength: float = 1.0) -> ColouredMesh:
    """``mesh`` with every point moved, and its colours changed, by noise that neighbours share; 0: as it is.

    Points at one place move alike, so what is closed stays closed. Pictures on the surface are not changed.
    """
    if strength == 0:
        return mesh
    wave = rng.uniform(*WAVES)
    move, tint = (Noise(rng, wave) for _ in range(2))
    parts = []
    for part in mesh.parts:
        fine = halved(part)
        values = fine.values
        if part.texture is None:
            values = np.clip(values + PAINT * strength * tint(fine.corners), 0, 1)
        parts.append(replace(fine, corners=fine.corners + SHAKE * strength * move(fine.corners), values=values))
    return replace(mesh, parts=tuple(parts))


class Noise:
    """Three smooth functions of points (..., 3) with mean 0 and variance 1, independent of each other."""

    def __init__(self, rng: np.random.Generator, wave: float) -> None:
        self.frequency = rng.normal(size=(3, TERMS)) * (2 * np.pi / wave) / np.sqrt(3)
        self.phase = rng.uniform(0, 2 * np.pi, TERMS)
        self.weight = rng.normal(size=(TERMS, 3)) * np.sqrt(2 / TERMS)

    def __call__(self, points: Array) -> Array:
        value: Array = np.sin(points @ self.frequency + self.phase) @ self.weight
        return value


def halved(part: Part, edge: float = EDGE) -> Part:
    """The same surface in triangles whose edges are ``edge`` at most: longer ones are cut in four."""
    rows, done = np.concatenate([part.corners, part.values], axis=2), []
    while len(rows):
        corners = rows[..., :3]
        long = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2).max(1) > edge
        done.append(rows[~long])
        a, b, c = rows[long].swapaxes(0, 1)
        ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
        rows = np.concatenate([np.stack(t, axis=1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    whole = np.concatenate(done)
    return replace(part, corners=whole[..., :3], values=whole[..., 3:])
