"""Texture coordinates: xatlas cuts the surface into charts and packs them into a square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xatlas

from threedgen.config.errors import ConfigError
from threedgen.export.files.textured import TexturedMesh
from threedgen.export.shape.mesh import vertex_normals
from threedgen.export.shape.uv_layout import OVERLAP, claims, density, overlap
from threedgen.export.surface.tangents import vertex_tangents
from threedgen.run.arrays import Array

GAP = 4
"""Texels between two charts in the final texture, at 1024 pixels and below; more where there are more."""
COSTS = (8.0, 2.0)
"""When a chart is large enough. The second, which is the library's own, ends charts that are distorted sooner and packs
less densely: it is tried where the first leaves the texels too uneven."""
EVEN = (0.8, 1.25)
"""Texels along a unit of length, 5th and 95th percentile over the median (see uv_layout.density)."""
LAYERS = 4
"""Cuts at most of a surface that lies upon itself."""


class UnwrapError(ConfigError):
    """No texture coordinates could be made for a surface."""


def padding(texture: int) -> int:
    """Texels to keep free between charts in a texture of this size: enough for its mip levels."""
    return max(GAP, texture * GAP // 1024)


def unwrap(vertices: Array, faces: Array, texture: int = 1024) -> tuple[TexturedMesh, int]:
    """A mesh, vertices (V, 3), faces (F, 3), split into charts with room between them for `texture` texels, and
    how many they are. Axes, units, the triangles and their order are the same; normals are equal across a seam.

    Texels come out square and alike in size all over the surface: of the two COSTS, the second is taken where it makes
    them more so. Same input, same output. Raises UnwrapError.
    """
    tried = []
    for cost in COSTS:
        mesh, charts = _unwrap(vertices, faces, texture, cost)
        low, high = density(mesh.vertices, mesh.faces, mesh.uv)
        tried.append((min(low / EVEN[0], EVEN[1] / max(high, 1e-30)), mesh, charts))
        if tried[-1][0] >= 1:
            break
    return max(tried, key=lambda one: one[0])[1:]


def _unwrap(vertices: Array, faces: Array, texture: int, cost: float) -> tuple[TexturedMesh, int]:
    """The same with one limit for the cost of a chart.

    Where a surface lies upon itself, as walls and furniture of scenes do, the library puts both into one chart, one
    above the other: the upper one is then cut off as a layer of its own.
    """
    layer = np.zeros(len(faces), int)
    while True:
        mesh, charts = _in_layers(vertices, faces, texture, cost, layer)
        first, last = claims(mesh.uv, mesh.faces, texture)
        if overlap(first, last) <= OVERLAP or layer.max() == LAYERS:
            return mesh, charts
        layer[np.unique(last[first != last])] += 1


def _in_layers(vertices: Array, faces: Array, texture: int, cost: float, layer: Array) -> tuple[TexturedMesh, int]:
    """The same; no chart has faces of different ``layer`` (F,)."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = float((high - low).max())
    if not np.isfinite(size) or size <= 0:
        raise UnwrapError("the surface has no extent, so it cannot be unwrapped")
    unit = np.ascontiguousarray((vertices - (low + high) / 2) / size, np.float32)
    room = padding(texture)
    asked = room - room // 4  # on both sides of a chart; what is packed is larger than asked for, and shrunk to fit
    of_layer = [np.flatnonzero(layer == number) for number in np.unique(layer)]
    parts = [faces[chosen] for chosen in of_layer]
    atlas = _pack(unit, parts, texture, asked, cost)
    side = max(atlas.width, atlas.height)
    if 2 * asked * texture < room * side:
        atlas = _pack(unit, parts, texture, -(-room * side // (2 * texture)) + 1, cost)
        side = max(atlas.width, atlas.height)
    origins, triangles, places, count = list[Array](), np.zeros(faces.shape, np.int32), list[Array](), 0
    for number, chosen in enumerate(of_layer):
        origin, corners, uv = (np.asarray(part) for part in atlas.get_mesh(number))
        if len(corners) != len(chosen) or not len(uv) or not np.isfinite(uv).all() or not side:
            raise UnwrapError("the surface could not be unwrapped; try another budget")
        triangles[chosen] = corners.astype(np.int64) + count
        origins.append(origin)
        places.append(uv * (np.array([atlas.width, atlas.height]) / side))
        count += len(origin)
    origin, uv = np.concatenate(origins), np.concatenate(places)
    uv[:, 1] = 1 - uv[:, 1]  # the library counts rows downwards
    points = np.ascontiguousarray(vertices[origin], np.float32)
    uv = np.clip(uv, 0, 1).astype(np.float32)
    normals = vertex_normals(vertices, faces)[origin]
    tangents = vertex_tangents(points, triangles, normals, uv)
    return TexturedMesh(points, triangles, normals, uv, tangents), int(atlas.chart_count)


def _pack(vertices: Array, layers: Sequence[Array], texture: int, gap: int, cost: float) -> Any:
    """xatlas' result for one surface of size 1, faces (F,3) of each layer."""
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_cost = cost
    pack.resolution, pack.padding, pack.bilinear = texture, gap, True
    atlas = xatlas.Atlas()
    try:
        for faces in layers:
            atlas.add_mesh(vertices, np.ascontiguousarray(faces, np.uint32))
        atlas.generate(chart, pack)
    except (RuntimeError, ValueError) as error:
        raise UnwrapError(f"the surface could not be unwrapped ({error}); try another budget") from error
    if atlas.atlas_count != 1:
        raise UnwrapError("the surface did not fit into one texture; try texture=2048 or a smaller budget")
    return atlas
