"""Difference between a tuned UNet with additional input channels and the 2D model that it was tuned from.

The difference is a wider first layer and low-rank updates (LoRA) of other layers. Only it is saved, not the whole UNet.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.guidance.attention.joined import unet_from_config
from threedgen.guidance.losses.lora import LoRA
from threedgen.run.torch_file import check_architecture

FIRST = ("conv_in.weight", "conv_in.bias")
LORA = "lora."


def widened(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """Return a copy of `unet` with `extra` additional input channels, whose weights are zero."""
    channels = unet.config["in_channels"] + extra
    wide: Any = unet_from_config(unet.config, in_channels=channels)
    state = dict(unet.state_dict())
    first = state[FIRST[0]]
    state[FIRST[0]] = torch.cat([first, first.new_zeros(first.shape[0], extra, *first.shape[2:])], 1)
    wide.load_state_dict(state)
    wide.set_attn_processor(unet.attn_processors)
    return wide.to(unet.device).train(unet.training)


def difference(unet: UNet2DConditionModel, lora: LoRA | None) -> dict[str, Tensor]:
    """Return the first layer of a UNet and the low-rank updates `lora` of other layers, by their names in a file."""
    state = unet.state_dict()
    found = {f"unet.{name}": state[name] for name in FIRST}
    if lora is not None:
        for name, down, up in zip(lora.names, lora.down, lora.up, strict=True):
            found |= {f"{LORA}{name}.down": down.detach(), f"{LORA}{name}.up": lora.scale * up.detach()}
    return found


def load_difference(unet: UNet2DConditionModel, lora: LoRA, tensors: Mapping[str, Tensor]) -> None:
    """Copy the tensors of a `difference` into the first layer of `unet` and into `lora`.

    Raises:
        ConfigError: the low-rank updates have another rank, or belong to other layers.
    """
    ours = difference(unet, lora)
    check_architecture(
        {name: tensors[name] for name in tensors if name.startswith(LORA) or name in ours}, ours, "the additions"
    )
    with torch.no_grad():
        unet.conv_in.load_state_dict({name.rpartition(".")[2]: tensors[f"unet.{name}"] for name in FIRST})
        for name, down, up in zip(lora.names, lora.down, lora.up, strict=True):
            down.copy_(tensors[f"{LORA}{name}.down"])
            up.copy_(tensors[f"{LORA}{name}.up"] / lora.scale)


def merge(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> None:
    """Add the low-rank updates of a `difference` to the weights of `unet`, in place.

    Raises ConfigError if they belong to another UNet.
    """
    for name in sorted({key.removeprefix(LORA).rpartition(".")[0] for key in tensors if key.startswith(LORA)}):
        try:
            weight: Any = unet.get_submodule(name).weight
            added = tensors[f"{LORA}{name}.up"].float() @ tensors[f"{LORA}{name}.down"].float().flatten(1)
            with torch.no_grad():
                weight += added.view(weight.shape).to(weight)
        except (AttributeError, KeyError, RuntimeError):
            raise ConfigError(f"the additions to {name!r} do not fit the UNet: they belong to another one") from None
