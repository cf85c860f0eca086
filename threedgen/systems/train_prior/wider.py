"""A UNet with more channels that begins as the narrow one did (Chen et al. 2016, Net2Net, arXiv 1511.05641, 2.2).

A new channel is a copy of an old one, and what reads an old channel reads all its copies, with shares that sum to one.
The shares are drawn at random for each weight, so that copies learn different things from the first step on.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.guidance.multiview.joined import unet_from_config

SINUSOIDS = "time_embedding.linear_1.weight"
"""Reads sines and cosines of the timestep, as many as the first level has channels."""
QUERIES = ".to_q.weight"


def wider(unet: Any, channels: Sequence[int], rng: torch.Generator) -> Any:
    """A copy of a stock UNet with ``channels`` at each level; the same object if it has those.

    It computes what ``unet`` does but for the group norms that span two levels, whose groups are cut elsewhere (in the
    toybox's 2D model 3 to 9 % of what it makes of noise).  Where two levels become equally wide, the projection between
    them is lost, so the output differs more and needs training.  Raises ConfigError unless each width is a multiple of
    the old one, and levels of one width stay so.
    """
    old = list(unet.config["block_out_channels"])
    if list(channels) == old:
        return unet
    if len(channels) != len(old) or any(new < width or new % width for new, width in zip(channels, old, strict=True)):
        raise ConfigError(f"{list(channels)} should be multiples of the widths that there are, {old}", "widen")
    if any(a == b and new_a != new_b for (a, b), (new_a, new_b) in zip(pairwise(old), pairwise(channels), strict=True)):
        same = "levels of one width have no layer between them, so equal ones stay equal"
        raise ConfigError(f"{list(channels)} and {old}: {same}", "widen")
    embedding = unet.time_embedding.linear_1.out_features
    wide: Any = unet_from_config(unet.config, block_out_channels=tuple(channels), time_embedding_dim=embedding)
    joined = _joined(unet, wide)
    state, shapes = unet.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    wide.load_state_dict({name: _spread(name, state[name], shapes[name], joined, rng) for name in shapes})
    wide.set_attn_processor(unet.attn_processors)
    return wide.to(unet.device).train(unet.training)


def _spread(
    name: str, weight: Tensor, shape: torch.Size, joined: dict[str, list[tuple[int, int]]], rng: torch.Generator
) -> Tensor:
    """The weight of the wider network."""
    parts = joined.get(name.rpartition(".")[0])  # of what the layer reads
    if weight.ndim == 1:
        whole = [(len(weight), shape[0])]
        return weight[_copied(parts if parts and sum(new for _, new in parts) == shape[0] else whole)]
    out = weight[_copied([(weight.shape[0], shape[0])])]
    if name == SINUSOIDS:
        return _slower(out, shape[1])
    source = _copied(parts or [(weight.shape[1], shape[1])])
    if len(source) > weight.shape[1]:
        share = torch.rand(out.shape[:1] + source.shape + out.shape[2:], generator=rng).to(out) + 0.1
        total = torch.zeros_like(out).index_add_(1, source, share)
        out = out[:, source] * share / total[:, source]
    if name.endswith(QUERIES):  # a product of longer heads is larger, and divided by the root of their length
        out = out * (weight.shape[0] / shape[0]) ** 0.5
    return out


def _copied(parts: Sequence[tuple[int, int]]) -> Tensor:
    """Which old channel each new one copies, of channels that lie one behind the other in (old, new) parts."""
    starts = [0, *torch.cumsum(torch.tensor([old for old, _ in parts]), 0).tolist()]
    return torch.cat(
        [
            torch.arange(a, b).repeat_interleave(new // old)  # neighbours, so that norms keep their groups
            for (a, b), (old, new) in zip(pairwise(starts), parts, strict=True)
        ]
    )


def _slower(weight: Tensor, n: int) -> Tensor:
    """Columns (out, n) that read the sinusoids which the old ones read; those in between are not read yet.

    Frequency k of a half is 10000^(-k / half), in diffusers' order: sines and cosines are a half each.
    """
    out = weight.new_zeros(len(weight), n)
    halves = zip(out.chunk(2, 1), weight.chunk(2, 1), strict=True)
    for new, old in halves:
        new[:, :: n // weight.shape[1]] = old
    return out


def _joined(unet: Any, wide: Any) -> dict[str, list[tuple[int, int]]]:
    """Layers that read two maps one behind the other, the way up and a skip, with the (old, new) widths of both."""
    found = dict[str, list[tuple[int, int]]]()
    for i, block in enumerate(wide.up_blocks):
        for j in range(len(block.resnets)):
            name = f"up_blocks.{i}.resnets.{j}."
            below, skip = zip(_read(unet, i, j), _read(wide, i, j), strict=True)
            found |= {name + layer: [below, skip] for layer in ("norm1", "conv1", "conv_shortcut")}
    return found


def _read(unet: Any, i: int, j: int) -> tuple[int, int]:
    """Widths of the two maps that residual block j of up block i reads."""
    blocks = unet.up_blocks
    before = blocks[i].resnets[j - 1] if j else blocks[i - 1].resnets[-1] if i else unet.mid_block.resnets[-1]
    below = int(before.conv2.out_channels)
    return below, int(blocks[i].resnets[j].conv1.in_channels) - below
