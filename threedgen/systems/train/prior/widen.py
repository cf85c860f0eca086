"""A UNet with more channels that computes what the narrow one does (Net2Net, Chen et al. 2016, arXiv 1511.05641, 2.2).

A new channel is a copy of an old one; layers that read an old channel read all its copies, with weights that sum to its
own. The weights are split at random, so that the copies get different gradients from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.guidance.attention.joined import unet_from_config

SINUSOIDS = "time_embedding.linear_1.weight"
"""Weight whose inputs are sines and cosines of the time step, as many as the first level has channels."""
QUERIES = ".to_q.weight"
Parts = Sequence[tuple[int, int]]
"""(old, new) widths of concatenated feature maps."""


def widen(unet: Any, channels: Sequence[int], rng: torch.Generator) -> Any:
    """Return a copy of a stock UNet with `channels` at each level; the same object if it has those.

    Its output is that of `unet` except for group norms over two levels, whose groups change (in the toybox's 2D model 3
    to 9 % of the output for noise). Where two levels become equally wide, the projection between them is lost and the
    output differs more.

    Raises:
        ConfigError: unless each width is a multiple of the old one and levels of one width stay equal.
    """
    old = list(unet.config["block_out_channels"])
    if list(channels) == old:
        return unet
    if len(channels) != len(old) or any(new < width or new % width for new, width in zip(channels, old, strict=True)):
        raise ConfigError(f"{list(channels)} should be multiples of the widths in start, {old}", "widen")
    if any(a == b and new_a != new_b for (a, b), (new_a, new_b) in zip(pairwise(old), pairwise(channels), strict=True)):
        raise ConfigError(
            f"{list(channels)} and {old}: levels of one width have no layer between them and must stay equal", "widen"
        )
    embedding = unet.time_embedding.linear_1.out_features
    wide: Any = unet_from_config(unet.config, block_out_channels=tuple(channels), time_embedding_dim=embedding)
    concatenated = _concatenated_inputs(unet, wide)
    state, shapes = unet.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    wide.load_state_dict({name: _widened(name, state[name], shapes[name], concatenated, rng) for name in shapes})
    wide.set_attn_processor(unet.attn_processors)
    return wide.to(unet.device).train(unet.training)


def _widened(
    name: str, weight: Tensor, shape: torch.Size, concatenated: dict[str, Parts], rng: torch.Generator
) -> Tensor:
    """Return the weight of the wide network."""
    parts = concatenated.get(name.rpartition(".")[0])  # of the layer's input
    if weight.ndim == 1:
        whole = [(len(weight), shape[0])]
        return weight[_sources(parts if parts and sum(new for _, new in parts) == shape[0] else whole)]
    out = weight[_sources([(weight.shape[0], shape[0])])]
    if name == SINUSOIDS:
        return _widened_sinusoids(out, shape[1])
    source = _sources(parts or [(weight.shape[1], shape[1])])
    if len(source) > weight.shape[1]:
        share = torch.rand(out.shape[:1] + source.shape + out.shape[2:], generator=rng).to(out) + 0.1
        total = torch.zeros_like(out).index_add_(1, source, share)
        out = out[:, source] * share / total[:, source]
    if name.endswith(QUERIES):  # products of longer heads are larger, and divided by the root of their length
        out = out * (weight.shape[0] / shape[0]) ** 0.5
    return out


def _sources(parts: Parts) -> Tensor:
    """Return the old channel that each new one copies."""
    starts = [0, *torch.cumsum(torch.tensor([old for old, _ in parts]), 0).tolist()]
    return torch.cat(
        [
            torch.arange(a, b).repeat_interleave(new // old)  # neighbours, so that norms keep their groups
            for (a, b), (old, new) in zip(pairwise(starts), parts, strict=True)
        ]
    )


def _widened_sinusoids(weight: Tensor, n: int) -> Tensor:
    """Return columns (out, n) for the old frequencies; those of the frequencies between them are zero.

    Frequency k of a half is 10000^(-k / half), in diffusers' order: sines and cosines are a half each.
    """
    out = weight.new_zeros(len(weight), n)
    for new, old in zip(out.chunk(2, 1), weight.chunk(2, 1), strict=True):
        new[:, :: n // weight.shape[1]] = old
    return out


def _concatenated_inputs(unet: Any, wide: Any) -> dict[str, Parts]:
    """Return the layers whose input is two concatenated maps, that of the level below and a skip."""
    found = dict[str, Parts]()
    for i, block in enumerate(wide.up_blocks):
        for j in range(len(block.resnets)):
            name = f"up_blocks.{i}.resnets.{j}."
            parts = list(zip(_input_widths(unet, i, j), _input_widths(wide, i, j), strict=True))
            found |= {name + layer: parts for layer in ("norm1", "conv1", "conv_shortcut")}
    return found


def _input_widths(unet: Any, i: int, j: int) -> tuple[int, int]:
    """Return the widths of the two inputs of residual block j of up block i."""
    blocks = unet.up_blocks
    before = blocks[i].resnets[j - 1] if j else blocks[i - 1].resnets[-1] if i else unet.mid_block.resnets[-1]
    below = int(before.conv2.out_channels)
    return below, int(blocks[i].resnets[j].conv1.in_channels) - below
