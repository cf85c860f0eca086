"""Unit sphere with texture coordinates, for tests of textures."""

import math

import numpy as np

from threedgen.export.shape.mesh import TexturedMesh


def lattice(columns: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uv (V, 2) of a grid over [0, 1]^2 and its faces, counter-clockwise for u right and v up."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    k = np.arange(u.size).reshape(u.shape)
    a, b, c, d = k[:-1, :-1].ravel(), k[:-1, 1:].ravel(), k[1:, 1:].ravel(), k[1:, :-1].ravel()
    return np.stack([u.ravel(), v.ravel()], 1), np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def globe(columns: int = 32, rows: int = 16, scale: float = 1.0, shift: float = 0.0) -> TexturedMesh:
    """Return a unit sphere with uv = (longitude, latitude) * scale + shift."""
    uv, faces = lattice(columns, rows)
    longitude = 2 * math.pi * uv[:, 0]
    east = np.stack([-np.sin(longitude), np.cos(longitude), 0 * longitude, np.ones(len(uv))], 1)
    return TexturedMesh(on_globe(uv), faces, on_globe(uv), uv * scale + shift, east)


def on_globe(uv: np.ndarray) -> np.ndarray:
    """Return the point of `globe` at uv (..., 2)."""
    longitude, latitude = 2 * math.pi * uv[..., 0], math.pi * (uv[..., 1] - 0.5)
    ring = np.cos(latitude)
    return np.stack([ring * np.cos(longitude), ring * np.sin(longitude), np.sin(latitude)], -1)
