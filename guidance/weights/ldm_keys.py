"""Checkpoints of the latent-diffusion (ldm) code base -> stock diffusers and transformers networks.

MVDream, Stable Diffusion 1.x and 2.x were released in this form: one file with the tensors of a UNet, a VAE
and a text encoder under ldm's names. Each ``convert_*`` reads the architecture (widths, levels, blocks,
attention) from names and shapes, and returns the config of the stock network with its tensors renamed. The
number of attention heads leaves no trace in the tensors: it follows the released models unless it is given.

All functions raise ConfigError with one sentence when the tensors are not of the form expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from threedgen.config import ConfigError

Tensors = Mapping[str, Tensor]
Prefixes = list[tuple[str, str]]

PARTS = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "open_clip": "cond_stage_model.model.",
    "clip": "cond_stage_model.transformer.",
}

RESNET = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]
VAE_RESNET = [(n, n) for n in ("norm1", "conv1", "norm2", "conv2")] + [("nin_shortcut", "conv_shortcut")]
VAE_ATTENTION = [
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
]


@dataclass(frozen=True)
class Converted:
    """Keyword arguments of the stock network's class or config, and its tensors under their stock names."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def split_checkpoint(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """The parts (keys of PARTS) of a single-file checkpoint without their prefix; the rest is left out."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for part, prefix in PARTS.items():
            if name.startswith(prefix):
                parts.setdefault(part, {})[name.removeprefix(prefix)] = tensor
    return parts


def convert_unet(tensors: Tensors, heads: int | None = None, head_channels: int | None = None) -> Converted:
    """ldm's UNetModel (MVDream's MultiViewUNetModel too) -> UNet2DConditionModel.

    ``heads`` per attention layer, or channels per head; default: 64 channels per head when the projections
    around the transformers are linear (Stable Diffusion 2), else 8 heads (Stable Diffusion 1).
    """
    config = unet_config(tensors, heads, head_channels)
    return Converted(config, rename(tensors, unet_prefixes(config), "UNet"))


