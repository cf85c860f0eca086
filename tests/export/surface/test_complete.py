"""Diffusion of colours over the surface."""

import numpy as np

from threedgen.export.surface.complete import SurfacePoints, diffuse_colours


def square(side: int = 24) -> SurfacePoints:
    x, y = np.meshgrid(*[np.linspace(0, 1, side)] * 2)
    points = np.stack([x.ravel(), y.ravel(), np.zeros(side**2)], 1).astype(np.float32)
    return SurfacePoints(points, np.tile(np.float32([0, 0, 1]), (side**2, 1)), np.zeros(side**2, np.int64))


def test_diffuse_colours_continues_a_gradient_into_a_hole() -> None:
    at = square()
    colours = np.repeat(at.points[:, :1], 3, 1) * np.float32([1, 0.5, 0.2])
    known = (np.abs(at.points[:, :2] - 0.5) > 0.25).any(1)
    found = diffuse_colours(at, np.where(known[:, None], colours, 0), known)
    assert (found[known] == colours[known]).all()
    assert np.abs(found - colours).max() < 0.06


def test_diffuse_colours_separates_pieces_and_sides() -> None:
    one, count = square(), 24**2
    points = np.concatenate([one.points, one.points + np.float32([0, 0, 1e-3])])
    normals = np.concatenate([-one.normals, one.normals])
    red, blue = np.eye(3, dtype=np.float32)[[0, 2]]
    colours = np.repeat(np.stack([red, blue]), count, 0)
    known = np.tile((np.abs(one.points[:, :2] - 0.5) > 0.3).any(1), 2)
    for piece in (np.zeros(2 * count, np.int64), np.repeat([0, 1], count)):
        found = diffuse_colours(SurfacePoints(points, normals, piece), np.where(known[:, None], colours, 0), known)
        assert np.abs(found - colours).max() < 0.02
    known[count:] = False  # a piece without known texel takes the colours of its neighbour
    found = diffuse_colours(
        SurfacePoints(points, normals, np.repeat([0, 1], count)), np.where(known[:, None], colours, 0), known
    )
    assert np.abs(found - red).max() < 1e-3
