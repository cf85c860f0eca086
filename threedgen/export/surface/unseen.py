"""Colour the texels that no image or training camera shows, by interpolating known colours over the surface."""

import math

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from threedgen.export.renders import cameras_at
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import area_vectors, pieces, weld
from threedgen.geometry.raster import Buffers, interpolate, rasterise_uv, rasterise_views, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

N_ELEVATIONS, N_AZIMUTHS, IMAGE_SIZE = 3, 12, 384  # camera elevations, cameras per elevation, image edge in pixels
MIN_COSINE, MIN_SHARE = 0.2, 0.2
"""Minimum cosine between a face's normal and the direction to the camera, and minimum fraction of cameras that see a
visible face. About 0.4 of the cameras see an unobstructed side, and 0.3 see an unobstructed top. Faces below 0.2, such
as those between legs or in folds, are hardly trained."""
MAX_KNOWN, MAX_NODES = 200_000, 30_000
"""Maximum number of known texels and of solved texels; larger sets are sampled at random. Unknown texels that are not
solved are interpolated from their four nearest neighbours."""
NORMAL_DISTANCE = 0.2  # distance of texels at one point with opposite normals, as a fraction of the longest side
NEIGHBOURS = 8
MAX_ANCHORS, ANCHOR_EPS = 20_000, 0.5
"""Maximum number of known texels in the search for the nearest known texel, and relative error of the distance."""
ANCHOR_WEIGHT = 1e-3  # relative weight of the link to the nearest known texel; keeps the system solvable


def visible_faces(mesh: TexturedMesh, elevations: tuple[float, float], radius: float = 1.0) -> Array:
    """Return the bool mask (F,) of faces that a fraction MIN_SHARE or more of the cameras around the object see.

    The cameras stand on rings around the origin. A camera sees a face only if the cosine between normal and direction
    to the camera is at least MIN_COSINE. `elevations`: lowest and highest elevation of the rings in degrees. `radius`:
    radius of the scene in world units.
    """
    elevation, azimuth = torch.meshgrid(
        torch.linspace(math.radians(elevations[0]), math.radians(elevations[1]), N_ELEVATIONS),
        torch.arange(N_AZIMUTHS) * (2 * math.pi / N_AZIMUTHS),
        indexing="ij",
    )
    cameras = cameras_at(elevation.flatten(), azimuth.flatten(), IMAGE_SIZE, radius)
    normals, middle = unit(area_vectors(mesh.vertices, mesh.faces)), mesh.vertices[mesh.faces].mean(axis=1)
    count = np.zeros(len(mesh.faces))
    for k in range(len(cameras)):  # one by one: the buffers of all would be large
        camera = cameras.select([k])
        buffers = rasterise_views(mesh.vertices, mesh.faces, camera)
        faces = np.unique(buffers.face[buffers.mask])
        toward = unit(camera.position[0].numpy() - middle[faces])
        count[faces] += (toward * normals[faces]).sum(axis=1) >= MIN_COSINE
    return count >= MIN_SHARE * len(cameras)


