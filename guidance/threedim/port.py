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
from threedgen.guidance.weights.reading import fill, read_tensors

from .options import XUNetConfig
from .xunet import XUNet

RESIDUAL = {
    "groupnorm0.gn": "norm1", "conv1": "conv1", "groupnorm1.gn": "norm2", "film.dense": "film", "conv2": "conv2",
    "dense": "shortcut",
}  # fmt: skip
ENDS = {"conv": "unet.conv_in", "lastgn.gn": "unet.norm_out", "lastconv": "unet.conv_out"}
CONDITIONING = "conditioningprocessor."


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
    tensors: dict[str, Tensor] = {}
    try:
        for prefix in sorted({owner(name) for name in weights}):
            tensors |= convert_part(prefix, weights, len(config.channel_mult))
    except (KeyError, RuntimeError, ValueError, IndexError):
        raise ConfigError(f"the weights of the port are damaged: those of {prefix!r} do not belong together") from None
    return fill(lambda: XUNet(config), tensors, "3DiM network")


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
    levels = count(weights, CONDITIONING + r"convs\.(\d+)\.")
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
        "num_res_blocks": count(weights, rf"xunetblocks\.{levels - 1}\.(\d+)\."),
        "attn_resolutions": tuple(size[0] >> level for level in range(levels) if attends[level]),
        "attn_middle": "middle.attnblock_self.linear.weight" in weights,
        "use_ref_pose_emb": CONDITIONING + "first_emb" in weights,
        "dropped_logsnr": 20.0,
        "variant": "port",
    }


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand where ``pattern`` has its group."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def owner(name: str) -> str:
    """The part of the network that a tensor belongs to: what is converted together."""
    found = re.match(r"(?:xunetblocks|upsample)\.\d+\.\d+\.|middle\.|" + re.escape(CONDITIONING), name)
    return found[0] if found else name.rpartition(".")[0] or name


def convert_part(prefix: str, weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Our tensors of one part; names that the port does not have pass through, so that they are reported."""
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    if prefix == CONDITIONING:
        return convert_conditioning(inside)
    if prefix in ENDS:
        return {ENDS[prefix] + name: tensor for name, tensor in inside.items()}
    if not prefix.endswith("."):
        return {prefix + name: tensor for name, tensor in inside.items()}
    part = place(prefix, any(name.startswith("resnetblock.") for name in inside), levels)
    return {part + name: tensor for name, tensor in convert_block(inside).items()}


def place(prefix: str, is_block: bool, levels: int) -> str:
    """Where our network has a block or a resampling block of the port."""
    if prefix == "middle.":
        return "unet.middle."
    side, level, index = prefix.split(".")[:3]
    down = side == "xunetblocks"
    row = int(level) if down else levels - 1 - int(level)  # going up, ours are listed as they run
    if is_block:
        return f"unet.{'down' if down else 'up'}.{row}.{index}."
    return f"unet.{'downsample' if down else 'upsample'}.{row}."


def convert_block(inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A residual block with its attention, or a resampling block."""
    found: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        bare = name.removeprefix("resnetblock.")
        layer, _, leaf = bare.rpartition(".")
        if layer in RESIDUAL:
            before = "residual." if bare != name else ""
            tensor = tensor[:, :, None, None] if layer == "film.dense" and leaf == "weight" else tensor
            found[f"{before}{RESIDUAL[layer]}.{leaf}"] = tensor
        elif not name.startswith("attnblock_"):
            found[name] = tensor
    for kind in ("self", "cross"):
        start = f"attnblock_{kind}."
        part = {name.removeprefix(start): tensor for name, tensor in inside.items() if name.startswith(start)}
        if part:
            found |= {f"{kind}_attention.{name}": tensor for name, tensor in convert_attention(part).items()}
    return found


def convert_attention(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The port's two linear layers after the heads become one; computed in float64, as it is done once."""
    outer, inner = part["linear.weight"][:, :, 0, 0].double(), part["attn_layer.attn.out_proj.weight"].double()
    bias = outer @ part["attn_layer.attn.out_proj.bias"].double() + part["linear.bias"].double()
    return {
        "norm.weight": part["groupnorm.gn.weight"],
        "norm.bias": part["groupnorm.gn.bias"],
        "qkv.weight": part["attn_layer.attn.in_proj_weight"],
        "qkv.bias": part["attn_layer.attn.in_proj_bias"],
        "out.weight": (outer @ inner).float(),
        "out.bias": bias.float(),
    }


def convert_conditioning(inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings of noise level, rays, position and frame."""
    found: dict[str, Tensor] = {}
    for name, tensor in inside.items():
        ours = name.replace("logsnr_emb_emb.", "logsnr.").replace("convs.", "poses.")
        if name not in ("first_emb", "other_emb"):
            found[f"conditioning.{ours}"] = tensor
    if "first_emb" in inside:
        both = torch.cat([inside["first_emb"], inside["other_emb"]], dim=1)
        found["conditioning.frame_emb"] = both[0, :, :, 0, 0]
    return found
