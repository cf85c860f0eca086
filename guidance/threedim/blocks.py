"""The parts of a 3DiM UNet: FiLM residual block, attention within and between frames, resampling.

Every layer sees frames as a batch, (B F, C, H, W) with the F frames of a scene consecutive, so that weights are shared
and statistics are per frame; only cross-attention knows that there are two.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resample = Literal["up", "down"] | None
HALF = (torch.bfloat16, torch.float16)
PLAIN_TOKENS = 256
"""Longest sequence for which plain products in bfloat16 are faster on a CPU than torch's fused kernel and its backward:
2.13 needs 12 times as long for 16 tokens, 2.5 times for 256, half as long for 1024. In float32 it is never slower."""


def resampled(h: Tensor, how: Resample) -> Tensor:
    """Average of 2x2 pixels, or each pixel four times."""
    if how == "down":
        return F.avg_pool2d(h, 2)
    return F.interpolate(h, scale_factor=2.0, mode="nearest") if how == "up" else h


class ResBlock(nn.Module):
    """Two convolutions around a FiLM of the embedding; starts as the identity, up to scale."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        emb_channels: int,
        groups: int,
        dropout: float,
        resample: Resample = None,
        eps: float = 1e-6,
        film_swish: bool = True,
    ) -> None:
        """``resample``: at the end; ``film_swish``: a swish after FiLM."""
        super().__init__()
        self.resample, self.film_swish = resample, film_swish
        self.norm1 = nn.GroupNorm(groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.film = nn.Conv2d(emb_channels, 2 * channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (N, C, H, W); emb (N, E, H', W'), after its swish, of the size of ``h``."""
        residual = self.norm2(self.conv1(F.silu(self.norm1(h))))
        scale, shift = self.film(emb).chunk(2, dim=1)
        residual = residual * (1 + scale) + shift
        if self.film_swish:
            residual = F.silu(residual)
        return resampled((self.conv2(self.dropout(residual)) + self.shortcut(h)) / sqrt(2), self.resample)


class Attention(nn.Module):
    """Attention of each frame to itself, or of each of two frames to the other; starts as the identity, up to scale."""

    def __init__(self, channels: int, heads: int, groups: int, cross: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """(B F, C, H, W), the same; F = 2 if ``cross``."""
        tokens = self.qkv(self.norm(h).flatten(2).mT)
        query, key, value = tokens.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.cross:
            key, value = other_frame(key), other_frame(value)
        seen = attend(query, key, value).transpose(1, 2).flatten(2)
        return (self.out(seen).mT.reshape(h.shape) + h) / sqrt(2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (N, heads, L, d).

    Where gradients are wanted, a CPU gets plain products for short sequences in half precision (autocast).
    """
    slow = query.device.type == "cpu" and query.dtype in HALF and query.shape[-2] <= PLAIN_TOKENS
    if slow and torch.is_grad_enabled() and query.requires_grad:
        return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def other_frame(x: Tensor) -> Tensor:
    """(B 2, ...) with the two frames of each scene exchanged."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


class Block(nn.Module):
    """Residual block, then where there is attention: to itself, and to the other frame."""

    def __init__(self, residual: ResBlock, self_attention: Attention | None, cross_attention: Attention | None) -> None:
        super().__init__()
        self.residual, self.self_attention, self.cross_attention = residual, self_attention, cross_attention

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self.residual(h, emb)
        if self.self_attention is not None:
            h = self.self_attention(h)
        return h if self.cross_attention is None else self.cross_attention(h)


def initialise(network: nn.Module) -> None:
    """flax's defaults, with which the paper's network was trained: weights of variance 1 / fan-in, cut off at two
    standard deviations, no biases; and zeros in the last layer of every residual branch.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if module.weight.is_meta:  # only shapes are wanted, as when a file is read; torch takes seconds to cut off
                return
            std = module.weight[0].numel() ** -0.5 / 0.87962566  # what the cut takes from the deviation
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, (ResBlock, Attention)):
            nn.init.zeros_(module.conv2.weight if isinstance(module, ResBlock) else module.out.weight)
