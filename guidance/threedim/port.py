"""Weights of the public PyTorch port of 3DiM (github.com/a6o/3d-diffusion-pytorch): its file -> our network.

The port deviates from the paper's listing in ways that its weights have learned; ``XUNetConfig.variant = "port"`` has
them all. Two further ones are no matter of form: attention by level instead of resolution, which is read off the
names, and a second linear layer after attention, which is multiplied into the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.guidance.weights.files import fill, read_tensors
from threedgen.guidance.weights.ldm import indices

from .options import XUNetConfig
from .xunet import XUNet

RESIDUAL = {
    "groupnorm0.gn": "norm1", "conv1": "conv1", "groupnorm1.gn": "norm2", "film.dense": "film", "conv2": "conv2",
    "dense": "shortcut",
}  # fmt: skip
ENDS = {"conv": "unet.conv_in", "lastgn.gn": "unet.norm_out", "lastconv": "unet.conv_out"}
CONDITIONING = "conditioningprocessor."
RULES = [
    *((rf"^{re.escape(theirs)}\.", f"{ours}.") for theirs, ours in ENDS.items()),
    (r"^conditioningprocessor\.logsnr_emb_emb\.", "conditioning.logsnr."),
    (r"^conditioningprocessor\.convs\.", "conditioning.poses."),
    (r"^conditioningprocessor\.", "conditioning."),
    (r"^middle\.", "unet.middle."),
    (r"^xunetblocks\.(\d+)\.(\d+)\.(?=resnetblock|attnblock)", r"unet.down.\1.\2."),
    (r"^xunetblocks\.(\d+)\.\d+\.", r"unet.downsample.\1."),
    (r"^upsample\.(\d+)\.(\d+)\.(?=resnetblock|attnblock)", r"unet.up.\1.\2."),
    (r"^upsample\.(\d+)\.\d+\.", r"unet.upsample.\1."),
    *((rf"(?<=\.){re.escape(theirs)}\.(?=weight|bias)", f"{ours}.") for theirs, ours in RESIDUAL.items()),
    (r"\.resnetblock\.", ".residual."),
    (r"\.attnblock_(self|cross)\.", r".\1_attention."),
    (r"_attention\.groupnorm\.gn\.", "_attention.norm."),
    (r"_attention\.attn_layer\.attn\.in_proj_", "_attention.qkv."),
]
"""(pattern in a name of the port, what stands there in ours), one after the other."""


def load_port(path: Path, attn_heads: int = 4) -> XUNet:
    """The network of a checkpoint file (``latest.pt``: weights under "model", named "module...."), frozen, float32.

    Nothing in the file is executed. ``attn_heads`` cannot be read off the weights: the port's default is 4. Raises
    ConfigError, one sentence, for a file that is damaged or holds another network.
    """
    return convert_port(read_tensors(path, under="model"), attn_heads)


def convert_port(weights: Mapping[str, Tensor], attn_heads: int = 4) -> XUNet:
    """The network of the port's state dict. Raises ConfigError, one sentence, if it is none."""
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    config = port_config(weights, attn_heads)
    tensors = {our_name(name, len(config.channel_mult)): tensor for name, tensor in weights.items()}
    attentions = [name.removesuffix("linear.weight") for name in tensors if name.endswith("_attention.linear.weight")]
    part = "conditioning."
    try:
        if config.use_ref_pose_emb:
            first, other = (tensors.pop(f"conditioning.{kind}_emb") for kind in ("first", "other"))
            tensors["conditioning.frame_emb"] = torch.cat([first, other], dim=1)[0, :, :, 0, 0]
        for part in attentions:
            merge_last_layers(tensors, part)
    except (KeyError, RuntimeError, IndexError):
        raise ConfigError(f"the weights of the port are damaged: those of {part!r} do not belong together") from None
    for name in [name for name in tensors if name.endswith(".film.weight")]:
        tensors[name] = tensors[name][..., None, None]
    return fill(lambda: XUNet(config), tensors, "3DiM network")


def our_name(name: str, levels: int) -> str:
    """A name of the port as our network has it; one that the port does not have passes through, to be reported."""
    # going up, ours are numbered as they run
    name = re.sub(r"^upsample\.(\d+)", lambda found: f"upsample.{levels - 1 - int(found[1])}", name)
    for pattern, ours in RULES:
        name = re.sub(pattern, ours, name)
    return name


def merge_last_layers(tensors: dict[str, Tensor], part: str) -> None:
    """The port's two linear layers after the heads become one; computed in float64, as it is done once."""
    outer = tensors.pop(f"{part}linear.weight")[:, :, 0, 0].double()
    inner, shift = (tensors.pop(f"{part}attn_layer.attn.out_proj.{leaf}").double() for leaf in ("weight", "bias"))
    tensors[f"{part}out.weight"] = (outer @ inner).float()
    tensors[f"{part}out.bias"] = (outer @ shift + tensors.pop(f"{part}linear.bias").double()).float()


def port_config(weights: Mapping[str, Tensor], attn_heads: int = 4) -> XUNetConfig:
    """Sizes and attention of the port's network, read off its tensors. Raises ConfigError."""
    if "conv.weight" not in weights or f"{CONDITIONING}logsnr_emb_emb.0.weight" not in weights:
        raise ConfigError("these are not the weights of the PyTorch port of 3DiM: they have no 'conv.weight'")
    try:
        return XUNetConfig(**sizes(weights), attn_heads=attn_heads)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ConfigError(f"the weights of the port are of no size that is known here: {reason}") from None
    except (KeyError, IndexError, TypeError, ZeroDivisionError):
        raise ConfigError("the weights of the port are damaged: they lack whole levels of the network") from None


def sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``XUNetConfig`` has to say of the port's network."""
    levels = len(indices(weights, CONDITIONING + r"convs\.(\d+)\."))
    channels = len(weights["conv.weight"])
    widths = [len(weights[f"xunetblocks.{level}.0.resnetblock.conv1.weight"]) for level in range(levels)]
    size = weights[CONDITIONING + "pos_emb"].shape[1:] if CONDITIONING + "pos_emb" in weights else None
    if size is None:
        raise ConfigError("the weights of the port have no 'pos_emb', from which the size of its pictures is read")
    attends = [f"xunetblocks.{level}.0.attnblock_self.linear.weight" in weights for level in range(levels)]
    return {
        "image_size": tuple(size),
        "image_channels": weights["conv.weight"].shape[1],
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "emb_channels": len(weights[CONDITIONING + "logsnr_emb_emb.0.weight"]),
        "num_res_blocks": len(indices(weights, rf"xunetblocks\.{levels - 1}\.(\d+)\.")),
        "attn_resolutions": tuple(size[0] >> level for level in range(levels) if attends[level]),
        "attn_middle": "middle.attnblock_self.linear.weight" in weights,
        "use_ref_pose_emb": CONDITIONING + "first_emb" in weights,
        "dropped_logsnr": 20.0,
        "variant": "port",
    }
