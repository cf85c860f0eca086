"""Small MVDiffusion models, files of their weights, geometries, and new blocks that are not zero."""

import functools
from math import pi
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tests.support.kept_folder import kept_folder
from tests.support.tiny_prior import NO_CAMERA, tiny_text_encoder, tiny_unet, tiny_vae, word_tokenizer
from threedgen.geometry import panorama
from threedgen.guidance.losses.lora import LoRA
from threedgen.guidance.priors.mvdiffusion.geometry import DepthGeometry, PanoramaGeometry
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import difference, save_blocks, widened

TEXT = 16
Network = TypeVar("Network", bound=nn.Module)


def tiny_base(**config: Any) -> UNet2DConditionModel:
    """Two levels of 32 channels, attention on the upper one."""
    torch.manual_seed(1)
    default = {
        "block_out_channels": (32, 32), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 1, "norm_num_groups": 8,
        "cross_attention_dim": TEXT, "use_linear_projection": True,
    }  # fmt: skip
    return UNet2DConditionModel(**(default | config)).eval()


def inputs(views: int, channels: int = 4, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(views, channels, *size, generator=g)
    return x, torch.full((views,), 300), torch.randn(views, 5, TEXT, generator=g)


def ring(views: int = 8, size: int = 64, first_yaw: float = 0.0, **options: Any) -> PanoramaGeometry:
    K = panorama.intrinsics(pi / 2, size, size)
    return PanoramaGeometry(K, panorama.ring(views, first_yaw), (size, size), **options)


def wall(views: int = 3, height: int = 32, width: int = 48, step: float = 0.3) -> DepthGeometry:
    """Cameras that move along a wall at a distance of two metres."""
    c2w = torch.eye(4).repeat(views, 1, 1)
    c2w[:, 0, 3] = step * torch.arange(views)
    return DepthGeometry(torch.full((views, height, width), 2.0), c2w, panorama.intrinsics(pi / 2, height, width))


def awaken(network: Network) -> Network:
    """Give zero-initialised layers outside the base small random weights."""
    g = torch.Generator().manual_seed(5)
    for name, parameter in network.named_parameters():
        if not parameter.any() and not name.startswith("unet."):
            with torch.no_grad():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=g))
    return network


VARIANTS = {"panorama": 0, "outpaint": 5, "depth": 1, "keys": 1}
"""Variants and their extra input channels; those with depth have no branch for given images."""


def tiny_model(variant: str | None = None, **unet: Any) -> MVDiffusion:
    """A 2D model with random weights and a small vocabulary, optionally with the blocks of a variant."""
    parts = tiny_unet(**NO_CAMERA, **unet), tiny_vae(), tiny_text_encoder(), word_tokenizer()
    model = MVDiffusion(*parts, dtype="fp32")
    if variant is None:
        return model
    known = widened(model.unet, VARIANTS[variant])
    with torch.no_grad():
        known.conv_in.weight[:, 4:] += 0.1
    kind = "depth" if VARIANTS[variant] == 1 else "panorama"
    return model.with_network(awaken(MultiviewUNet(known, kind, "capped", condition=variant == "depth")))


@functools.cache
def tiny_weights() -> Path:
    """Write the 2D model to `folder`/base and a file of blocks for each variant."""
    folder = kept_folder()
    tiny_model().save(folder / "base")
    for variant in VARIANTS:
        network = tiny_model(variant).multiview
        assert network is not None
        save_blocks(folder / f"{variant}.safetensors", network, difference(network.unet, LoRA(network.unet, 2)))
    return folder


def tiny_prior_config(variant: str) -> dict[str, str]:
    blocks = tiny_weights() / f"{variant}.safetensors"
    return {"name": "mvdiffusion", "weights": str(tiny_weights() / "base"), "blocks": str(blocks), "dtype": "fp32"}
