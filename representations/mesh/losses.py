"""Smoothness losses of a mesh with vertices (N, 3) in world units and int64 faces (F, 3) of vertex indices."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return unit vertex normals (N, 3) of vertices (N, 3) and faces (F, 3).

    Each is the area-weighted mean normal of the adjacent faces. It points to the side on which the corners are
    counter-clockwise. Vertices without a face have the normal 0.
    """
    a, b, c = (vertices.index_select(0, faces[:, k]) for k in range(3))
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for k in range(3):
        total = total.index_add(0, faces[:, k], normal)
    return normalize(total, dim=-1)


def normal_consistency(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the mean over all edges of 1 - cos(angle between the vertex normals at its two ends); 0 for a plane."""
    normals = vertex_normals(vertices, faces)
    a, b = (normals.index_select(0, end) for end in _edge_ends(faces))
    return (1 - (a * b).sum(-1)).mean()


def laplacian(vertices: Tensor, faces: Tensor) -> Tensor:
    """Return the mean distance between a vertex and the mean of its neighbours, in world units."""
    one, other = _edge_ends(faces)
    a, b = torch.cat([one, other]), torch.cat([other, one])
    total = torch.zeros_like(vertices).index_add(0, a, vertices.index_select(0, b))
    count = torch.bincount(a, minlength=len(vertices)).clamp(min=1)[:, None]
    return torch.linalg.vector_norm(total / count - vertices + 1e-12, dim=-1).mean()


def _edge_ends(faces: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two vertex indices (3 F,) of each edge. An edge between two faces occurs twice."""
    one, other = torch.stack([faces, faces.roll(-1, 1)]).reshape(2, -1)
    return one, other
