"""Widening of a trained UNet without changing its output (Net2Net, Chen et al. 2016, arXiv 1511.05641, section 2.2).

Each new channel is a copy of an old one. The input weight of an old channel is split among all its copies, so that the
sum stays the same. It is split at random, so that the copies get different gradients from the first step on.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.guidance.attention.joined import unet_from_config

SINUSOIDS = "time_embedding.linear_1.weight"
"""Name of the weight whose inputs are sines and cosines of the time step; the first level's width is their number."""
QUERIES = ".to_q.weight"
Parts = Sequence[tuple[int, int]]
"""Pairs (old width, new width), one for each of the feature maps that are concatenated as the input of a layer."""


def widen(unet: Any, channels: Sequence[int], rng: torch.Generator) -> Any:
    """Return a copy of a diffusers UNet with `channels` at each level, or `unet` itself if it has these widths.

    The output stays the same except for group norms over two concatenated levels, whose groups change. In the toybox's
    2D model this changes the output for noise by 3 to 9 %. If two levels become equally wide, the UNet loses the
    projection between them, and the output changes more.

    Raises:
        ConfigError: a width is no multiple of the old one, or levels of the same width would get different widths.
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
    """Return the weight of the wide UNet, with `shape`, from the weight with the same name in the old UNet."""
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
    """Return the index (new,) of the old channel that each new channel copies."""
    starts = [0, *torch.cumsum(torch.tensor([old for old, _ in parts]), 0).tolist()]
    return torch.cat(
        [
            torch.arange(a, b).repeat_interleave(new // old)  # neighbours, so that norms keep their groups
            for (a, b), (old, new) in zip(pairwise(starts), parts, strict=True)
        ]
    )


def _widened_sinusoids(weight: Tensor, n: int) -> Tensor:
    """Return the weight (out, n) for n sines and cosines; the columns of frequencies that the old weight lacks are 0.

    In diffusers one half of the inputs are sines and the other half cosines. Frequency k is 10000^(-k / half).
    """
    out = weight.new_zeros(len(weight), n)
    for new, old in zip(out.chunk(2, 1), weight.chunk(2, 1), strict=True):
        new[:, :: n // weight.shape[1]] = old
    return out


def _concatenated_inputs(unet: Any, wide: Any) -> dict[str, Parts]:
    """Return the widths of the layers whose input concatenates the map of the level below and a skip connection.

    The keys are layer names. The values have the (old, new) widths of the two maps.
    """
    found = dict[str, Parts]()
    for i, block in enumerate(wide.up_blocks):
        for j in range(len(block.resnets)):
            name = f"up_blocks.{i}.resnets.{j}."
            parts = list(zip(_input_widths(unet, i, j), _input_widths(wide, i, j), strict=True))
            found |= {name + layer: parts for layer in ("norm1", "conv1", "conv_shortcut")}
    return found


def _input_widths(unet: Any, i: int, j: int) -> tuple[int, int]:
    """Return the input widths of residual block j in up block i: (map of the level below, skip connection)."""
    blocks = unet.up_blocks
    before = blocks[i].resnets[j - 1] if j else blocks[i - 1].resnets[-1] if i else unet.mid_block.resnets[-1]
    below = int(before.conv2.out_channels)
    return below, int(blocks[i].resnets[j].conv1.in_channels) - below
