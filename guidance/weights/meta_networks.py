"""What can be said of a prior from the shapes in its files, for estimates: networks that hold no numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.config import ConfigError
from threedgen.guidance.draft import Draft

from . import components, ldm_keys, loading, reading
from . import known_checkpoints as released


class Outline(NamedTuple):
    """Networks on torch's meta device, and how many parameters the whole prior has, text encoder included.

    vae: None for a prior on pixels. kept: how many of them it still has after `release`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    draft: Draft | None
    parameters: int
    kept: int

    @property
    def factor(self) -> int:
        """Pixels for each number that the UNet sees, along each axis."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)


def outline(weights: str, wanted: tuple[str, ...] = loading.PARTS) -> Outline:
    """That of anything that ``loading.locate`` finds, and of a released checkpoint also before it is here.

    Raises ConfigError.
    """
    if loading.awaited(weights):
        return _released(weights)
    path = loading.locate(weights, wanted)
    configs: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    if path.is_dir():
        for part in loading.parts(path, wanted):
            configs[part], tensors[part] = components.read_part(path / part)
        if "input_blocks.0.0.weight" in tensors["unet"]:
            configs["unet"] = components.with_size(ldm_keys.convert_unet(tensors["unet"]).config)
    else:
        tensors = ldm_keys.split_checkpoint(reading.read_tensors(path))
        configs["unet"] = components.with_size(ldm_keys.unet_config(tensors.get("unet", {})))
        configs["vae"] = ldm_keys.vae_config(tensors.get("vae", {}))
    try:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(configs["unet"]).requires_grad_(False)
            vae = AutoencoderKL.from_config(configs["vae"]).requires_grad_(False) if "vae" in configs else None
            draft = Draft.from_config(configs["draft"]).requires_grad_(False) if "draft" in configs else None
    except Exception as error:  # the config comes from outside: any kind
        raise ConfigError(f"{path}: its config describes no known network ({type(error).__name__})") from None
    encoder = () if vae is None else (vae.encoder, vae.quant_conv)
    whole = sum(tensor.numel() for part in tensors.values() for tensor in part.values())
    return Outline(unet, vae, draft, whole, _parameters(unet, draft, *encoder))


def _released(name: str) -> Outline:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(released.UNETS[name]).requires_grad_(False)
        vae = AutoencoderKL.from_config(released.VAE).requires_grad_(False)
        text = CLIPTextModel(CLIPTextConfig(**released.TEXT_ENCODERS[name]))
    kept = _parameters(unet, vae.encoder, vae.quant_conv)
    return Outline(unet, vae, None, _parameters(unet, vae, text), kept)


def _parameters(*networks: nn.Module | None) -> int:
    return sum(tensor.numel() for network in networks if network is not None for tensor in network.parameters())
