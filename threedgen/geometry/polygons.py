"""Submeshes from polygons with any number of corners, as in OBJ, PLY and OFF files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import mapbox_earcut
import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry.submesh import Submesh, check_count
from threedgen.run.arrays import Array

CONCAVE = 1e-6
"""Tolerance for reflex corners (interior angle above 180 degrees), relative to twice the area of the polygon.

A corner is reflex if the cross product of its two edges, along the polygon's normal, is below -2 * area * CONCAVE.
"""
MAX_CORNERS = 10_000
"""Largest number of corners of a polygon with several reflex corners. Such a polygon takes up to about a second."""


def triangulate(points: Array, polygons: Array) -> Array:
    """Split N polygons with C corners each into triangles of the same orientation.

    A convex polygon becomes a fan around its first corner. A polygon with a single reflex corner becomes a fan around
    this corner. Other polygons are triangulated by ear clipping (mapbox_earcut).

    Args:
        points: (V, 3) vertices.
        polygons: (N, C) vertex indices, C > 2.

    Returns:
        Triangles (N, C - 2, 3) as corner numbers from 0 to C - 1.

    Raises:
        ConfigError: if a polygon with several reflex corners has more than 10,000 corners (`MAX_CORNERS`).
    """
    count, corners = polygons.shape
    fan = np.stack(np.broadcast_arrays(0, np.arange(1, corners - 1), np.arange(2, corners)), axis=1)
    fans = np.broadcast_to(fan, (count, *fan.shape))
    if corners == 3:
        return fans
    fans = fans.copy()
    with np.errstate(all="ignore"):  # polygons with points that are not finite become fans
        outline = points[polygons] - points[polygons[:, :1]]
        normal = np.cross(outline, np.roll(outline, -1, axis=1)).sum(1)
        edges = np.roll(outline, -1, axis=1) - outline
        turns = (np.cross(np.roll(edges, 1, axis=1), edges) * normal[:, None]).sum(2)
        reflex = turns < -CONCAVE * np.square(normal).sum(1)[:, None]
    single, concave = reflex.sum(1) == 1, reflex.sum(1) > 1
    fans[single] = (fan + reflex[single].argmax(1)[:, None, None]) % corners
    if concave.any() and corners > MAX_CORNERS:
        raise ConfigError(
            f"a concave face has {corners:,} corners; the maximum is {MAX_CORNERS:,}. Triangulate the mesh"
        )
    for number in np.flatnonzero(concave):
        aside = np.cross(normal[number], np.eye(3)[np.abs(normal[number]).argmin()])
        plane = np.stack([aside, np.cross(normal[number], aside)], axis=1)
        scaled = outline[number] @ plane / np.abs(outline[number] @ plane).max(0)
        ears = mapbox_earcut.triangulate_float64(scaled, np.array([corners], np.uint32)).reshape(-1, 3)
        fans[number] = 0  # corners on a straight line give fewer triangles; the others have no area
        fans[number, : len(ears)] = ears
    return fans


def polygon_mesh(
    base: Submesh, polygons: Array | Sequence[Array], uv: Array | Sequence[Array] | None, colours: Array | None
) -> Submesh:
    """Split P polygons into triangles; return the submesh `base` with these triangles.

    Vertices whose corners have different values are copied. The copies keep their other attributes in `base`, such as
    the normal.

    - With `uv`, a vertex has one copy per distinct texture coordinate of its corners. `colours` is ignored.
    - With `colours` only, each triangle has its own three vertices, with the colour of its polygon.
    - With neither, the vertices of `base` are unchanged.

    Args:
        base: submesh (part of a mesh with one material) with vertices (V, 3) and their attributes, without triangles.
        polygons: (P, C) vertex indices, or P arrays (C,) of different lengths. Lines and points, C < 3, are ignored.
        uv: texture coordinates of the corners of each polygon, (P, 2 C) or P arrays (2 C,), in the order u, v of the
            first corner, u, v of the second, and so on; or None.
        colours: (P, 3) sRGB colours of the polygons in [0, 1], or None.
    """
    from trimesh.visual.texture import unmerge_faces

    triangles, owners, corner_uv = list[Array](), list[Array](), list[Array]()
    groups = list(_by_length(polygons))
    check_count(sum(len(equal) * (equal.shape[1] - 2) for _, equal in groups))
    for numbers, equal in groups:
        corners = triangulate(base.vertices, equal)
        triangles.append(np.take_along_axis(equal[:, None], corners, 2).reshape(-1, 3))
        owners.append(np.repeat(numbers, corners.shape[1]))
        if uv is not None:
            rows = np.stack([uv[k] for k in numbers.tolist()]).reshape(*equal.shape, 2)
            corner_uv.append(np.take_along_axis(rows[:, None], corners[..., None], 2).reshape(-1, 2))
    faces = np.concatenate([np.zeros((0, 3), np.int64), *triangles])
    if uv is not None:
        distinct, inverse = np.unique(np.concatenate(corner_uv), axis=0, return_inverse=True)
        faces, rows, uv_rows = unmerge_faces(faces, inverse.reshape(-1, 3))
        return replace(_rows(base, rows), faces=faces, uv=distinct[uv_rows])
    if colours is not None:  # so that triangles do not share vertices
        own = np.repeat(colours[np.concatenate(owners)], 3, axis=0)
        soup = np.arange(faces.size).reshape(-1, 3)
        return replace(_rows(base, faces.reshape(-1)), faces=soup, colours=own, flat=False)
    return replace(base, faces=faces)


def _by_length(polygons: Array | Sequence[Array]) -> Iterator[tuple[Array, Array]]:
    # yields for each number C of corners the numbers (N,) and vertex indices (N, C) of the polygons with C corners
    if isinstance(polygons, np.ndarray):
        polygons = polygons.astype(np.int64)
        if polygons.shape[1] > 2:
            yield np.arange(len(polygons)), polygons
        return
    lengths = np.array([len(polygon) for polygon in polygons])
    for length in np.unique(lengths[lengths > 2]):
        numbers = np.flatnonzero(lengths == length)
        yield numbers, np.stack([polygons[k] for k in numbers.tolist()]).astype(np.int64)


def _rows(submesh: Submesh, rows: Array) -> Submesh:
    arrays = (submesh.normals, submesh.uv, submesh.colours)
    normals, uv, colours = (None if array is None else array[rows] for array in arrays)
    vertices = submesh.vertices[rows]
    return replace(submesh, vertices=vertices, normals=normals, uv=uv, colours=colours, file_index=rows)