def fill_unseen(texture: Array, mesh: TexturedMesh, visible: Array) -> tuple[Array, float]:
    """Recolour the texels of faces that no training camera sees with colours from their surroundings.

    There the colour of the field comes from its initialisation, not from training. Takes a texture (H, W, 3) with row 0
    at v = 1, and the bool mask `visible` (F,) of the faces that cameras see. Returns the new texture and the fraction
    of covered texels on invisible faces. If no face is visible, the texture is unchanged.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1]))
    known = visible[buffers.face[buffers.mask]]
    share = float(1 - known.mean())
    if known.all() or not known.any():
        return texture, share
    points = interpolate(mesh.vertices, mesh.faces, buffers)[buffers.mask]
    normals = unit(area_vectors(mesh.vertices, mesh.faces)).astype(np.float32)[buffers.face[buffers.mask]]
    result = texture.copy()
    result[buffers.mask] = diffuse_colours(points, normals, texel_pieces(mesh, buffers), texture[buffers.mask], known)
    return fill(result, buffers.mask), share


def texel_pieces(mesh: TexturedMesh, buffers: Buffers) -> Array:
    """Return the label (N,) of the mesh's connected component for each of the N texels that a face covers, row by row.

    UV seams do not separate components. `buffers` is the result of `rasterise_uv`.
    """
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    return pieces(faces, len(vertices))[buffers.face[buffers.mask]]


def diffuse_colours(points: Array, normals: Array, piece: Array, colours: Array, known: Array) -> Array:
    """Fill in the colours of unknown texels with the solution of Laplace's equation on a nearest-neighbour graph.

    Every unknown texel gets the weighted mean of its neighbours. Different normals increase the distance of two texels.
    Colours spread only within a connected component of the mesh, unless it has no known texel.

    Args:
        points: positions (N, 3) of the texels.
        normals: unit normals (N, 3).
        piece: label (N,) of the texel's connected component.
        colours: (N, C). Those of unknown texels are not used.
        known: bool mask (N,) of the texels whose colours do not change.

    Returns:
        Colours (N, C) of all texels.
    """
    size = float(np.ptp(points, axis=0).max()) or 1.0
    features = np.concatenate([points / size, 0.5 * NORMAL_DISTANCE * normals], 1).astype(np.float32)
    sources, unknown = _subsample(np.flatnonzero(known), MAX_KNOWN), np.flatnonzero(~known)
    own = np.isin(piece[unknown], piece[sources])
    by_piece, result = np.column_stack([features, 10 * piece]), colours.copy()  # pieces are far apart
    for index, space in ((unknown[own], by_piece), (unknown[~own], features)):
        if len(index):
            result[index] = _interpolate(space[sources], colours[sources], space[index])
    return result


def _subsample(index: Array, count: int) -> Array:
    return index if len(index) <= count else np.random.default_rng(0).permutation(index)[:count]


def _interpolate(known: Array, colours: Array, targets: Array) -> Array:
    # positions are (N, D) of known texels and (M, D) of targets; colours (N, C); returns (M, C)
    nodes = _subsample(np.arange(len(targets)), MAX_NODES)
    solved = _solve(known, colours, targets[nodes])
    if len(nodes) == len(targets):
        return solved
    distance, near = cKDTree(np.concatenate([known, targets[nodes]])).query(targets, 4)
    weight = 1 / (distance**2 + 1e-12)
    values = np.concatenate([colours, solved])[near]
    return (values * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1).astype(np.float32)


def _solve(known: Array, colours: Array, nodes: Array) -> Array:
    # Laplace's equation by conjugate gradients; returns the colours (M, C) of the nodes (M, D)
    count, points = len(nodes), np.concatenate([nodes, known])
    distance, near = cKDTree(points).query(nodes, min(NEIGHBOURS + 1, len(points)))
    rows = np.repeat(np.arange(count), near.shape[1])
    weight = 1 / (distance.ravel() ** 2 + np.square(np.median(distance[:, -1])) + 1e-20)
    links = sparse.csr_matrix((weight * (near.ravel() != rows), (rows, near.ravel())), (count, len(points)))
    inner, outer = links[:, :count], links[:, count:]
    inner = inner.maximum(inner.T)
    anchors = _subsample(np.arange(len(known)), MAX_ANCHORS)
    nearest = anchors[cKDTree(known[anchors]).query(nodes, eps=ANCHOR_EPS)[1]]
    total = np.asarray(inner.sum(1)).ravel() + np.asarray(outer.sum(1)).ravel()
    anchor = ANCHOR_WEIGHT * np.maximum(total, 1e-20)
    matrix, jacobi = sparse.diags(total + anchor) - inner, sparse.diags(1 / (total + anchor))
    start = colours[nearest]
    right = outer @ colours + anchor[:, None] * start
    columns = zip(right.T, start.T, strict=True)
    solved = [cg(matrix, b, x0=x0, rtol=1e-4, maxiter=500, M=jacobi)[0] for b, x0 in columns]
    return np.clip(np.stack(solved, 1), colours.min(0), colours.max(0)).astype(np.float32)
