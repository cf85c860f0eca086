"""A mesh seen by cameras, differentiable in its vertices: from the faces that `threedgen.geometry.raster` finds.

Which face a pixel sees is not differentiable. Where on the face, is: the ray through the pixel meets the plane of the
face, and all that is interpolated follows (`surface_points`). The outline moves by `antialias`: pixels on either side
of it are blended by where between their centres it runs (Laine et al. 2020, "Modular Primitives").
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from threedgen.geometry import raster
from threedgen.geometry.cameras import Cameras

from .losses import vertex_normals


class SurfacePoints(NamedTuple):
    """What P pixels see: number (P,) of the pixel among B H W; position, normal, directions (P, 3); depth (P,) along
    the ray; face (B, H, W) int64, -1 for the background.
    """

    number: Tensor
    position: Tensor
    normal: Tensor
    directions: Tensor
    depth: Tensor
    face: Tensor


def surface_points(vertices: Tensor, faces: Tensor, cameras: Cameras) -> SurfacePoints:
    """The points of the mesh, vertices (N, 3) and faces (F, 3), behind the centres of the pixels."""
    size, device = (cameras.height, cameras.width), vertices.device
    shape = vertices.detach().cpu().numpy(), faces.cpu().numpy(), cameras.c2w.cpu().numpy(), cameras.fov.cpu().numpy()
    face = torch.from_numpy(raster.rasterise(*shape, size).face).long().to(device)
    index = (face.reshape(-1) >= 0).nonzero()[:, 0]
    seen = face.reshape(-1)[index]
    origins, directions = (rays.reshape(-1, 3).to(device)[index] for rays in cameras.rays())
    corners = faces[seen].reshape(-1)
    v0, v1, v2 = vertices.index_select(0, corners).view(-1, 3, 3).unbind(1)
    n0, n1, n2 = vertex_normals(vertices, faces).index_select(0, corners).view(-1, 3, 3).unbind(1)
    # Moeller and Trumbore 1997
    one, two = v1 - v0, v2 - v0
    p = torch.linalg.cross(directions, two)
    area = (one * p).sum(-1)
    area = torch.where(area.abs() < 1e-12, torch.full_like(area, 1e-12), area)
    s = origins - v0
    q = torch.linalg.cross(s, one)
    u, v = ((s * p).sum(-1) / area)[:, None], ((directions * q).sum(-1) / area)[:, None]
    depth = (two * q).sum(-1) / area
    normal = normalize((1 - u - v) * n0 + u * n1 + v * n2, dim=-1)
    return SurfacePoints(index, origins + depth[:, None] * directions, normal, directions, depth, face)


def antialias(image: Tensor, face: Tensor, vertices: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    """image (B, H, W, C) with its outline against the background blended, so that it follows the vertices.

    For each pixel of the mesh beside one of the background: t in [0, 1] is where, between the two centres, the outline
    runs. Up to one half the pixel takes a share of the background, beyond it the other takes one of the mesh. A share
    of one half changes nothing.
    """
    pixels, depth = cameras.to(vertices.device).project(vertices)
    start, end, view = _outline(pixels, depth, faces)
    out, flat = image, image.reshape(-1, image.shape[-1])
    for along in (0, 1):
        near, far, t = _crossings(face, start, end, view, along)
        difference = flat.index_select(0, far) - flat.index_select(0, near)
        shift = (t - 0.5)[:, None]
        change = torch.zeros_like(flat).index_add(0, near, relu(-shift) * difference)
        out = out + change.index_add(0, far, -relu(shift) * difference).view_as(image)
    return out


def _outline(pixels: Tensor, depth: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Edges on the outline, one side of which is turned away: start and end (S, 2) in pixels, and their view (S,)."""
    count = pixels.shape[1]
    ends = torch.stack([faces, faces.roll(-1, 1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    keys, number = torch.unique(ends[:, 0] * count + ends[:, 1], return_inverse=True)
    a, b, c = (pixels.detach()[:, faces[:, k]] for k in range(3))
    front = ((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]) < 0
    users = torch.bincount(number)
    fronts = torch.zeros(len(pixels), len(users), device=pixels.device, dtype=torch.long)
    fronts.index_add_(1, number, front.long().repeat_interleave(3, dim=1))
    first, second = keys // count, keys % count
    ahead = (depth.detach()[:, first] > 1e-3) & (depth.detach()[:, second] > 1e-3)
    view, edge = (ahead & ((users == 1) | ((fronts > 0) & (fronts < users)))).nonzero().unbind(1)
    flat = pixels.reshape(-1, 2)
    return flat.index_select(0, view * count + first[edge]), flat.index_select(0, view * count + second[edge]), view


def _crossings(face: Tensor, start: Tensor, end: Tensor, view: Tensor, along: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where edges cross the lines through the centres of the pixels, in x (along 0) or y (along 1), at the background.

    Steep edges in x and flat ones in y, so that none counts twice. Pixels of the mesh, their neighbours of the
    background, by number in B H W, and t (Q,); each pair once, with the outermost edge that crosses in between.
    """
    height, width = face.shape[1:]
    lines, length = (height, width) if along == 0 else (width, height)
    across = 1 - along
    run = (end - start).detach().abs()
    mine = run[:, 1] >= run[:, 0] if along == 0 else run[:, 1] < run[:, 0]
    index = mine.nonzero()[:, 0]
    start, end, view = start.index_select(0, index), end.index_select(0, index), view[index]
    low = torch.minimum(start[:, across], end[:, across]).detach()
    high = torch.maximum(start[:, across], end[:, across]).detach()
    first = (low - 0.5).ceil().clamp(0, lines).long()
    many = ((high - 0.5).floor().clamp(-1, lines - 1).long() - first + 1).clamp(min=0)
    edge = torch.repeat_interleave(many)
    line = first[edge] + torch.arange(len(edge), device=edge.device) - (many.cumsum(0) - many)[edge]
    a, b = start.index_select(0, edge), end.index_select(0, edge)
    rise = b[:, across] - a[:, across]
    share = (line + 0.5 - a[:, across]) / torch.where(rise.abs() < 1e-9, torch.full_like(rise, 1e-9), rise)
    place = a[:, along] + share * (b[:, along] - a[:, along])
    before = (place.detach() - 0.5).floor().long()
    inside = (before >= 0) & (before < length - 1)
    edge, line, place, before = edge[inside], line[inside], place[inside], before[inside]

    row, column = (line, before) if along == 0 else (before, line)
    left = (view[edge] * height + row) * width + column
    right = left + (1 if along == 0 else width)
    covered = face.reshape(-1) >= 0
    border = covered[left] != covered[right]
    left, right, place, before = left[border], right[border], place[border], before[border]
    near, far = torch.where(covered[left], left, right), torch.where(covered[left], right, left)
    t = place - (before + 0.5)
    t = torch.where(covered[left], t, 1 - t)

    _, pair = torch.unique(left, return_inverse=True)
    outermost = torch.full((len(t),), -1.0, device=t.device).scatter_reduce(0, pair, t.detach(), "amax")
    chosen = (t.detach() == outermost[pair]).nonzero()[:, 0]
    order = torch.full((len(t),), len(t), device=t.device).scatter_reduce(0, pair[chosen], chosen, "amin")
    chosen = order[order < len(t)]  # of equal ones the first
    return near[chosen], far[chosen], t.index_select(0, chosen)
