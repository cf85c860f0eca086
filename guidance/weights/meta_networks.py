"""The networks of a prior on torch's meta device: shapes without numbers, from which its memory is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.config import ConfigError

from . import components, known_checkpoints, ldm_keys, loading, reading


class MetaNetworks(NamedTuple):
    """UNet and VAE (None for a prior on pixels), and how many numbers the prior has.

    parameters: of all of it, text encoder included.  kept: after `release`.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    parameters: int
    kept: int

    @property
    def factor(self) -> int:
        """Pixels for each number that the UNet sees, along each axis."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)


def meta_networks(weights: str, wanted: tuple[str, ...] = loading.PARTS) -> MetaNetworks:
    """Those of anything that ``loading.locate`` finds, and of a released checkpoint also before it is here.

    Raises ConfigError.
    """
    if loading.awaited(weights):
        with torch.device("meta"):
            text = CLIPTextModel(CLIPTextConfig(**known_checkpoints.TEXT_ENCODERS[weights]))
        found = _build(known_checkpoints.UNETS[weights], known_checkpoints.VAE)
        return found._replace(parameters=_parameters(found.unet, found.vae, text))
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
        found = _build(configs["unet"], configs.get("vae"))
    except Exception as error:  # the config comes from outside: any kind
        raise ConfigError(f"{path}: its config describes no known network ({type(error).__name__})") from None
    draft = sum(tensor.numel() for tensor in tensors.get("draft", {}).values())
    whole = sum(tensor.numel() for part in tensors.values() for tensor in part.values())
    return found._replace(parameters=whole, kept=found.kept + draft)


def _build(unet_config: dict[str, Any], vae_config: dict[str, Any] | None) -> MetaNetworks:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config).requires_grad_(False)
        vae = None if vae_config is None else AutoencoderKL.from_config(vae_config).requires_grad_(False)
    encoder = () if vae is None else (vae.encoder, vae.quant_conv)
    return MetaNetworks(unet, vae, 0, _parameters(unet, *encoder))


def _parameters(*networks: nn.Module | None) -> int:
    return sum(tensor.numel() for network in networks if network is not None for tensor in network.parameters())
