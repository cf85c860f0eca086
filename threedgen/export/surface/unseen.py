"""Colour the texels that no image or training camera shows, by spreading known colours over the surface."""

import math
import warnings

import numpy as np
import torch
from numba import njit, prange
from scipy import ndimage, sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from skimage.color import rgb2lab

from threedgen.export.renders import cameras_at
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.shape.topology import pieces, weld
from threedgen.geometry.raster import Buffers, interpolate, rasterise_uv, rasterise_views, unit
from threedgen.geometry.texture import fill
from threedgen.run.arrays import Array

N_ELEVATIONS, N_AZIMUTHS, IMAGE_SIZE = 3, 12, 384  # camera elevations, cameras per elevation, image edge in pixels
MIN_COSINE, MIN_SHARE = 0.2, 0.2
"""A camera sees a texel only if the cosine between texel normal and direction to the camera is at least MIN_COSINE. A
texel counts as visible if at least the fraction MIN_SHARE of all cameras sees it.

About 0.4 of the cameras see an unobstructed side, and 0.3 see an unobstructed top. Texels below 0.2, such as those
between legs or in folds, are hardly trained.
"""
DEPTH_ERROR = 0.005  # maximum depth difference between a texel and the visible surface, in scene radii
MAX_KNOWN, MAX_NODES = 40_000, 10_000
"""Maximum number of known texels that are used, and of unknown texels for which Laplace's equation is solved.

If there are more, a random subset is used. The other unknown texels are interpolated from their four nearest
neighbours.
"""
NORMAL_SCALE = 0.05  # two texels at one point with opposite normals count as 2 * NORMAL_SCALE object sizes apart
CREASE = 1.0  # decrease of the logarithm of a link's weight per concave curvature, for objects of size 1
NEIGHBOURS = 8
MAX_COLOURS, MAX_CLUSTERED = 16, 4000  # maximum number of colour groups, and of texels that determine them
COLOUR_GAP = 20.0  # smallest difference of two colour groups in Lab
SHARPNESS, AREA_POWER = 6, 2  # exponents of a group's probability and area in its weight
ANCHOR_WEIGHT, ANCHOR_EPS = 1e-3, 0.5
"""Weight of an additional link from each unknown texel to its nearest known texel, and tolerance of the search for it.

The weight is relative to the sum of the texel's other links. The link keeps Laplace's equation solvable. The distance
of the texel that the search finds may exceed the smallest distance by the fraction ANCHOR_EPS.
"""


def visible_texels(
    mesh: TexturedMesh, points: Array, normals: Array, elevations: tuple[float, float], radius: float = 1.0
) -> Array:
    """Return for each texel the fraction (N,) of the cameras around the object that see it.

    The cameras look at the origin from 3 horizontal rings of 12 cameras (z is up). A camera sees a texel only if the
    mesh does not hide the texel, and if the cosine between the texel's normal and the direction to the camera is at
    least 0.2 (MIN_COSINE).

    Args:
        mesh: mesh that can hide texels.
        points: positions (N, 3) of the texels on the mesh, in world units.
        normals: smooth unit normals (N, 3) of the texels.
        elevations: elevation of the lowest and the highest ring in degrees.
        radius: radius of the scene sphere in world units; the cameras are 3 radii away from the origin.
    """
    elevation, azimuth = torch.meshgrid(
        torch.linspace(math.radians(elevations[0]), math.radians(elevations[1]), N_ELEVATIONS),
        torch.arange(N_AZIMUTHS) * (2 * math.pi / N_AZIMUTHS),
        indexing="ij",
    )
    cameras = cameras_at(elevation.flatten(), azimuth.flatten(), IMAGE_SIZE, radius)
    count = np.zeros(len(points), np.int32)
    for k in range(len(cameras)):  # one by one: the buffers of all would be large
        camera = cameras.select([k])
        depth = rasterise_views(mesh.vertices, mesh.faces, camera).z[0]
        farthest = ndimage.maximum_filter(np.where(np.isfinite(depth), depth, 0), 3)  # slopes do not hide themselves
        focal = float(camera.projection.K[0, 0, 0])
        _count_visible(points, normals, camera.c2w[0].numpy(), focal, farthest, DEPTH_ERROR * radius, count)
    return count / len(cameras)


