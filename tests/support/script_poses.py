"""Poses of MVDream's image script."""

import math

import torch
from torch import Tensor

from threedgen.geometry.poses import opengl_to_blender


def script_poses(
    n: int, elevation: float = 15, azimuth_start: float = 90, azimuth_span: float = 360, blender: bool = True
) -> Tensor:
    """(n,4,4) poses on the unit sphere in the convention of MVDream's image script, angles in degrees.

    Azimuths are start + i span / n. The script's azimuth 90 is azimuth 0 (front, +x) of threedgen.geometry.cameras.
    ``blender`` False leaves the script's own world (y up), on which the network was not trained.
    """
    azimuth = torch.deg2rad(azimuth_start + torch.arange(n, dtype=torch.float64) * azimuth_span / n)
    height = torch.full_like(azimuth, math.radians(elevation))
    flat, zero, one = height.cos(), torch.zeros_like(azimuth), torch.ones_like(azimuth)
    back = torch.stack([flat * azimuth.sin(), height.sin(), flat * azimuth.cos()], dim=1)
    right = torch.stack([azimuth.cos(), zero, -azimuth.sin()], dim=1)
    axes = torch.stack([right, torch.linalg.cross(back, right), back, back], dim=2)
    last = torch.stack([zero, zero, zero, one], dim=1)[:, None]
    c2w = torch.cat([axes, last], dim=1).float()
    return opengl_to_blender(c2w) if blender else c2w
