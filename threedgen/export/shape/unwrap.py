"""Unwrap a mesh to UVs: xatlas cuts the surface into charts and packs the charts into a square texture."""

from typing import Any

import numpy as np
import xatlas

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals, vertex_tangents
from threedgen.export.shape.topology import area_vectors
from threedgen.geometry.raster import rasterise_uv
from threedgen.run.arrays import Array

MIN_PADDING = 4  # free texels between UV charts for a texture edge up to 1024 texels; larger edges have more
CHART_COSTS = (8.0, 2.0)
"""Values of xatlas' option `max_cost`, tried in order until the texel density is even enough (DENSITY_RANGE). The
second value, xatlas' default, gives charts with less distortion, which fill less of the texture."""
DENSITY_RANGE = (0.8, 1.25)  # minimum 5th and maximum 95th percentile of the texel density / its median
MAX_WHOLE, MAX_BLOCK = 50_000, 10_000
"""A mesh with more than MAX_WHOLE triangles is cut into blocks of at most MAX_BLOCK triangles. No chart has faces of
several blocks.

The time of xatlas is quadratic in the triangles of a chart, and xatlas crashes for smooth surfaces of 80,000 triangles.
"""
MAX_LAYERS = 4  # maximum number of times that a face with overlapping UVs moves to another layer
MIN_XATLAS_AREA = 2e-7  # xatlas gives no UVs to triangles with an area below 1.2e-7; this has a margin for rounding
OVERLAP = 1e-4  # tolerated fraction of covered texels that two faces cover because of rounding


class UnwrapError(ConfigError):
    """Error for a surface that cannot be unwrapped."""


def unwrap(vertices: Array, faces: Array, texture: int = 1024) -> tuple[TexturedMesh, int]:
    """Cut a mesh into UV charts and pack them into a square texture. Deterministic.

    The triangles and their order do not change. A vertex on a seam is stored once per side, with equal normals.

    Args:
        vertices, faces: (V, 3) and (F, 3).
        texture: edge of the texture in texels, which determines the gap between charts.

    Returns:
        The mesh with UVs, and the number of charts.

    Raises:
        UnwrapError: if xatlas fails or the charts do not fit into the texture.
    """
    results = []
    for cost in CHART_COSTS:
        mesh, charts = _unwrap(vertices, faces, texture, cost)
        low, high = density(mesh.vertices, mesh.faces, mesh.uv)
        results.append((min(low / DENSITY_RANGE[0], DENSITY_RANGE[1] / max(high, 1e-30)), mesh, charts))
        if results[-1][0] >= 1:
            break
    return max(results, key=lambda result: result[0])[1:]


def _unwrap(vertices: Array, faces: Array, texture: int, cost: float) -> tuple[TexturedMesh, int]:
    # Faces of different layers are never in the same chart. Layers are needed because xatlas can put stacked surfaces,
    # such as walls and furniture, on top of each other in one chart.
    layer = _blocks(vertices, faces)
    blocks = int(layer.max()) + 1
    while True:
        mesh, charts = _unwrap_layers(vertices, faces, texture, cost, layer)
        first, last = covering_faces(mesh.uv, mesh.faces, texture)
        if overlap(first, last) <= OVERLAP or layer.max() >= MAX_LAYERS * blocks:
            return mesh, charts
        layer[np.unique(last[first != last])] += blocks


def _blocks(vertices: Array, faces: Array) -> Array:
    # number (F,) of the block of each face: all 0, or of a large mesh, halves of halves along the longest side
    middle, number = vertices[faces].mean(1), np.zeros(len(faces), int)
    if len(faces) <= MAX_WHOLE:
        return number
    parts = [np.arange(len(faces))]
    while len(parts[0]) > MAX_BLOCK:
        halves = list[Array]()
        for part in parts:
            order = part[np.argsort(middle[part, np.ptp(middle[part], axis=0).argmax()], kind="stable")]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        parts = halves
    for k, part in enumerate(parts):
        number[part] = k
    return number


