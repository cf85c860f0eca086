"""Measure a UV layout: coverage, overlap, texel density, distance between charts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from threedgen.export.shape.topology import area_vectors, pieces
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array

OVERLAP = 1e-4
"""Tolerated fraction of covered texels that two surface points share (rounding)."""


@dataclass(frozen=True)
class Layout:
    """UV layout statistics."""

    coverage: float  # fraction of texels covered by charts
    overlap: float  # fraction of covered texels that are covered twice
    density: tuple[float, float]  # 5th and 95th percentile of texels per unit length, by area, over the median
    charts: int  # number of charts
    gap: float  # smallest distance between texel centres of two charts, in texels; inf for one chart


def layout(vertices: Array, faces: Array, uv: Array, size: int) -> Layout:
    """Measure uv (V, 2), v upwards, in a texture of `size` texels; vertices (V, 3) must be split along the seams."""
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
    """Return the first and the last face that cover each texel (size, size), -1 for none.

    Faces with a common edge never cover the same texel, so without overlap both arrays are equal.
    """
    first, last = (rasterise_uv(uv, order, size).face for order in (faces, faces[::-1]))
    return first, np.where(last < 0, last, len(faces) - 1 - last)


def overlap(first: Array, last: Array) -> float:
    """Return the fraction of covered texels that two faces cover, from the result of `claims`."""
    return float((first != last).sum() / max((first >= 0).sum(), 1))


def density(vertices: Array, faces: Array, uv: Array) -> tuple[float, float]:
    """Return the 5th and 95th percentile over the median of sqrt(UV area / surface area), weighted by surface area."""
    corner, area = uv[faces].astype(np.float64), np.linalg.norm(area_vectors(vertices, faces), axis=1)
    d1, d2 = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    uv_area = np.abs(d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0])
    valid = area > 0
    ratio = np.sqrt(uv_area[valid] / area[valid])
    order = np.argsort(ratio, kind="stable")
    cdf = np.cumsum(area[valid][order]) / max(area.sum(), 1e-30)
    index = np.minimum(np.searchsorted(cdf, (0.05, 0.5, 0.95)), len(order) - 1)
    low, median, high = ratio[order[index]].tolist()
    return low / max(median, 1e-30), high / max(median, 1e-30)


def gap(chart: Array) -> float:
    """Return the smallest distance between texels (H, W) with different chart numbers; -1 means no chart."""
    if len(np.unique(chart[chart >= 0])) < 2:
        return float("inf")
    distance, nearest = ndimage.distance_transform_edt(chart < 0, return_indices=True)
    owner = chart[tuple(nearest)]
    smallest = np.inf
    for axis in (0, 1):  # at the border of two Voronoi cells, the gap is the sum of both distances
        a, b = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        near = [np.moveaxis(distance, axis, 0)[part] for part in (slice(None, -1), slice(1, None))]
        border = a != b
        if border.any():
            smallest = min(smallest, float((near[0] + near[1])[border].min()) + 1)
    return smallest
