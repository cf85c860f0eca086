"""Differentiable marching tetrahedra (Doi and Koide 1991; Shen et al. 2021, "DMTet").

The signed distance is interpolated linearly along each edge of a tetrahedron. A zero of it becomes a vertex, which is
differentiable in the distances and positions of both ends.
"""

from itertools import combinations, permutations

import numpy as np
import torch
from torch import Tensor

EDGES = tuple(combinations(range(4), 2))  # the six edges of a tetrahedron, as pairs of corner numbers 0 to 3
TRIANGLES = (
    (),
    (0, 1, 2),
    (4, 3, 0),
    (1, 2, 4, 1, 4, 3),
    (1, 3, 5),
    (3, 5, 2, 3, 2, 0),
    (0, 4, 5, 0, 5, 1),
    (2, 4, 5),
    (5, 4, 2),
    (0, 1, 5, 0, 5, 4),
    (2, 5, 3, 2, 3, 0),
    (5, 3, 1),
    (1, 3, 4, 1, 4, 2),
    (0, 3, 4),
    (2, 1, 0),
    (),
)
"""Up to two triangles for each bit mask of inside corners (bit k: corner k), as indices into `EDGES`.

In a tetrahedron of positive volume they are counter-clockwise, seen from outside.
"""


def tetrahedral_grid(resolution: int) -> tuple[Tensor, Tensor]:
    """Divide the cube [-1, 1]^3 into resolution^3 cells of six tetrahedra each (Kuhn's division).

    Returns:
        Points (V, 3) float32, where point (i, j, k) has index (i n + j) n + k with n = resolution + 1, and tetrahedra
            of positive volume, (T, 4) int64 point indices. Neighbouring tetrahedra share whole triangles.
    """
    n = resolution + 1
    axis = torch.linspace(-1, 1, n)
    points = torch.cartesian_prod(axis, axis, axis)
    cells = torch.arange(resolution)
    first = ((cells[:, None, None] * n + cells[:, None]) * n + cells).reshape(-1)
    stride, parts = (n * n, n, 1), []
    for order in permutations(range(3)):
        path = np.cumsum([0, *(stride[k] for k in order)])
        odd = sum(a > b for a, b in combinations(order, 2)) % 2
        corners = path[[0, 1, 3, 2]] if odd else path
        parts.append(first[:, None] + torch.from_numpy(corners))
    return points, torch.cat(parts)


def marching_tetrahedra(points: Tensor, distance: Tensor, tets: Tensor) -> tuple[Tensor, Tensor]:
    """Extract the surface distance = 0 of a tetrahedral grid.

    Args:
        points: (V, 3) grid points.
        distance: (V,) signed distances, negative inside.
        tets: (T, 4) int64 point indices of tetrahedra with positive volume.

    Returns:
        Vertices (N, 3), differentiable in points and distance, and faces (F, 3) int64, counter-clockwise seen from
            outside. The surface is closed if no border point of the grid is inside.
    """
    inside = distance.detach() < 0
    code = (inside[tets] * torch.tensor([1, 2, 4, 8], device=tets.device)).sum(1)
    cut = (code > 0) & (code < 15)
    tets, code = tets[cut], code[cut]
    ends = tets[:, torch.tensor(EDGES, device=tets.device)].sort(dim=-1).values  # (M, 6, 2)
    crossed = inside[ends[..., 0]] != inside[ends[..., 1]]
    count = len(points)
    keys, vertex_index = torch.unique(ends[..., 0][crossed] * count + ends[..., 1][crossed], return_inverse=True)
    vertex = torch.full(crossed.shape, -1, device=tets.device)
    vertex[crossed] = vertex_index

    a, b = keys // count, keys % count
    # the gradient of index_select adds up in a fixed order
    at_a, at_b = distance.index_select(0, a), distance.index_select(0, b)
    from_a, from_b = points.index_select(0, a), points.index_select(0, b)
    vertices = from_a + (at_a / (at_a - at_b))[:, None] * (from_b - from_a)

    table = torch.tensor([edges + (-1,) * (6 - len(edges)) for edges in TRIANGLES], device=tets.device)
    edges = table[code]
    faces = vertex.gather(1, edges.clamp(min=0)).reshape(-1, 3)
    return vertices, faces[edges.reshape(-1, 3)[:, 0] >= 0]
