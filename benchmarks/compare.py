"""Two meshes side by side: outlines, distances, and how they look when a lamp shines on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, cKDTree

from threedgen.export.files.read_glb import Glb, read_glb
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.topology import signed_volume
from threedgen.geometry.raster import interpolate, rasterise, unit
from threedgen.geometry.rigs import orbit
from threedgen.geometry.texture import sample

Array = NDArray[Any]
Body = tuple[Array, Array]
"""vertices (V, 3) and faces (F, 3)"""

VIEWS, PIXELS, FOV = 8, 256, 0.75
SAMPLES = 240_000
"""Points of each surface: even equal ones are some way apart, the less the more points there are."""
LAMP = unit(np.array([1.0, 0.7, 1.2]))


def _poses() -> Array:
    return orbit(VIEWS, 0.25, 3.0, FOV, PIXELS, PIXELS).c2w.numpy()


def silhouette(one: Body, other: Body) -> float:
    """The mean IoU of the outlines from eight sides, 256 pixels each."""
    a, b = (rasterise(*body, _poses(), FOV, PIXELS).mask for body in (one, other))
    return float(np.mean((a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))))


def mean_distance(one: Body, other: Body) -> float:
    """The symmetric mean distance between points of the surfaces, over the diagonal of the first."""
    a, b = _points(one, 0), _points(other, 1)
    diagonal = float(np.linalg.norm(np.ptp(one[0], axis=0)))
    there, back = cKDTree(b).query(a)[0].mean(), cKDTree(a).query(b)[0].mean()
    return float((there + back) / 2 / diagonal)


def _points(body: Body, seed: int) -> Array:
    """Points of a surface, evenly by area."""
    vertices, faces = body
    corner = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    rng = np.random.default_rng(seed)
    face = rng.choice(len(faces), SAMPLES, p=area / area.sum())
    u, v = np.sqrt(rng.random(SAMPLES)), rng.random(SAMPLES)
    weights = np.stack([1 - u, u * (1 - v), u * v], axis=1)
    return (corner[face] * weights[..., None]).sum(axis=1)


def lit_gain(glb: Glb, vertices: Array, dense: Mesh) -> float:
    """dB by which the normal map brings the lit picture of a file's mesh (its vertices where the field has them)
    nearer to that of the dense mesh, grey and matte, where both are seen."""
    seen = rasterise(dense.vertices, dense.faces, _poses(), FOV, PIXELS)
    wanted = _shade(unit(interpolate(dense.normals, dense.faces, seen)))
    low = rasterise(vertices, glb.faces, _poses(), FOV, PIXELS)
    normal = unit(interpolate(_turned(glb.attributes["NORMAL"]), glb.faces, low))
    tangent = glb.attributes["TANGENT"]
    along = interpolate(np.column_stack([_turned(tangent[:, :3]), tangent[:, 3]]), glb.faces, low)
    sign, along = np.where(along[..., 3:] < 0, -1.0, 1.0), unit(along[..., :3])
    uv = interpolate(glb.attributes["TEXCOORD_0"] * (1, -1) + (0, 1), glb.faces, low)
    bump = sample(glb.images["normalTexture"].astype(np.float32), uv) / 127.5 - 1
    mapped = bump[..., :1] * along + bump[..., 1:2] * sign * np.cross(normal, along) + bump[..., 2:] * normal
    both = seen.mask & low.mask
    plain, better = (((_shade(n) - wanted)[both] ** 2).mean() for n in (normal, unit(mapped)))
    return float(10 * np.log10(plain / better))


def _turned(vectors: Array) -> Array:
    """glTF's axes to the world's."""
    return vectors[:, [2, 0, 1]]


def _shade(normals: Array) -> Array:
    """Lambert's law and a little light from everywhere."""
    return 0.2 + 0.8 * np.clip(normals @ LAMP, 0, 1)


def hull_share(collider: bytes, points: Array) -> float:
    """Volume of the first collision shape in a file over that of the convex hull of points (N, 3)."""
    glb = read_glb(collider)
    return signed_volume(glb.attributes["POSITION"], glb.faces) / float(ConvexHull(points).volume)
