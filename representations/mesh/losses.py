"""What keeps an optimised mesh smooth: pure functions of its vertices (N, 3) and faces (F, 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals (N, 3): the mean of the faces around, weighted by area; 0 where there is no face."""
    a, b, c = (vertices.index_select(0, faces[:, k]) for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total = total.index_add(0, faces[:, k], normal)
    return normalize(total, dim=-1)


def normal_consistency(vertices: Tensor, faces: Tensor) -> Tensor:
    """1 - cosine between the normals at the two ends of an edge, mean over the edges; 0 for a plane."""
    normals = vertex_normals(vertices, faces)
    a, b = (normals.index_select(0, end) for end in _ends(faces))
    return (1 - (a * b).sum(-1)).mean()


def laplacian(vertices: Tensor, faces: Tensor) -> Tensor:
    """Distance of a vertex to the mean of its neighbours, mean over the vertices, in world units."""
    one, other = _ends(faces)
    a, b = torch.cat([one, other]), torch.cat([other, one])
    total = torch.zeros_like(vertices).index_add(0, a, vertices.index_select(0, b))
    count = torch.bincount(a, minlength=len(vertices)).clamp(min=1)[:, None]
    return torch.linalg.vector_norm(total / count - vertices + 1e-12, dim=-1).mean()


def _ends(faces: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends (E,) of each edge, once for each face that has it."""
    one, other = torch.stack([faces, faces.roll(-1, 1)]).reshape(2, -1)
    return one, other