@njit(cache=True, parallel=True)
def _count_visible(
    points: Array, normals: Array, c2w: Array, focal: float, depth: Array, error: float, count: Array
) -> None:
    # add 1 to `count` (N,) for each point that a camera sees; `depth` (H, W) is its depth map
    for n in prange(len(points)):
        dx, dy, dz = points[n, 0] - c2w[0, 3], points[n, 1] - c2w[1, 3], points[n, 2] - c2w[2, 3]
        right = c2w[0, 0] * dx + c2w[1, 0] * dy + c2w[2, 0] * dz
        up = c2w[0, 1] * dx + c2w[1, 1] * dy + c2w[2, 1] * dz
        ahead = -(c2w[0, 2] * dx + c2w[1, 2] * dy + c2w[2, 2] * dz)
        column, row = int(depth.shape[1] / 2 + focal * right / ahead), int(depth.shape[0] / 2 - focal * up / ahead)
        column, row = min(max(column, 0), depth.shape[1] - 1), min(max(row, 0), depth.shape[0] - 1)
        facing = -(normals[n, 0] * dx + normals[n, 1] * dy + normals[n, 2] * dz)
        towards = facing >= MIN_COSINE * math.sqrt(dx * dx + dy * dy + dz * dz)
        if towards and ahead <= depth[row, column] + error:
            count[n] += 1


def fill_unseen(
    texture: Array, mesh: TexturedMesh, elevations: tuple[float, float], radius: float = 1.0
) -> tuple[Array, float]:
    """Recolour the texels that few training cameras see, with colours from visible texels nearby on the surface.

    Training hardly changes the colours of such texels; they are left from the initialisation of the field (trained 3D
    representation). The training cameras are approximated by the cameras of `visible_texels`: 3 horizontal rings of 12
    cameras at the training elevations. A texel is visible if at least 20 % (`MIN_SHARE`) of these cameras see it. The
    others are recoloured by `diffuse_colours`. Texels that no face covers get the colour of the nearest covered one. If
    no covered texel is visible, or all are, the texture is unchanged.

    Args:
        texture: (H, W, 3) sRGB in [0, 1], with row 0 at v = 1.
        mesh: mesh with UVs.
        elevations: lowest and highest elevation of the training cameras in degrees.
        radius: radius of the scene sphere in world units; the cameras are 3 radii away from the origin.

    Returns:
        The new texture, and the fraction of texels that are not visible, among those that a face covers.
    """
    buffers = rasterise_uv(mesh.uv, mesh.faces, (texture.shape[0], texture.shape[1]))
    points, normals = (interpolate(part, mesh.faces, buffers)[buffers.mask] for part in (mesh.vertices, mesh.normals))
    normals = unit(normals)
    known = visible_texels(mesh, points, normals, elevations, radius) >= MIN_SHARE
    share = float(1 - known.mean())
    if known.all() or not known.any():
        return texture, share
    result = texture.copy()
    result[buffers.mask] = diffuse_colours(points, normals, texel_pieces(mesh, buffers), texture[buffers.mask], known)
    return fill(result, buffers.mask), share


def texel_pieces(mesh: TexturedMesh, buffers: Buffers) -> Array:
    """Return the label (N,) of the mesh's connected component for each of the N texels that a face covers, row by row.

    The first row is at v = 1. Labels are 0 to C - 1 for C components. UV seams do not separate components. `buffers` is
    the result of `rasterise_uv`.
    """
    vertices, faces, _ = weld(mesh.vertices, mesh.faces)
    return pieces(faces, len(vertices))[buffers.face[buffers.mask]]


def diffuse_colours(points: Array, normals: Array, piece: Array, colours: Array, known: Array) -> Array:
    """Fill in the colours of unknown texels with random-walker segmentation (Grady 2006) on a nearest-neighbour graph.

    1. The known texels are divided into groups of similar colours.
    2. For each group, Laplace's equation on the graph gives the probability that a random walk from an unknown texel
       ends at a known texel of this group. Walks rarely cross concave edges, where parts usually meet (Lai et al.
       2008). They stay within a connected component of the mesh; only from a component without known texels, they go to
       others.
    3. An unknown texel gets the weighted mean of the groups' mean colours. The weights are proportional to
       probability^6 * area^2 (`SHARPNESS`, `AREA_POWER`), where the area is the number of known texels of the group.
    4. The detail of the known texels, their colour minus the mean colour of their group, is interpolated to the unknown
       texels, also by Laplace's equation, and added to their colours.

    Args:
        points: positions (N, 3) of the texels.
        normals: smooth unit normals (N, 3).
        piece: label (N,) of the connected component of the mesh that has the texel.
        colours: sRGB (N, 3) in [0, 1]. Those of unknown texels are not used.
        known: bool mask (N,) of the texels whose colours do not change.

    Returns:
        Colours (N, 3) of all texels.
    """
    size = float(np.ptp(points, axis=0).max()) or 1.0
    features = np.concatenate([points / size, NORMAL_SCALE * normals], 1).astype(np.float32)
    sources, unknown = _subsample(np.flatnonzero(known), MAX_KNOWN), np.flatnonzero(~known)
    group = _colour_groups(colours[sources])
    member = np.eye(int(group.max()) + 1, dtype=np.float32)[group]  # (sources, groups)
    means = member.T @ colours[sources] / np.maximum(member.sum(0), 1)[:, None]
    values = np.concatenate([member, colours[sources] - member @ means], 1)
    own = np.isin(piece[unknown], piece[sources])
    by_piece, result = np.column_stack([features, 10 * piece]), colours.copy()  # pieces are far apart
    for index, space in ((unknown[own], by_piece), (unknown[~own], features)):
        if len(index):
            solved = _interpolate(space[sources], values, space[index])
            weight = np.maximum(solved[:, : len(means)], 0) ** SHARPNESS * member.mean(0) ** AREA_POWER
            weight /= np.maximum(weight.sum(1, keepdims=True), 1e-30)
            result[index] = np.clip(weight @ means + solved[:, len(means) :], 0, 1)
    return result


