"""Marching tetrahedra (Doi and Koide 1991; Shen et al. 2021, "DMTet"): a surface that is differentiable in its grid.

Where the sign of the distance changes along an edge of a tetrahedron there is a vertex of the surface, at the zero of
the linear function between the two ends. So its place is a smooth function of the two distances and of the two ends.
"""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import torch
from torch import Tensor

EDGES = tuple(combinations(range(4), 2))
"""The six edges of a tetrahedron, by its corners."""


def tetrahedral_grid(resolution: int) -> tuple[Tensor, Tensor]:
    """The cube [-1, 1]^3 in resolution^3 small cubes of six tetrahedra each: points (V, 3), tetrahedra (T, 4) int64.

    Point (i, j, k) is number (i n + j) n + k with n = resolution + 1. All tetrahedra have positive volume, and those of
    neighbouring cubes meet in whole faces (Kuhn's division: a path along the axes from one corner to the opposite one).
    """
    n = resolution + 1
    axis = torch.linspace(-1, 1, n)
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    cells = torch.arange(resolution)
    first = ((cells[:, None, None] * n + cells[:, None]) * n + cells).reshape(-1)
    stride, parts = (n * n, n, 1), []
    for order in permutations(range(3)):
        path = np.cumsum([0, *(stride[k] for k in order)])
        odd = sum(a > b for a, b in combinations(order, 2)) % 2
        corners = path[[0, 1, 3, 2]] if odd else path
        parts.append(first[:, None] + torch.from_numpy(corners))
    return points, torch.cat(parts)


def _triangles() -> Tensor:
    """(16, 2, 3): for each set of corners inside, as bits, up to two triangles by numbers of `EDGES`; -1: none.

    Their corners run counter-clockwise as seen from outside, in a tetrahedron of positive volume.
    """
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    middle = np.array([(corners[a] + corners[b]) / 2 for a, b in EDGES])
    table = np.full((16, 2, 3), -1)
    for code in range(1, 15):
        inside = [k for k in range(4) if code >> k & 1]
        outside = [k for k in range(4) if not code >> k & 1]
        if len(inside) == 2:  # the four cut edges in the order of a loop
            (a, b), (c, d) = inside, outside
            loop = [(a, c), (a, d), (b, d), (b, c)]
        else:
            loop = [(i, o) for i in inside for o in outside]
        edges = [EDGES.index((min(pair), max(pair))) for pair in loop]
        away = corners[outside].mean(0) - corners[inside].mean(0)
        p, q, r = middle[edges[:3]]
        if np.cross(q - p, r - p) @ away < 0:
            edges.reverse()
        table[code, 0] = edges[:3]
        if len(edges) == 4:
            table[code, 1] = [edges[0], edges[2], edges[3]]
    return torch.from_numpy(table)


TRIANGLES = _triangles()


def marching_tetrahedra(points: Tensor, distance: Tensor, tets: Tensor) -> tuple[Tensor, Tensor]:
    """The surface {distance = 0}: vertices (N, 3), differentiable in points (V, 3) and distance (V,); faces (F, 3).

    distance is negative inside; tets (T, 4) as `tetrahedral_grid` gives them. The surface is closed where no point on
    the border of the grid is inside; faces run counter-clockwise as seen from outside.
    """
    inside = distance.detach() < 0
    code = (inside[tets] * torch.tensor([1, 2, 4, 8], device=tets.device)).sum(1)
    cut = (code > 0) & (code < 15)
    tets, code = tets[cut], code[cut]
    ends = tets[:, torch.tensor(EDGES, device=tets.device)].sort(dim=-1).values  # (M, 6, 2)
    crossed = inside[ends[..., 0]] != inside[ends[..., 1]]
    count = len(points)
    keys, number = torch.unique(ends[..., 0][crossed] * count + ends[..., 1][crossed], return_inverse=True)
    vertex = torch.full(crossed.shape, -1, device=tets.device)
    vertex[crossed] = number

    a, b = keys // count, keys % count
    # index_select, whose gradient adds up in a fixed order
    at_a, at_b = distance.index_select(0, a), distance.index_select(0, b)
    from_a, from_b = points.index_select(0, a), points.index_select(0, b)
    vertices = from_a + (at_a / (at_a - at_b))[:, None] * (from_b - from_a)

    edges = TRIANGLES.to(tets.device)[code].reshape(len(code), 6)
    faces = vertex.gather(1, edges.clamp(min=0)).reshape(-1, 3)
    return vertices, faces[edges.reshape(-1, 3)[:, 0] >= 0]
