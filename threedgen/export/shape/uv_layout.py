"""How charts lie in a texture: how much they cover, whether they overlap, how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from threedgen.export.shape.topology import area_vectors, pieces
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array

OVERLAP = 1e-4
"""Share of the covered texels that two places of a surface may have in common: roundings."""


@dataclass(frozen=True)
class Layout:
    """coverage, overlap: share of the texture that is covered, and share of that which is so twice, in [0, 1];
    density: 5th and 95th percentile, by area, of the texels along a unit of length, over their median; charts;
    gap: the least distance between the texel centres of two charts, in texels (inf for one chart).
    """

    coverage: float
    overlap: float
    density: tuple[float, float]
    charts: int
    gap: float


def layout(vertices: Array, faces: Array, uv: Array, size: int) -> Layout:
    """Measures uv (V, 2), v upwards, in a texture of `size` texels; vertices (V, 3) are split along the seams."""
    first, last = claims(uv, faces, size)
    covered, chart = first >= 0, pieces(faces, len(vertices))
    return Layout(
        coverage=float(covered.mean()),
        overlap=overlap(first, last),
        density=density(vertices, faces, uv),
        charts=int(chart.max(initial=-1)) + 1,
        gap=gap(np.where(covered, chart[first], -1)),
    )


def claims(uv: Array, faces: Array, size: int) -> tuple[Array, Array]:
    """The first and the last face that claim each texel (size,size), -1 where none does. Two faces with a common edge
    never claim the same, so where all is in order they are alike."""
    first, last = (rasterise_uv(uv, order, size).face for order in (faces, faces[::-1]))
    return first, np.where(last < 0, last, len(faces) - 1 - last)


def overlap(first: Array, last: Array) -> float:
    """The share of the covered texels that two faces claim (``claims``)."""
    return float((first != last).sum() / max((first >= 0).sum(), 1))


def density(vertices: Array, faces: Array, uv: Array) -> tuple[float, float]:
    """5th and 95th percentile over the median of sqrt(area in the texture / area in space), by area in space."""
    flat, space = uv[faces].astype(np.float64), np.linalg.norm(area_vectors(vertices, faces), axis=1)
    d1, d2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    texture = np.abs(d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0])
    there = space > 0
    ratio = np.sqrt(texture[there] / space[there])
    order = np.argsort(ratio, kind="stable")
    share = np.cumsum(space[there][order]) / max(space.sum(), 1e-30)
    places = np.minimum(np.searchsorted(share, (0.05, 0.5, 0.95)), len(order) - 1)
    low, middle, high = ratio[order[places]].tolist()
    return low / max(middle, 1e-30), high / max(middle, 1e-30)


def gap(chart: Array) -> float:
    """The least distance between texels (H, W) of different numbers; -1 belongs to none."""
    if len(np.unique(chart[chart >= 0])) < 2:
        return float("inf")
    distance, nearest = ndimage.distance_transform_edt(chart < 0, return_indices=True)
    owner = chart[tuple(nearest)]
    least = np.inf
    for axis in (0, 1):  # where the realms of two charts meet, their distance is that to both
        a, b = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        near = [np.moveaxis(distance, axis, 0)[part] for part in (slice(None, -1), slice(1, None))]
        meet = a != b
        if meet.any():
            least = min(least, float((near[0] + near[1])[meet].min()) + 1)
    return least
