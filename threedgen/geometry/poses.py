"""Camera matrices from places and angles, and back to clip space: pure functions of tensors.

The conventions are those of ``threedgen.geometry.cameras``: z up, OpenGL axes, radians.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def unit_vector(elevation: Tensor, azimuth: Tensor) -> Tensor:
    """(cosE cosA, cosE sinA, sinE), (...,3)."""
    flat = torch.cos(elevation)
    return torch.stack([flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)], dim=-1)


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi)."""
    return torch.remainder(angle + pi, 2 * pi) - pi


def opencv_axes(c2w: Tensor) -> Tensor:
    """Poses (..., 4, 4) or (..., 3, 3) with OpenCV axes (x right, y down, z forward) for OpenGL ones, and back."""
    return c2w * c2w.new_tensor([1.0, -1.0, -1.0, 1.0])[: c2w.shape[-1]]


def opengl_to_blender(c2w: Tensor) -> Tensor:
    """Poses (B,4,4) of a world with y up -> the same with z up: (x, y, z) becomes (x, -z, y)."""
    turn = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    return turn.to(c2w) @ c2w


def pixel_rays(c2w: Tensor, K: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Origins (..., 1, 1, 3) and unit directions (..., H, W, 3) through the pixel centres, float32.

    ``c2w`` (..., 4, 4), OpenGL axes; ``K`` (..., 3, 3), intrinsics in pixels, may broadcast. Raises ValueError if a K
    has no inverse.
    """
    c2w, K = c2w.float(), K.float()
    with torch.autocast(c2w.device.type, enabled=False):  # products in bfloat16 would move the rays by pixels
        x = torch.arange(width, device=c2w.device) + 0.5
        y = torch.arange(height, device=c2w.device) + 0.5
        columns, rows = torch.meshgrid(x, y, indexing="xy")
        pixels = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)
        inverse, failed = torch.linalg.inv_ex(K)
        if failed.any():
            which = int(failed.flatten().argmax())
            raise ValueError(f"the intrinsics K number {which} have no inverse: is its focal length 0?")
        plane = pixels.reshape(-1, 3) @ inverse.mT
        rotation = opencv_axes(c2w[..., :3, :3])
        directions = normalize(plane @ rotation.mT, dim=-1).unflatten(-2, (height, width))
        return c2w[..., None, None, :3, 3], directions


def orbit_c2w(elevation: Tensor, azimuth: Tensor, distance: Tensor) -> Tensor:
    """Cameras (B,4,4) on a sphere that look at its centre, the origin; angles and ``distance`` (B,).

    Written out rather than by ``look_at``, so that it also holds straight above and below.
    """
    back = unit_vector(elevation, azimuth)
    right = unit_vector(torch.zeros_like(elevation), azimuth + pi / 2)
    up = unit_vector(elevation + pi / 2, azimuth)
    return _assemble(right, up, back, back * distance[..., None])


def look_at(position: Tensor, center: Tensor, up: Tensor) -> Tensor:
    """Cameras (B,4,4) at ``position`` that look at ``center``, with ``up`` upwards in the picture; all (B,3).

    If the view is along ``up``, another axis takes its place, so that the matrix stays a rotation.
    """
    forward = normalize(center - position, dim=-1)
    right = torch.linalg.cross(forward, up, dim=-1)
    lost = right.norm(dim=-1, keepdim=True) < 1e-6 * up.norm(dim=-1, keepdim=True)
    farthest_axis = one_hot(forward.abs().argmin(dim=-1), 3).to(forward)
    right = torch.where(lost, torch.linalg.cross(forward, farthest_axis, dim=-1), right)
    right = normalize(right, dim=-1)
    true_up = normalize(torch.linalg.cross(right, forward, dim=-1), dim=-1)
    return _assemble(right, true_up, -forward, position)


def _assemble(right: Tensor, up: Tensor, back: Tensor, position: Tensor) -> Tensor:
    top = torch.stack([right, up, back, position], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=top.dtype, device=top.device)
    return torch.cat([top, bottom.expand(*top.shape[:-2], 1, 4)], dim=-2)


def world_to_camera(c2w: Tensor) -> Tensor:
    """Inverse of rigid poses (...,4,4)."""
    rotation = c2w[..., :3, :3].mT
    top = torch.cat([rotation, -rotation @ c2w[..., :3, 3:]], dim=-1)
    return torch.cat([top, c2w[..., 3:, :]], dim=-2)


def projection_matrix(fov: Tensor, aspect: float, near: float = 0.1, far: float = 1000.0) -> Tensor:
    """OpenGL perspective (B,4,4) with the y row negated: row 0 of the picture is at the top (nvdiffrast).

    ``aspect`` is width / height.
    """
    cot = 1 / torch.tan(0.5 * fov)
    matrix = torch.zeros(len(fov), 4, 4, dtype=fov.dtype, device=fov.device)
    matrix[:, 0, 0] = cot / aspect
    matrix[:, 1, 1] = -cot
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2 * far * near / (far - near)
    matrix[:, 3, 2] = -1
    return matrix
