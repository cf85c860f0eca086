"""Texture coordinates: xatlas cuts the surface into charts and packs them into a square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xatlas
from numpy.typing import NDArray

from threedgen.config.errors import ConfigError
from threedgen.export.shape.mesh import vertex_normals
from threedgen.export.shape.uv_layout import density

Array = NDArray[Any]

GAP = 4
"""Texels between two charts in the final texture, at 1024 pixels and below; more where there are more."""
COSTS = (8.0, 2.0)
"""When a chart is large enough. The second, which is the library's own, ends charts that are distorted sooner and packs
less densely: it is tried where the first leaves the texels too uneven."""
EVEN = (0.8, 1.25)
"""Texels along a unit of length, 5th and 95th percentile over the median (see uv_layout.density)."""


class UnwrapError(ConfigError):
    """No texture coordinates could be made for a surface."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh split along its seams, in the axes and units of the one it came from.

    vertices (V, 3) float32; faces (F, 3) int32, the very triangles of the original in their order; normals
    (V, 3) float32, unit, equal on both sides of a seam; uv (V, 2) float32 in [0, 1], v upwards;
    origin (V,) int32: the original vertex of each; charts, size: number of charts, and the larger side in
    texels of what was packed.
    """

    vertices: Array
    faces: Array
    normals: Array
    uv: Array
    origin: Array
    charts: int
    size: int


def padding(texture: int) -> int:
    """Texels to keep free between charts in a texture of this size: enough for its mip levels."""
    return max(GAP, texture * GAP // 1024)


def unwrap(vertices: Array, faces: Array, texture: int = 1024) -> Unwrapped:
    """Charts for a closed mesh, vertices (V, 3), faces (F, 3), with room between them for `texture` texels.

    Texels come out square and alike in size all over the surface: of the two COSTS, the second is taken where it makes
    them more so. Same input, same output. Raises UnwrapError.
    """
    tried = []
    for cost in COSTS:
        unwrapped = _unwrap(vertices, faces, texture, cost)
        low, high = density(unwrapped.vertices, unwrapped.faces, unwrapped.uv)
        tried.append((min(low / EVEN[0], EVEN[1] / max(high, 1e-30)), unwrapped))
        if tried[-1][0] >= 1:
            break
    return max(tried, key=lambda one: one[0])[1]


def _unwrap(vertices: Array, faces: Array, texture: int, cost: float) -> Unwrapped:
    """The same with one limit for the cost of a chart."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    size = float((high - low).max())
    if not np.isfinite(size) or size <= 0:
        raise UnwrapError("the surface has no extent, so it cannot be unwrapped")
    unit = np.ascontiguousarray((vertices - (low + high) / 2) / size, np.float32)
    wanted = padding(texture)
    asked = wanted - wanted // 4  # on both sides of a chart; what is packed is larger than asked for, and shrunk to fit
    atlas = _pack(unit, faces, texture, asked, cost)
    side = max(atlas.width, atlas.height)
    if 2 * asked * texture < wanted * side:
        atlas = _pack(unit, faces, texture, -(-wanted * side // (2 * texture)) + 1, cost)
        side = max(atlas.width, atlas.height)
    origin, triangles, uv = (np.asarray(part) for part in atlas.get_mesh(0))
    uv = uv * (np.array([atlas.width, atlas.height]) / max(side, 1))
    if len(triangles) != len(faces) or not len(uv) or not np.isfinite(uv).all() or not side:
        raise UnwrapError("the surface could not be unwrapped; try another budget")
    uv[:, 1] = 1 - uv[:, 1]  # the library counts rows downwards
    return Unwrapped(
        vertices=np.ascontiguousarray(vertices[origin], np.float32),
        faces=triangles.astype(np.int32),
        normals=vertex_normals(vertices, faces)[origin],
        uv=np.clip(uv, 0, 1).astype(np.float32),
        origin=origin.astype(np.int32),
        charts=int(atlas.chart_count),
        size=int(side),
    )


def _pack(vertices: Array, faces: Array, texture: int, gap: int, cost: float) -> Any:
    """xatlas' result for one mesh of size 1."""
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    chart.max_cost = cost
    pack.resolution, pack.padding, pack.bilinear = texture, gap, True
    atlas = xatlas.Atlas()
    try:
        atlas.add_mesh(vertices, np.ascontiguousarray(faces, np.uint32))
        atlas.generate(chart, pack)
    except (RuntimeError, ValueError) as error:
        raise UnwrapError(f"the surface could not be unwrapped ({error}); try another budget") from error
    if atlas.atlas_count != 1:
        raise UnwrapError("the surface did not fit into one texture; try texture=2048 or a smaller budget")
    return atlas
