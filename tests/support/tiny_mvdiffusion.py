"""MVDiffusion small enough for tests: a tiny base, geometries, and new blocks that are not zero."""

from __future__ import annotations

from math import pi
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from threedgen.geometry import panorama
from threedgen.guidance.mvdiffusion.geometry import DepthGeometry, PanoramaGeometry

TEXT = 16
Network = TypeVar("Network", bound=nn.Module)


def tiny_base(**config: Any) -> UNet2DConditionModel:
    """Two levels of 32 channels, attention on the upper one."""
    torch.manual_seed(1)
    default = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**(default | config)).eval()


def inputs(views: int, channels: int = 4, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, time steps, text."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(views, channels, *size, generator=g)
    return x, torch.full((views,), 300), torch.randn(views, 5, TEXT, generator=g)


def ring(views: int = 8, size: int = 64, first_yaw: float = 0.0, **options: Any) -> PanoramaGeometry:
    K = panorama.intrinsics(pi / 2, size, size)
    return PanoramaGeometry(K, panorama.ring(views, first_yaw), (size, size), **options)


def wall(views: int = 3, height: int = 32, width: int = 48, step: float = 0.3) -> DepthGeometry:
    """Cameras that walk along a wall, two metres before it."""
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 3] = step * torch.arange(views)
    return DepthGeometry(torch.full((views, height, width), 2.0), c2w, panorama.intrinsics(pi / 2, height, width))


def awaken(network: Network) -> Network:
    """Gives what is zero at the beginning small random weights, but for the base."""
    g = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if not parameter.any() and not name.startswith("unet."):
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    return network