def _unwrap_layers(vertices: Array, faces: Array, texture: int, cost: float, layer: Array) -> tuple[TexturedMesh, int]:
    # no chart has faces with different numbers in `layer` (F,)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = float((high - low).max())
    if not np.isfinite(size) or size <= 0:
        raise UnwrapError("the surface has no extent and cannot be unwrapped; use another seed")
    unit = np.ascontiguousarray((vertices - (low + high) / 2) / size, np.float32)
    if np.linalg.norm(area_vectors(unit, faces), axis=1).min() < 2 * MIN_XATLAS_AREA:
        unit *= 1000
    room = padding(texture)
    gap = room - room // 4  # per side of a chart; xatlas may return a larger atlas, which is scaled down
    layer_faces = [np.flatnonzero(layer == number) for number in np.unique(layer)]
    used = [np.unique(faces[index], return_inverse=True) for index in layer_faces]
    parts = [(unit[rows], inverse.reshape(-1, 3).astype(np.uint32)) for rows, inverse in used]
    atlas = _pack(parts, texture, gap, cost)
    side = max(atlas.width, atlas.height)
    if 2 * gap * texture < room * side:
        atlas = _pack(parts, texture, -(-room * side // (2 * texture)) + 1, cost)
        side = max(atlas.width, atlas.height)
    origins, triangles, uvs, count = list[Array](), np.zeros(faces.shape, np.int32), list[Array](), 0
    for number, index in enumerate(layer_faces):
        origin, corners, uv = (np.asarray(part) for part in atlas.get_mesh(number))
        if len(corners) != len(index) or not len(uv) or not np.isfinite(uv).all() or not side:
            raise UnwrapError("the surface could not be unwrapped; try another budget")
        triangles[index] = corners.astype(np.int64) + count
        origins.append(used[number][0][origin])
        uvs.append(uv * (np.array([atlas.width, atlas.height]) / side))
        count += len(origin)
    origin, uv = np.concatenate(origins), np.concatenate(uvs)
    uv[:, 1] = 1 - uv[:, 1]  # xatlas counts v downwards
    points = np.ascontiguousarray(vertices[origin], np.float32)
    uv = np.clip(uv, 0, 1).astype(np.float32)
    normals = vertex_normals(vertices, faces)[origin]
    tangents = vertex_tangents(points, triangles, normals, uv)
    return TexturedMesh(points, triangles, normals, uv, tangents), int(atlas.chart_count)


def padding(texture: int) -> int:
    return max(MIN_PADDING, texture * MIN_PADDING // 1024)


def _pack(layers: list[tuple[Array, Array]], texture: int, gap: int, cost: float) -> Any:
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_cost = cost
    pack.resolution, pack.padding, pack.bilinear = texture, gap, True
    atlas = xatlas.Atlas()
    try:
        for vertices, faces in layers:
            atlas.add_mesh(vertices, faces)
        atlas.generate(chart, pack)
    except (RuntimeError, ValueError) as error:
        raise UnwrapError(f"the surface could not be unwrapped ({error}); try another budget") from error
    if atlas.atlas_count != 1:
        raise UnwrapError("the UV charts do not fit into one texture; try texture=2048 or a smaller budget")
    return atlas


def covering_faces(uv: Array, faces: Array, size: int) -> tuple[Array, Array]:
    """Return two arrays (size, size): the lowest and the highest index of the faces that cover each texel; -1 for none.

    Takes uv (V, 2) with v upwards and faces (F, 3). Row 0 of the arrays is at v = 1. Faces with a common edge never
    cover the same texel, so both arrays are equal where charts do not overlap.
    """
    first, last = (rasterise_uv(uv, order, size).face for order in (faces, faces[::-1]))
    return first, np.where(last < 0, last, len(faces) - 1 - last)


def overlap(first: Array, last: Array) -> float:
    """Return the fraction of covered texels that more than one face covers; 0 if no texel is covered.

    `first` and `last` (H, W) are the lowest and the highest index of the faces that cover each texel, -1 for none, as
    from `covering_faces`. They differ where more than one face covers the texel.
    """
    return float((first != last).sum() / max((first >= 0).sum(), 1))


def density(vertices: Array, faces: Array, uv: Array) -> tuple[float, float]:
    """Return the 5th and the 95th percentile of the texel density over the surface, each divided by the median.

    The texel density of a face is sqrt(UV area / surface area). Takes vertices (V, 3), faces (F, 3) and uv (V, 2).
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
