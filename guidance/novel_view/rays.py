"""Encoding of camera poses as images: the ray of every pixel, by sines and cosines (3DiM, section 7.1; NeRF, eq. 4).

Camera-to-world poses `c2w` have OpenGL axes (y up, the camera looks along -z). 3DiM and its data (SRN) have OpenCV axes
(x right, y down, z forward); `poses.opencv_axes` converts. Intrinsics `K` are in pixels, with rows [fx, 0, cx],
[0, fy, cy], [0, 0, 1]; the centre of the first pixel is (0.5, 0.5).
"""

from math import pi

import torch
from torch import Tensor

from threedgen.geometry.poses import world_to_camera


def relative_poses(c2w: Tensor) -> Tensor:
    """Convert camera-to-world poses (B, F, 4, 4) to poses relative to the first camera, whose pose becomes identity."""
    return world_to_camera(c2w[:, :1]) @ c2w


def posenc(x: Tensor, degrees: int) -> Tensor:
    """Encode vectors x (..., 3) as (..., 3 + 6 degrees): x, all sin(2^k x), all cos(2^k x), for k = 0 .. degrees - 1.

    Channels of one k are consecutive (x, y, z). The cosine is computed as sin(y + pi/2), as in the training of the
    weights: in float32 this differs from the cosine if 2^k x is large.
    """
    octaves = 2.0 ** torch.arange(degrees, device=x.device, dtype=x.dtype)
    phases = (x[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([x, torch.sin(torch.cat([phases, phases + pi / 2], dim=-1))], dim=-1)


def encode_rays(origins: Tensor, directions: Tensor, origin_degrees: int = 15, direction_degrees: int = 8) -> Tensor:
    """Encode ray origins and directions as (..., 6 + 6 (origin_degrees + direction_degrees)), 144 channels by default.

    Directions are (..., 3). Origins must broadcast to this shape; with sizes of 1 they are encoded once per image.
    """
    position = posenc(origins, origin_degrees).expand(*directions.shape[:-1], -1)
    return torch.cat([position, posenc(directions, direction_degrees)], dim=-1)


def noise_level_encoding(logsnr: Tensor, channels: int) -> Tensor:
    """Encode log-SNR (...) as sines and cosines (..., channels), float32, of the time u times 1000.

    u = (2 / pi) atan(exp(-logsnr / 2)) is the time of the cosine schedule, from 0 (clean) to 1 (noise). The frequencies
    are those of DDPM (Ho et al. 2020), from 1 to 1e-4.
    """
    time = 2 * torch.atan(torch.exp(-logsnr.float().clamp(-20, 20) / 2)) / pi
    half = channels // 2
    step = torch.log(torch.tensor(10000.0, dtype=torch.float64)).item() / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=logsnr.device, dtype=torch.float32) * -step)
    phases = (1000 * time)[..., None] * frequencies
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=-1)