def unet_config(tensors: Tensors, heads: int | None = None, head_channels: int | None = None) -> dict[str, Any]:
    """Arguments of UNet2DConditionModel; block numbering as in ldm: R res blocks, then a downsampler, per
    level.
    """
    inputs = count(tensors, r"input_blocks\.(\d+)\.")
    levels = 1 + len(indices(tensors, r"input_blocks\.(\d+)\.0\.op\.weight"))
    per_level = inputs // levels
    if inputs % levels or per_level < 2:
        raise ConfigError(f"not an ldm UNet: {inputs} input blocks do not form {levels} equal levels")
    starts = [1 + level * per_level for level in range(levels)]
    channels = [size(tensors, f"input_blocks.{i}.0.out_layers.3.weight", 0) for i in starts]
    depths = [transformer_depth(tensors, f"input_blocks.{i}.1.") for i in starts]
    middle = transformer_depth(tensors, "middle_block.1.")
    width = size(tensors, "input_blocks.0.0.weight", 0)
    if channels[0] != width:
        raise ConfigError(f"the UNet's first level has {channels[0]} channels, not the {width} of its first layer")
    if depths[-1] not in (0, middle) or middle == 0:
        raise ConfigError("the UNet's middle block needs as many transformer layers as its lowest level")
    linear = "middle_block.1.proj_in.weight" in tensors and tensors["middle_block.1.proj_in.weight"].ndim == 2
    attended = [c for c, depth in zip(channels, depths, strict=True) if depth] + channels[-1:]
    config = {
        "in_channels": size(tensors, "input_blocks.0.0.weight", 1),
        "out_channels": size(tensors, "out.2.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": per_level - 1,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(depths)],
        "transformer_layers_per_block": [d or middle for d in depths],
        "attention_head_dim": head_counts(channels, attended, linear, heads, head_channels),
        "use_linear_projection": linear,
        "cross_attention_dim": size(tensors, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
    }
    if "camera_embed.0.weight" in tensors:
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = size(tensors, "camera_embed.0.weight", 1)
    return config


def head_counts(
    channels: list[int], attended: list[int], linear: bool, heads: int | None, head_channels: int | None
) -> list[int]:
    """Heads for each level (diffusers' argument for it is misnamed ``attention_head_dim``)."""
    if heads is None and head_channels is None:
        heads, head_channels = (None, 64) if linear else (8, None)
    for width in attended:
        if width % (heads or head_channels or 1):
            shares = f"{heads} heads" if heads else f"heads of {head_channels} channels"
            raise ConfigError(f"{width} channels of the UNet cannot be split into {shares}")
    return [heads or max(1, width // (head_channels or 1)) for width in channels]


def unet_prefixes(config: Mapping[str, Any]) -> Prefixes:
    """(ldm prefix, diffusers prefix) of every module that holds tensors."""
    repeat, down_types = config["layers_per_block"], config["down_block_types"]
    pairs = [("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")]
    for ours, theirs in (("time_embed", "time_embedding"), ("camera_embed", "class_embedding")):
        pairs += [(f"{ours}.0", f"{theirs}.linear_1"), (f"{ours}.2", f"{theirs}.linear_2")]
    for level, kind in enumerate(down_types):
        start = 1 + level * (repeat + 1)
        for j in range(repeat):
            pairs += nested(f"input_blocks.{start + j}.0", f"down_blocks.{level}.resnets.{j}", RESNET)
            if kind == "CrossAttnDownBlock2D":
                pairs.append((f"input_blocks.{start + j}.1", f"down_blocks.{level}.attentions.{j}"))
        if level < len(down_types) - 1:
            pairs.append((f"input_blocks.{start + repeat}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
    pairs += nested("middle_block.0", "mid_block.resnets.0", RESNET)
    pairs += [("middle_block.1", "mid_block.attentions.0")]
    pairs += nested("middle_block.2", "mid_block.resnets.1", RESNET)
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind == "CrossAttnUpBlock2D"
        for j in range(repeat + 1):
            block = f"output_blocks.{level * (repeat + 1) + j}"
            pairs += nested(f"{block}.0", f"up_blocks.{level}.resnets.{j}", RESNET)
            if attends:
                pairs.append((f"{block}.1", f"up_blocks.{level}.attentions.{j}"))
        if level < len(down_types) - 1:  # after the attention, where there is one
            pairs.append((f"{block}.{1 + attends}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
    return pairs


def convert_vae(tensors: Tensors) -> Converted:
    """ldm's AutoencoderKL -> diffusers' AutoencoderKL; its 1x1 convolutions for attention become linear
    layers.
    """
    config = vae_config(tensors)
    found = {name: t for name, t in tensors.items() if not name.startswith("loss.")}
    renamed = rename(found, vae_prefixes(config), "VAE")
    squeezed = {n: t[:, :, 0, 0] if ".attentions." in n and t.ndim == 4 else t for n, t in renamed.items()}
    return Converted(config, squeezed)


def vae_config(tensors: Tensors) -> dict[str, Any]:
    """Arguments of AutoencoderKL."""
    levels = count(tensors, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    if levels == 0:
        raise ConfigError("not an ldm VAE: there is no tensor encoder.down.0.block.0.conv1.weight")
    channels = [size(tensors, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(levels)]
    width = size(tensors, "encoder.conv_in.weight", 0)
    if channels[0] != width:
        raise ConfigError(f"the VAE's first level has {channels[0]} channels, not the {width} of its first layer")
    attends = [f"encoder.down.{i}.attn.0.q.weight" in tensors for i in range(levels)]
    return {
        "in_channels": size(tensors, "encoder.conv_in.weight", 1),
        "out_channels": size(tensors, "decoder.conv_out.weight", 0),
        "latent_channels": size(tensors, "decoder.conv_in.weight", 1),
        "block_out_channels": channels,
        "layers_per_block": count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def vae_prefixes(config: Mapping[str, Any]) -> Prefixes:
    """(ldm prefix, diffusers prefix) of every module that holds tensors; ldm numbers the decoder's levels
    backwards.
    """
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    levels = len(config["block_out_channels"])
    sides = (("encoder", "down", "downsample", 0), ("decoder", "up", "upsample", 1))
    for side, way, resample, more in sides:
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs.append((f"{side}.norm_out", f"{side}.conv_norm_out"))
        for block in (0, 1):
            pairs += nested(f"{side}.mid.block_{block + 1}", f"{side}.mid_block.resnets.{block}", VAE_RESNET)
        pairs += nested(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION)
        for level in range(levels):
            ours, there = f"{side}.{way}.{level}", level if side == "encoder" else levels - 1 - level
            theirs = f"{side}.{way}_blocks.{there}"
            for j in range(config["layers_per_block"] + more):
                pairs += nested(f"{ours}.block.{j}", f"{theirs}.resnets.{j}", VAE_RESNET)
                pairs += nested(f"{ours}.attn.{j}", f"{theirs}.attentions.{j}", VAE_ATTENTION)
            pairs.append((f"{ours}.{resample}.conv", f"{theirs}.{resample}rs.0.conv"))
    return pairs


def rename(tensors: Tensors, prefixes: Prefixes, what: str) -> dict[str, Tensor]:
    """Each tensor under its new name; a tensor without a place in the network is an error."""
    table, renamed = dict(prefixes), {}
    for name, tensor in tensors.items():
        prefix = name
        while prefix and prefix not in table:
            prefix = prefix.rpartition(".")[0]
        if not prefix:
            raise ConfigError(f"unknown tensor {name!r} in the {what}: another architecture than the ldm {what}")
        renamed[table[prefix] + name[len(prefix) :]] = tensor
    return renamed


def nested(ours: str, theirs: str, inner: Prefixes) -> Prefixes:
    """``inner`` pairs under two outer prefixes."""
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in inner]


def indices(names: Iterable[str], pattern: str) -> set[int]:
    """The numbers that the pattern's group takes among the names it matches."""
    matches = (re.match(pattern, name) for name in names)
    return {int(m[1]) for m in matches if m and len(m[1]) < 10}


def count(names: Iterable[str], pattern: str) -> int:
    """How many modules a numbered list has; a gap in the numbers is an error, as no network has one."""
    found = indices(names, pattern)
    if found != set(range(len(found))):
        readable = pattern.replace("\\.", ".").replace(r"(\d+)", "N")
        raise ConfigError(f"another architecture: the tensors named {readable} are not numbered without a gap")
    return len(found)


def size(tensors: Tensors, name: str, dim: int) -> int:
    """Length of one dimension of a tensor that must be there."""
    if name not in tensors:
        raise ConfigError(f"another architecture: there is no tensor {name!r}")
    shape = tensors[name].shape
    if dim >= len(shape):
        raise ConfigError(f"another architecture: tensor {name!r} has the shape {tuple(shape)}")
    return shape[dim]


def transformer_depth(tensors: Tensors, prefix: str) -> int:
    """Transformer layers in the attention block under ``prefix``; 0 if there is none."""
    return count(tensors, re.escape(prefix) + r"transformer_blocks\.(\d+)\.")
