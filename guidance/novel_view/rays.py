"""Poses as images: the ray of every pixel, encoded by sines and cosines (3DiM, section 7.1; NeRF, eq. 4).

`c2w` have OpenGL axes (y up, the camera looks along -z). 3DiM and its data (SRN) have OpenCV axes (x right, y down, z
forward); `poses.opencv_axes` converts. `K` (3, 3) are intrinsics in pixels, rows [fx, 0, cx], [0, fy, cy], [0, 0, 1],
with pixel centres at +0.5.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from threedgen.geometry.poses import world_to_camera


def relative_poses(c2w: Tensor) -> Tensor:
    """Express poses (B, F, 4, 4) in the axes of the first camera of each row, whose own becomes the identity."""
    return world_to_camera(c2w[:, :1]) @ c2w


def posenc(x: Tensor, degrees: int) -> Tensor:
    """Encode (..., 3) as (..., 3 + 6 degrees): x, sin(2^k x), cos(2^k x), k = 0 .. degrees - 1, the axes fastest.

    The cosine is computed as sin(y + pi/2), as for the trained weights: in float32 it differs where 2^k x is large.
    """
    octaves = 2.0 ** torch.arange(degrees, device=x.device, dtype=x.dtype)
    phases = (x[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([x, torch.sin(torch.cat([phases, phases + pi / 2], dim=-1))], dim=-1)


def encode_rays(origins: Tensor, directions: Tensor, origin_degrees: int = 15, direction_degrees: int = 8) -> Tensor:
    """Encode rays (..., 3) as (..., 6 + 6 (origin_degrees + direction_degrees)), 144 in the paper.

    Origins may have broadcast dimensions of size 1, to be encoded once per image.
    """
    position = posenc(origins, origin_degrees).expand(*directions.shape[:-1], -1)
    return torch.cat([position, posenc(directions, direction_degrees)], dim=-1)


def noise_level_encoding(logsnr: Tensor, channels: int) -> Tensor:
    """Encode log-SNR (...) as (..., channels) float32: sines and cosines of 1000 u, u from 0 (clean) to 1 (noise).

    u = (2 / pi) atan(exp(-logsnr / 2)) is the time of the cosine schedule; the frequencies are DDPM's (Ho et al. 2020),
    from 1 to 1e-4.
    """
    time = 2 * torch.atan(torch.exp(-logsnr.float().clamp(-20, 20) / 2)) / pi
    half = channels // 2
    step = torch.log(torch.tensor(10000.0, dtype=torch.float64)).item() / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=logsnr.device, dtype=torch.float32) * -step)
    phases = (1000 * time)[..., None] * frequencies
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=-1)
