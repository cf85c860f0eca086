"""Parts of a 3DiM UNet: residual and attention blocks, encodings of camera rays and noise levels.

The frames (views) of B scenes form one batch (B F, C, H, W); the F frames of a scene are consecutive.
"""

from math import pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resample = Literal["up", "down"] | None
EPS = 1e-6  # of group norms, as in flax
HALF = (torch.bfloat16, torch.float16)
MAX_EXPLICIT_TOKENS = 256
"""Number of tokens up to which explicit attention in bfloat16, with gradients, is faster on a CPU than torch's fused
kernel. With torch 2.13 the fused kernel takes 12 times as long for 16 tokens, half as long for 1024."""


def resample(h: Tensor, mode: Resample) -> Tensor:
    """Resize feature maps (N, C, H, W): halve by averaging ("down"), double by repeating ("up") or keep (None)."""
    if mode == "down":
        return F.avg_pool2d(h, 2)
    return F.interpolate(h, scale_factor=2.0, mode="nearest") if mode == "up" else h


class ResBlock(nn.Module):
    """Residual block: convolution, FiLM (scale and shift, computed from an embedding), convolution, resampling.

    A call takes feature maps (N, C_in, H, W) and embeddings (N, E, H, W), and returns feature maps (N, C, H', W') of
    the size after resampling.

    Args:
        channels_in, channels, emb_channels: numbers of channels C_in, C and E.
        groups: groups of the group norms.
        dropout: dropout probability before the second convolution.
        mode: resampling of the sum of residual and shortcut: "down" (half the size), "up" (double) or None (same size).
    """

    def __init__(
        self, channels_in: int, channels: int, emb_channels: int, groups: int, dropout: float, mode: Resample = None
    ) -> None:
        super().__init__()
        self.mode = mode
        self.norm1 = nn.GroupNorm(groups, channels_in, EPS)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels, EPS)
        self.film = nn.Conv2d(emb_channels, 2 * channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Return the block's output (N, C, H', W') for h (N, C_in, H, W); H' and W' are the sides after resampling.

        `emb` (N, E, H, W), with E = `emb_channels`, embeds noise level and camera rays and has passed a SiLU; scale and
        shift of each pixel are computed from it.
        """
        residual = self.norm2(self.conv1(F.silu(self.norm1(h))))
        scale, shift = self.film(emb).chunk(2, dim=1)
        residual = F.silu(residual * (1 + scale) + shift)
        return resample((self.conv2(self.dropout(residual)) + self.shortcut(h)) / sqrt(2), self.mode)


class Attention(nn.Module):
    """Residual multi-head attention over the pixels of feature maps of frames (views of a scene).

    A call maps feature maps (B F, C, H, W) of B scenes, with F consecutive frames each, to the same shape. The pixels
    of a frame attend to all pixels of the same frame or, if `cross` is True, to those of the scene's other frame; then
    F must be 2.
    """

    def __init__(self, channels: int, heads: int, groups: int, cross: bool = False) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.norm = nn.GroupNorm(groups, channels, EPS)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Return (h + attention output) / sqrt(2), (B F, C, H, W), for feature maps h (B F, C, H, W).

        h holds F consecutive frames (views) of each of B scenes. Each pixel of a frame attends to all pixels of the
        same frame. With the constructor's `cross`, it attends to all pixels of the scene's other frame instead, so F
        must be 2.
        """
        tokens = self.qkv(self.norm(h).flatten(2).mT)
        query, key, value = tokens.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.cross:
            key, value = swap_frames(key), swap_frames(value)
        mixed = attend(query, key, value).transpose(1, 2).flatten(2)
        return (self.out(mixed).mT.reshape(h.shape) + h) / sqrt(2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v; all tensors are (N, heads, L, d), for L tokens with d channels per head."""
    short = query.device.type == "cpu" and query.dtype in HALF and query.shape[-2] <= MAX_EXPLICIT_TOKENS
    if short and torch.is_grad_enabled() and query.requires_grad:
        return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


def swap_frames(x: Tensor) -> Tensor:
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


class Block(nn.Module):
    def __init__(self, residual: ResBlock, self_attention: Attention | None, cross_attention: Attention | None) -> None:
        super().__init__()
        self.residual, self.self_attention, self.cross_attention = residual, self_attention, cross_attention

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = self.residual(h, emb)
        if self.self_attention is not None:
            h = self.self_attention(h)
        return h if self.cross_attention is None else self.cross_attention(h)


def initialise(network: nn.Module) -> None:
    """Initialise weights as flax does (truncated normal, variance 1 / fan-in), in place.

    Biases and the last layers of residual branches become zero. Networks on the meta device stay unchanged.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if module.weight.is_meta:  # only shapes are needed, and torch takes seconds to truncate
                return
            std = module.weight[0].numel() ** -0.5 / 0.87962566  # truncation reduces the deviation by this factor
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, (ResBlock, Attention)):
            nn.init.zeros_(module.conv2.weight if isinstance(module, ResBlock) else module.out.weight)


def posenc(x: Tensor, degrees: int) -> Tensor:
    """Encode vectors x (..., 3) by sines and cosines as (..., 3 + 6 degrees), as in NeRF, with `degrees` frequencies.

    The channels are x, all sin(2^k x), then all cos(2^k x), in the order k = 0 .. degrees - 1, with three components of
    x for each k. cos(y) is computed as sin(y + pi/2), as in the training of the weights; for large y = 2^k x, the
    result differs from the cosine in float32.
    """
    octaves = 2.0 ** torch.arange(degrees, device=x.device, dtype=x.dtype)
    phases = (x[..., None, :] * octaves[:, None]).flatten(-2)
    return torch.cat([x, torch.sin(torch.cat([phases, phases + pi / 2], dim=-1))], dim=-1)


def encode_rays(origins: Tensor, directions: Tensor, origin_degrees: int = 15, direction_degrees: int = 8) -> Tensor:
    """Encode ray origins and directions by `posenc`, as (..., 6 + 6 (origin_degrees + direction_degrees)).

    `origins` and `directions` are (..., 3); origins broadcast to the shape of the directions. In the result, the
    encoded origin precedes the encoded direction. The degrees are the numbers of frequencies (NeRF, eq. 4; 3DiM,
    section 7.1).
    """
    position = posenc(origins, origin_degrees).expand(*directions.shape[:-1], -1)
    return torch.cat([position, posenc(directions, direction_degrees)], dim=-1)


def noise_level_encoding(logsnr: Tensor, channels: int) -> Tensor:
    """Encode log-SNR (...) by the time embedding of DDPM (Ho et al. 2020): (..., channels), all sines come first.

    The time is 1000 u. The noise level u = (2 / pi) atan(exp(-logsnr / 2)) is 0 for a clean image and 1 for pure noise.
    """
    time = 2 * torch.atan(torch.exp(-logsnr.float().clamp(-20, 20) / 2)) / pi
    half = channels // 2
    step = torch.log(torch.tensor(10000.0, dtype=torch.float64)).item() / (half - 1)
    frequencies = torch.exp(torch.arange(half, device=logsnr.device, dtype=torch.float32) * -step)
    phases = (1000 * time)[..., None] * frequencies
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=-1)
