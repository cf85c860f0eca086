"""Rasterisation of 3D Gaussians: EWA projection (Zwicker et al. 2002), depth order, front-to-back compositing.

The conventions are gsplat's. A Gaussian contributes to the pixels in which its alpha is at least 1 / 255. Alpha is at
most 0.99. Compositing of a pixel ends before its transmittance falls to 1e-4.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.geometry.cameras import Cameras
from threedgen.representations.backends import load
from threedgen.run.memory import to_device

ALPHA_THRESHOLD, MAX_ALPHA, TRANSMITTANCE_THRESHOLD = 1 / 255, 0.99, 1e-4
NEAR = 0.01  # minimum depth of visible Gaussians, world units
CHANNELS = 5  # values per Gaussian: RGB, distance to the camera, squared distance
MARGIN = 0.3  # in half image sizes; Gaussians farther outside of the image use the linearised projection at this limit

MODULES = {
    "torch": "threedgen.representations.gaussians.torch_twin",
    "numba": "threedgen.representations.gaussians.numba_kernels",
    "gsplat": "threedgen.representations.gaussians.gsplat_backend",
}
"""Import path of each back end's module. All modules have the function `composite`."""


class ProjectedSplats(NamedTuple):
    """N Gaussians projected onto the images of V cameras.

    Attributes:
        means: (V, N, 2) centres (x, y) in pixels; the first pixel centre is (0.5, 0.5).
        conics: (V, N, 3) entries (0, 0), (0, 1) and (1, 1) of the inverse covariances, 1 / square pixel.
        opacities: (V, N) in [0, 1].
        values: (V, N, CHANNELS = 5) values to composite: RGB, distance to the camera, squared distance.
        depths: (V, N) depth along the viewing axis, world units.
        extents: (V, N, 2) half width and half height, in pixels, of the box in which alpha is at least 1 / 255;
            0 for invisible Gaussians.
    """

    means: Tensor
    conics: Tensor
    opacities: Tensor
    values: Tensor
    depths: Tensor
    extents: Tensor


def composite(splats: ProjectedSplats, height: int, width: int, backend: str = "auto") -> Tensor:
    """Composite splats (projected Gaussians) front to back into V images of height x width pixels.

    Returns (V, height, width, 6): for each pixel the sums, over the splats, of compositing weight * value for the five
    values RGB, distance to the camera and squared distance, then the opacity. `backend` is the name of the back end
    (kernel implementation); "auto" selects the fastest one.
    """
    module = load(MODULES, backend, splats.means.device, splats.means.dtype)
    image: Tensor = module.composite(splats, height, width)
    return image


def rotation_rows(quaternions: Tensor) -> list[list[Tensor]]:
    """Return the rotation matrices of N quaternions as three rows of three entries: result[i][j] is a tensor (N,).

    `quaternions` (N, 4) have the real part first and any length above 0.
    """
    w, x, y, z = normalize(quaternions, dim=-1).unbind(-1)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def project(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    values: Tensor,
    cameras: Cameras,
    dilation: float = 0.3,
) -> ProjectedSplats:
    """Project N Gaussians onto the images of V perspective cameras.

    Args:
        means: (N, 3) centres in world units.
        quaternions: (N, 4) rotations from the axes of the Gaussians to the world, real part first, of any length above
            0.
        scales: (N, 3) standard deviations along the axes of the Gaussians in world units.
        opacities: (N,) in [0, 1].
        values: (V, N, CHANNELS = 5) values to composite: RGB, distance to the camera, squared distance.
        dilation: variance in square pixels that is added to the projected Gaussians along both image axes.

    Returns:
        For each camera, in the order of the input: centres in pixels, inverse 2D covariances, opacities, values and
        depths of the N Gaussians, and half the width and height of their boxes in pixels. This size is 0 for invisible
        Gaussians: behind the camera or closer than 0.01 (NEAR), outside the image, or with an opacity up to 1/255.
    """
    # entry by entry: products of many small matrices take ten times as long
    c2w, K = (to_device(part, means.device).to(means.dtype) for part in (cameras.c2w, cameras.K))
    signs = to_device(torch.tensor([[1.0], [-1.0], [-1.0]]), means.device)  # x right, y down, z ahead
    turn = c2w[:, :3, :3].mT * signs
    W = [[turn[:, i, j, None] for j in range(3)] for i in range(3)]
    offset = [means[:, j] - c2w[:, j, 3, None] for j in range(3)]
    x, y, z = (row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in W)
    visible = z.detach() > NEAR
    inverse = 1 / torch.where(visible, z, torch.ones_like(z))
    (fx, skew, cx), (fy, cy) = (K[:, 0, k, None] for k in range(3)), (K[:, 1, k, None] for k in (1, 2))
    u, v = x * inverse, y * inverse
    pixels = torch.stack([fx * u + skew * v + cx, fy * v + cy], dim=-1)
    right, left, low, high = (
        (part + MARGIN * size / 2) / focal
        for part, size, focal in (
            (cameras.width - cx, cameras.width, fx),
            (cx, cameras.width, fx),
            (cameras.height - cy, cameras.height, fy),
            (cy, cameras.height, fy),
        )
    )
    u, v = torch.clamp(u, -left, right), torch.clamp(v, -high, low)
    scale_x, scale_y = fx * inverse, fy * inverse
    rotation, lengths = rotation_rows(quaternions), scales.unbind(-1)
    axes = [[rotation[j][k] * lengths[k] for k in range(3)] for j in range(3)]
    to_x = [scale_x * (W[0][j] - u * W[2][j]) for j in range(3)]
    to_y = [scale_y * (W[1][j] - v * W[2][j]) for j in range(3)]
    p, q = (
        [side[0] * axes[0][k] + side[1] * axes[1][k] + side[2] * axes[2][k] for k in range(3)] for side in (to_x, to_y)
    )
    xx = p[0] * p[0] + p[1] * p[1] + p[2] * p[2] + dilation
    xy = p[0] * q[0] + p[1] * q[1] + p[2] * q[2]
    yy = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + dilation
    factor = 1 / (xx * yy - xy * xy).clamp(min=1e-10)
    conics = torch.stack([yy * factor, -xy * factor, xx * factor], dim=-1)
    with torch.no_grad():
        reach = 2 * (opacities / ALPHA_THRESHOLD).clamp(min=1).log() * visible
        extents = torch.stack([(reach * xx).sqrt(), (reach * yy).sqrt()], dim=-1)
        size = to_device(torch.tensor([cameras.width, cameras.height]), means.device)
        outside = ((pixels + extents < 0) | (pixels - extents > size)).any(dim=-1)
        # an edge-on disc without dilation is a line, whose rounded covariance has no inverse
        extents = extents * (~outside & (reach > 0) & (xx * yy > xy * xy))[..., None]
    return ProjectedSplats(pixels, conics, opacities.expand(len(cameras), -1), values, z.detach(), extents)
