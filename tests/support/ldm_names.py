"""Tensor names of the ldm code base, for tests that write such checkpoints."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Prefixes = list[tuple[str, str]]

RESNET = [
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"),
]  # fmt: skip
VAE_RESNET = [(n, n) for n in ("norm1", "conv1", "norm2", "conv2")] + [("nin_shortcut", "conv_shortcut")]
VAE_ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]


def unet_prefixes(config: Mapping[str, Any]) -> Prefixes:
    """Return (ldm prefix, diffusers prefix) of every module with tensors."""
    repeat, down_types = config["layers_per_block"], config["down_block_types"]
    pairs = [("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out")]
    embeddings = (
        ("time_embed", "time_embedding"),
        ("camera_embed", "class_embedding"),
        ("label_emb.0", "add_embedding"),
    )
    for ours, theirs in embeddings:
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


def vae_prefixes(config: Mapping[str, Any]) -> Prefixes:
    """Return (ldm prefix, diffusers prefix) of every module with tensors; ldm numbers decoder levels backwards."""
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


def nested(ours: str, theirs: str, inner: Prefixes) -> Prefixes:
    """Return `inner` pairs under two outer prefixes."""
    return [(f"{ours}.{a}", f"{theirs}.{b}") for a, b in inner]


def to_ldm(tensors: dict[str, Tensor], prefixes: list[tuple[str, str]]) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        (ours, theirs), *more = [pair for pair in prefixes if name.startswith(pair[1] + ".")]
        assert not more
        named[ours + name.removeprefix(theirs)] = tensor
    return named