def _colour_groups(colours: Array) -> Array:
    # labels (N,) below MAX_COLOURS of sRGB colours (N, 3); centres closer than COLOUR_GAP are one group
    lab = rgb2lab(colours).astype(np.float64)
    centres = colour_centres(lab)
    if len(centres) == 1:
        return np.zeros(len(lab), np.intp)
    group = fcluster(linkage(centres, "single"), COLOUR_GAP, "distance") - 1
    return group[cKDTree(centres).query(lab)[1]]


def colour_centres(lab: Array) -> Array:
    """Return at most 16 (MAX_COLOURS) cluster centres (K, 3) of Lab colours (N, 3).

    K-means starts with colours that are far from each other.
    """
    some = lab[_subsample(np.arange(len(lab)), MAX_CLUSTERED)]
    centres = some[:1]
    while len(centres) < MAX_COLOURS:  # start with the farthest colours
        distance = cdist(some, centres).min(1)
        if distance.max() < COLOUR_GAP / 2:
            break
        centres = np.concatenate([centres, some[distance.argmax()][None]])
    if len(centres) == 1:
        return centres
    with warnings.catch_warnings():  # a cluster that becomes empty keeps its centre
        warnings.simplefilter("ignore")
        return np.asarray(kmeans2(some, centres, minit="matrix")[0])


def _subsample(index: Array, count: int) -> Array:
    return index if len(index) <= count else np.random.default_rng(0).permutation(index)[:count]


def _interpolate(known: Array, values: Array, targets: Array) -> Array:
    # features are (N, D) of known texels and (M, D) of targets; values (N, C); returns (M, C)
    nodes = _subsample(np.arange(len(targets)), MAX_NODES)
    solved = _solve(known, values, targets[nodes])
    if len(nodes) == len(targets):
        return solved
    distance, near = cKDTree(np.concatenate([known, targets[nodes]])).query(targets, 4)
    weight = 1 / (distance**2 + 1e-12)
    found = np.concatenate([values, solved])[near]
    return (found * (weight / weight.sum(1, keepdims=True))[..., None]).sum(1).astype(np.float32)


def _solve(known: Array, values: Array, nodes: Array) -> Array:
    # Laplace's equation by conjugate gradients; returns the values (M, C) of the nodes (M, D)
    count, points = len(nodes), np.concatenate([nodes, known])
    distance, near = cKDTree(points).query(nodes, min(NEIGHBOURS + 1, len(points)))
    rows, near = np.repeat(np.arange(count), near.shape[1]), near.ravel()
    step = points[near, :6] - nodes[rows, :6]
    bend = (step[:, :3] * step[:, 3:]).sum(1) / (NORMAL_SCALE * np.maximum((step[:, :3] ** 2).sum(1), 1e-12))
    weight = np.exp(CREASE * np.minimum(bend, 0)) / (distance.ravel() ** 2 + np.median(distance[:, -1]) ** 2 + 1e-20)
    links = sparse.csr_matrix((weight * (near != rows), (rows, near)), (count, len(points)))
    inner, outer = links[:, :count], links[:, count:]
    inner = inner.maximum(inner.T)
    nearest = cKDTree(known).query(nodes, eps=ANCHOR_EPS)[1]
    total = np.asarray(inner.sum(1)).ravel() + np.asarray(outer.sum(1)).ravel()
    anchor = ANCHOR_WEIGHT * np.maximum(total, 1e-20)
    matrix, jacobi = sparse.diags(total + anchor) - inner, sparse.diags(1 / (total + anchor))
    start = values[nearest]
    right = outer @ values + anchor[:, None] * start
    columns = zip(right.T, start.T, strict=True)
    solved = [cg(matrix, b, x0=x0, rtol=1e-4, maxiter=500, M=jacobi)[0] for b, x0 in columns]
    return np.stack(solved, 1).astype(np.float32)
