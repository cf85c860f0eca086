"""Measure the quality of a UV layout: coverage, overlap, texel density, distance between charts."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from threedgen.export.shape.topology import area_vectors, pieces
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array

OVERLAP = 1e-4
"""Tolerated fraction of covered texels that two faces cover because of rounding."""


@dataclass(frozen=True)
class Layout:
    """Quality metrics of a UV layout."""

    coverage: float  # fraction of texels covered by charts
    overlap: float  # fraction of covered texels that are covered twice
    density: tuple[float, float]  # 5th and 95th percentile of texels per unit length, each divided by the median
    charts: int  # number of charts
    gap: float  # smallest distance between texel centres of two charts, in texels; inf for one chart


def layout(vertices: Array, faces: Array, uv: Array, size: int) -> Layout:
    """Measure a UV layout in a square texture with an edge of `size` texels.

    Takes vertices (V, 3), stored once per side of a UV seam, faces (F, 3) and uv (V, 2) in [0, 1] with v upwards.
    """
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
    """Return the lowest and the highest index of the faces that cover each texel, (size, size) each; -1 for no face.

    Takes uv (V, 2) with v upwards and faces (F, 3). Faces with a common edge never cover the same texel, so both arrays
    are equal where charts do not overlap.
    """
    first, last = (rasterise_uv(uv, order, size).face for order in (faces, faces[::-1]))
    return first, np.where(last < 0, last, len(faces) - 1 - last)


def overlap(first: Array, last: Array) -> float:
    """Return the fraction of covered texels that more than one face covers; `first`, `last`: result of `claims`."""
    return float((first != last).sum() / max((first >= 0).sum(), 1))


def density(vertices: Array, faces: Array, uv: Array) -> tuple[float, float]:
    """Return the evenness of the texel density, sqrt(UV area / surface area) per face.

    Takes vertices (V, 3), faces (F, 3) and uv (V, 2). Returns the 5th and the 95th percentile of the density over the
    surface, each divided by the median.
    """
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
    """Return the smallest distance between texels of two charts, in texels; inf for fewer than two charts.

    chart: (H, W) chart number of each texel, -1 for a texel without a chart.
    """
    if len(np.unique(chart[chart >= 0])) < 2:
        return float("inf")
    distance, nearest = ndimage.distance_transform_edt(chart < 0, return_indices=True)
    owner = chart[tuple(nearest)]
    smallest = np.inf
    for axis in (0, 1):  # at the border of two charts' Voronoi cells, the gap is the sum of both distances
        a, b = (np.moveaxis(owner, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        near = [np.moveaxis(distance, axis, 0)[part] for part in (slice(None, -1), slice(1, None))]
        border = a != b
        if border.any():
            smallest = min(smallest, float((near[0] + near[1])[border].min()) + 1)
    return smallest
