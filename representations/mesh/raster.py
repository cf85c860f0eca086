"""Rasterisation of a mesh, differentiable in the vertices.

`threedgen.geometry.raster` finds the face in each pixel on the CPU. On a GPU, nvdiffrast finds it (Laine et al. 2020,
"Modular Primitives for High-Performance Differentiable Rendering"), if it is installed.

The choice of a pixel's face is not differentiable, but the point on the face is: `surface_points` intersects the
pixel's ray with the plane of the face. `antialias` makes the outline of the object differentiable, as in that paper.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu

from threedgen.config.optional import installed
from threedgen.geometry import raster
from threedgen.geometry.cameras import Cameras
from threedgen.representations.losses import vertex_normals
from threedgen.run.dtypes import no_autocast
from threedgen.run.memory import to_device

NEAR = 1e-2  # depth of nvdiffrast's clipping plane in world units, as in `threedgen.geometry.raster`


class SurfacePoints(NamedTuple):
    """Surface points of a mesh in B images: one for each of the P pixels whose centre shows the mesh.

    `pixel` (P,) are flat indices into B * H * W. `position`, `normal` and `directions` (of the rays) are (P, 3) in
    world coordinates, `depth` (P,) are distances along the rays. `face` (B, H, W) is the face index of all pixels, -1
    for the background.
    """

    pixel: Tensor  # (P,) int64 flat index of the pixel in B * H * W
    position: Tensor  # (P, 3) world position
    normal: Tensor  # (P, 3) unit normal, interpolated from the vertex normals
    directions: Tensor  # (P, 3) unit direction of the pixel's ray
    depth: Tensor  # (P,) distance along the ray in world units
    face: Tensor  # (B, H, W) int64 face index of all pixels, -1 for the background


def surface_points(vertices: Tensor, faces: Tensor, cameras: Cameras) -> SurfacePoints:
    """Compute the surface points of a mesh that B perspective cameras see, one for each pixel on the mesh.

    A pixel is on the mesh if its centre shows the mesh. The result has pixel index, position, normal, ray direction and
    depth of each point. `vertices` are (N, 3) in world units, `faces` (F, 3) int64.
    """
    device = vertices.device
    if device.type == "cuda" and installed("nvdiffrast"):
        face = visible_faces_on_gpu(vertices, faces, cameras)
    else:
        points, triangles, c2w, fov = (t.detach().cpu().numpy() for t in (vertices, faces, cameras.c2w, cameras.fov))
        found = raster.rasterise(points, triangles, c2w, fov, (cameras.height, cameras.width))
        face = torch.from_numpy(found.face).long()
    index = to_device((face.reshape(-1) >= 0).nonzero()[:, 0], device)
    face = to_device(face, device)
    visible = face.reshape(-1)[index]
    origins, directions = (rays.reshape(-1, 3)[index] for rays in cameras.to(device).rays())
    corners = faces[visible].reshape(-1)
    v0, v1, v2 = vertices.index_select(0, corners).view(-1, 3, 3).unbind(1)
    n0, n1, n2 = vertex_normals(vertices, faces).index_select(0, corners).view(-1, 3, 3).unbind(1)
    # ray-triangle intersection, Moeller and Trumbore 1997
    edge1, edge2 = v1 - v0, v2 - v0
    p = torch.linalg.cross(directions, edge2)
    area = (edge1 * p).sum(-1)
    area = torch.where(area.abs() < 1e-12, torch.full_like(area, 1e-12), area)
    s = origins - v0
    q = torch.linalg.cross(s, edge1)
    u, v = ((s * p).sum(-1) / area)[:, None], ((directions * q).sum(-1) / area)[:, None]
    depth = (edge2 * q).sum(-1) / area
    normal = normalize((1 - u - v) * n0 + u * n1 + v * n2, dim=-1)
    return SurfacePoints(index, origins + depth[:, None] * directions, normal, directions, depth, face)


@torch.no_grad()
def visible_faces_on_gpu(vertices: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    """Return the index of the nearest face at each pixel centre, by nvdiffrast: (B, H, W) int64, -1 for the background.

    `vertices` are (N, 3) in world units, `faces` (F, 3) int64; the B cameras are perspective.
    """
    cameras = cameras.to(vertices.device)
    with no_autocast(vertices.device):  # half-precision products would shift vertices by pixels
        local = (vertices - cameras.position[:, None]) @ cameras.c2w[:, :3, :3]
        x, y, depth = (local * local.new_tensor([1.0, -1.0, -1.0]) @ cameras.K.mT).unbind(-1)  # pixel * depth, depth
    # clip coordinates of nvdiffrast, whose first row has y = -1; without a far plane
    clip = torch.stack([2 * x / cameras.width - depth, 2 * y / cameras.height - depth, depth - 2 * NEAR, depth], dim=-1)
    context, library = _context(vertices.device)
    size = [cameras.height, cameras.width]
    buffer, _ = library.rasterize(context, clip.float().contiguous(), faces.int(), size, grad_db=False)
    face: Tensor = buffer[..., 3].long() - 1
    return face


@cache
def _context(device: torch.device) -> tuple[Any, Any]:
    import nvdiffrast.torch as library

    return library.RasterizeCudaContext(device), library


def antialias(image: Tensor, face: Tensor, vertices: Tensor, faces: Tensor, cameras: Cameras) -> Tensor:
    """Antialias the outline of a mesh in images; return images (B, H, W, C) that are differentiable in the vertices.

    Where the outline passes between the centres of two adjacent pixels, one on the mesh and one on the background, one
    of them gets a mixed colour. Let t in [0, 1] be the position at which the outline crosses the line from the centre
    of the mesh pixel (t = 0) to the centre of the background pixel (t = 1). The two pixels meet at t = 1/2.

    - t < 1/2: the background covers a part of the mesh pixel, which becomes (1/2 + t) mesh + (1/2 - t) background.
    - t > 1/2: the mesh covers a part of the background pixel, which becomes (t - 1/2) mesh + (3/2 - t) background.

    Args:
        image: (B, H, W, C), renders without antialiasing.
        face: (B, H, W) int64 face index of each pixel, -1 for the background.
        vertices, faces: (N, 3) in world units and (F, 3) int64.
        cameras: the B cameras of the images.
    """
    pixels, depth = cameras.to(vertices.device).project(vertices)
    start, end, view = _outline(pixels, depth, faces)
    out, flat = image, image.reshape(-1, image.shape[-1])
    for axis in (0, 1):
        near, far, t = _crossings(face, start, end, view, axis)
        difference = flat.index_select(0, far) - flat.index_select(0, near)
        shift = (t - 0.5)[:, None]
        change = torch.zeros_like(flat).index_add(0, near, relu(-shift) * difference)
        out = out + change.index_add(0, far, -relu(shift) * difference).view_as(image)
    return out


def _outline(pixels: Tensor, depth: Tensor, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # start and end points (S, 2), in pixels, and camera indices (S,) of S silhouette edges
    count = pixels.shape[1]
    ends = torch.stack([faces, faces.roll(-1, 1)], dim=-1).sort(dim=-1).values.reshape(-1, 2)
    keys, edge_index = torch.unique(ends[:, 0] * count + ends[:, 1], return_inverse=True)
    a, b, c = (pixels.detach()[:, faces[:, k]] for k in range(3))
    front = ((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0]) < 0
    adjacent = torch.zeros_like(keys).index_add_(0, edge_index, torch.ones_like(edge_index))  # bincount would wait
    fronts = torch.zeros(len(pixels), len(adjacent), device=pixels.device, dtype=torch.long)
    fronts.index_add_(1, edge_index, front.long().repeat_interleave(3, dim=1))
    first, second = keys // count, keys % count
    ahead = (depth.detach()[:, first] > 1e-3) & (depth.detach()[:, second] > 1e-3)
    view, edge = (ahead & ((adjacent == 1) | ((fronts > 0) & (fronts < adjacent)))).nonzero().unbind(1)
    flat = pixels.reshape(-1, 2)
    return flat.index_select(0, view * count + first[edge]), flat.index_select(0, view * count + second[edge]), view


def _crossings(face: Tensor, start: Tensor, end: Tensor, view: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    # Crossings of silhouette edges between the centres of a mesh pixel and a background pixel: flat indices of mesh
    # pixels (Q,) and background pixels (Q,), and t (Q,) as in `antialias`. Axis 0 is for pixels in one row and steep
    # edges, axis 1 for pixels in one column and flat edges. A pair of pixels occurs once, with its outermost crossing.
    height, width = face.shape[1:]
    lines, length = (height, width) if axis == 0 else (width, height)
    other = 1 - axis
    extent = (end - start).detach().abs()
    candidates = extent[:, 1] >= extent[:, 0] if axis == 0 else extent[:, 1] < extent[:, 0]
    low = torch.minimum(start[:, other], end[:, other]).detach()
    high = torch.maximum(start[:, other], end[:, other]).detach()
    first = (low - 0.5).ceil().clamp(0, lines).long()
    count = ((high - 0.5).floor().clamp(-1, lines - 1).long() - first + 1).clamp(min=0) * candidates
    edge = torch.repeat_interleave(count)
    line = first[edge] + torch.arange(len(edge), device=edge.device) - (count.cumsum(0) - count)[edge]
    a, b = start.index_select(0, edge), end.index_select(0, edge)
    delta = b[:, other] - a[:, other]
    fraction = (line + 0.5 - a[:, other]) / torch.where(delta.abs() < 1e-9, torch.full_like(delta, 1e-9), delta)
    crossing = a[:, axis] + fraction * (b[:, axis] - a[:, axis])
    before = (crossing.detach() - 0.5).floor().long()
    inside = (before >= 0) & (before < length - 1)
    before = before.clamp(0, length - 2)
    row, column = (line, before) if axis == 0 else (before, line)
    left = (view[edge] * height + row) * width + column
    right = left + (1 if axis == 0 else width)
    covered = face.reshape(-1) >= 0
    # a mask as index, and each further `nonzero`, would wait for the GPU
    border = (inside & (covered[left] != covered[right])).nonzero()[:, 0]
    left, right, crossing, before = left[border], right[border], crossing.index_select(0, border), before[border]
    near, far = torch.where(covered[left], left, right), torch.where(covered[left], right, left)
    t = crossing - (before + 0.5)
    t = torch.where(covered[left], t, 1 - t)
    at = t.detach()
    outermost = torch.full((face.numel(),), -1.0, device=t.device).scatter_reduce(0, left, at, "amax")
    order = torch.where(at == outermost[left], torch.arange(len(t), device=t.device), len(t))
    order = torch.full((face.numel(),), len(t), device=t.device).scatter_reduce(0, left, order, "amin")
    selected = order[order < len(t)]  # the first of equal crossings
    return near[selected], far[selected], t.index_select(0, selected)
