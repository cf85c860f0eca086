"""Read and write adapter files in the format of MV-Adapter's authors (github.com/huanngzh/MV-Adapter).

A file has the tensors of the attention processors, and the tensors of the condition guider with the prefix `adapter.`.
Files that threedgen writes also have the training settings (`AdapterSettings`) in their metadata.
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

from diffusers.models import UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import errors_default_to_key
from threedgen.guidance.attention.decoupled import Branch
from threedgen.guidance.weights.files import read_card, read_tensors, warn_unused
from threedgen.run.disk import write_atomic
from threedgen.run.torch_file import check_architecture, require_finite

from .network import CHANNELS, FINE, AdaptedUNet, AdapterSettings

FORMAT = "threedgen mvadapter 1"
TEXT_WIDTH = "text_width"
OURS = re.compile(r"adapter\.|fine\.|.+\.attn1\.processor\.to_(q|k|v|out)_(mv|ref)\.")
FIRST = "adapter.conv_in.weight"
FIRST_BLOCKS = re.compile(r"adapter\.body\.0\.resnets\.\d+\.block1\.bias")


def save_adapter(path: Path, network: AdaptedUNet) -> None:
    """Write the adapter of `network` to a safetensors file, in float16. Raises ConfigError if a value is not finite.

    The metadata are the training settings (`AdapterSettings`) and the number of features of the 2D model's text tokens.
    """
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in network.adapter_state().items()}
    require_finite(tensors, "the weights of the adapter")
    base = {TEXT_WIDTH: str(network.unet.config["cross_attention_dim"])}
    write_atomic(path, save(tensors, {"format": FORMAT, **network.settings.card, **base}))


def load_adapter(path: Path, unet: UNet2DConditionModel, factor: int = 8, **settings: object) -> AdaptedUNet:
    """Add the adapter in the file `path` to `unet`, in place, and return both as one network.

    `factor` is the number of image pixels per latent pixel along each axis. The keyword arguments `settings` are
    attributes of `AdapterSettings`; values that are not None replace those of the file. Raises ConfigError if the file
    is missing, damaged or belongs to another 2D model.
    """
    with errors_default_to_key("adapter"):
        return convert_adapter(read_tensors(path), unet, factor, read_card(path, FORMAT), **settings)


def convert_adapter(
    tensors: Mapping[str, Tensor],
    unet: UNet2DConditionModel,
    factor: int = 8,
    card: Mapping[str, str] | None = None,
    **settings: object,
) -> AdaptedUNet:
    """Add an adapter to `unet`, in place, and return both as one network.

    The tensor names, those of MV-Adapter's published files, decide which attention branches (other views, reference
    image) and condition guiders (features of camera rays or a mesh) the adapter has. Tensors whose names do not have
    the form of those of a branch or guider are ignored with a warning.

    Args:
        tensors: content of the adapter's file, name -> tensor.
        factor: image pixels per latent pixel along each axis.
        card: metadata of the file; None: empty.
        settings: attributes of `AdapterSettings`; values that are not None replace those of the metadata.

    Raises:
        ConfigError: `tensors` are no adapter, the adapter belongs to another 2D model, or tensors of a branch or guider
            are missing, have a wrong shape, are not finite, or belong to a layer that the network lacks.
    """
    card = card or {}
    ours = {name: tensor.float() for name, tensor in tensors.items() if OURS.match(name)}
    branches: list[Branch] = [branch for branch in ("mv", "ref") if any(f"_{branch}." in name for name in ours)]
    if not branches and not card:  # a file of ours may have a guider only
        raise ConfigError("these weights have no attention of MV-Adapter ('to_q_mv'): they are no adapter", "adapter")
    width = str(unet.config["cross_attention_dim"])
    if card.get(TEXT_WIDTH, width) != width:
        problem = f"its text had {card[TEXT_WIDTH][:20]} features, this one's has {width}"
        raise ConfigError(f"the adapter was trained on another base: {problem}; take that base", "adapter")
    try:
        guided = any(name.startswith("adapter.") for name in ours)
        depth = sum(FIRST_BLOCKS.fullmatch(name) is not None for name in ours)
        maps = ours[FIRST].shape[1] if FIRST in ours and ours[FIRST].ndim == 4 else 0
        shape = (depth, isqrt(maps // CHANNELS), any(name.startswith(FINE) for name in ours))
        network = AdaptedUNet(unet, factor, AdapterSettings.from_card(card, **settings), branches, guided, *shape)
    except ValueError as error:
        raise ConfigError(f"an adapter cannot be added to this base: {error}", "adapter") from None
    state = network.adapter_state()
    check_architecture(ours, state, "the adapter")
    require_finite(ours, "the weights of the adapter")
    for name, tensor in state.items():
        tensor.copy_(ours[name])
    warn_unused([name for name in tensors if name not in ours], "of an adapter")
    return network.eval().requires_grad_(False)
