"""Learning the latents of the toybox: a stock AutoencoderKL on pictures of the toybox.

The network is convolutional (no attention), so most steps train on crops about the object, which cost a quarter of a
whole picture; the last steps see whole pictures, as the prior will.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.data.toybox.rooms import Rooms
from threedgen.data.toybox.world import Toybox
from threedgen.geometry.images import grid, write_png
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.muon import Muon
from threedgen.train.system import System

from .options import AutoencoderConfig, DecoderConfig


def build(options: AutoencoderConfig) -> AutoencoderKL:
    """A fresh autoencoder: picture size / 2^(levels - 1), ``latent_channels`` wide."""
    n = len(options.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=tuple(options.channels),
        layers_per_block=options.layers_per_block,
        latent_channels=options.latent_channels,
        norm_num_groups=options.groups,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    start_as_average(vae)
    return vae


@torch.no_grad()
def start_as_average(vae: Any) -> None:
    """Weights with which the network shrinks a picture by averaging and enlarges it by repetition; the rest is random.

    Learnt from random weights, one colour axis after the other takes hundreds of steps.  Channels 0 to 5 carry
    (r, g, b, -r, -g, -b) through all layers: silu(a) - silu(-a) = a, so the activations at both ends pass them
    unchanged.  Residual branches start at zero.  The posterior starts with a deviation of 0.05, not 1.
    """
    signs = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)
    module: Any
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            for parameter in module.conv2.parameters():
                nn.init.zeros_(parameter)
            if module.conv_shortcut is not None:
                _pass(module.conv_shortcut, torch.eye(6), 1.0)
        elif isinstance(module, Downsample2D):
            _pass(module.conv, torch.eye(6), 0.25, slice(0, 2))
        elif isinstance(module, Upsample2D):
            _pass(module.conv, torch.eye(6), 1.0)
    for half, gain in ((vae.encoder, 0.5), (vae.decoder, 0.17)):  # norms enlarge toybox pictures about threefold
        _pass(half.conv_in, signs, 1.0)
        _pass(half.conv_out, signs.T, gain)
    c = vae.config.latent_channels
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _pass(conv, torch.eye(c), 1.0)
    vae.quant_conv.weight[c:] = 0
    vae.quant_conv.bias[c:] = -6.0


def _pass(conv: Any, matrix: Tensor, weight: float, taps: slice | None = None) -> None:
    """Let the first outputs of a 2D convolution be ``matrix`` (out, in) times the first inputs, at its middle tap."""
    out, into = matrix.shape
    middle = conv.kernel_size[0] // 2
    taps = taps or slice(middle, middle + 1)
    conv.weight[:out] = 0
    conv.weight[:out, :into, taps, taps] = weight * matrix[:, :, None, None]
    conv.bias[:out] = 0


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along both axes of (B, C, H, W)."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def shrunk(x: Tensor) -> Tensor:
    """(B, C, H, W) at half the size."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 MSE, 0.5 L1 of the edges (keeps eyes and outlines sharp) and L1 of the pictures shrunk 8 times (colours
    are learnt first, and stay right), of pictures in [-1, 1]."""
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    coarse = F.l1_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.5 * sharp + 2 * coarse


def decibels(y: Tensor, x: Tensor) -> float:
    """PSNR of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(y.detach(), x)))


class AutoencoderSystem(System):
    """Trains an AutoencoderKL; step s sees toybox samples [s n, (s + 1) n), whatever happened before."""

    stage = "autoencoder"

    def __init__(
        self,
        options: AutoencoderConfig,
        seed: int,
        vae: AutoencoderKL | None = None,
        max_steps: int | None = None,
        **facts: str,
    ) -> None:
        super().__init__(options, seed, max_steps or options.max_steps, **facts)
        self.options = options
        self.vae = vae or build(options)
        network: Any = self.vae
        network.to(memory_format=torch.channels_last)  # faster on a CPU
        self.box, self.rooms = Toybox(seed + 1, "train"), Rooms(seed + 1, "train")

    def pictures(self, step: int) -> Tensor:
        """The batch of a step: (B, 3, size, size) in [-1, 1]; crops until the last ``whole`` share of the run."""
        o, rng = self.options, self.numpy_rng(step, "crops")
        interiors = round(o.rooms * o.batch)
        things = o.batch - interiors
        _, rgb, _, _ = self.box.batch(range(step * things, (step + 1) * things), o.image_size, 1, o.jumbles)
        if interiors:
            shots, _, _ = self.rooms.render_views(range(step * interiors, (step + 1) * interiors), o.image_size)
            rgb = np.concatenate([rgb, shots])
        if step < (1 - o.whole) * self.max_steps:
            c = o.crop
            middle = (o.image_size - c) / 2
            corner = np.clip(rng.normal(middle, 0.8 * middle, (2, o.batch, 2)), 0, o.image_size - c).astype(int)
            rgb = np.stack([rgb[i, y : y + c, x : x + c] for pair in corner for i, (y, x) in enumerate(pair)])
        x = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2) * 2 - 1
        return x.contiguous(memory_format=torch.channels_last).to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        x = self.pictures(step)
        noise = self.rng(step, "posterior")
        with autocast_bf16(x.device, self.options.bf16):
            posterior = self.vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=noise).to(mean)
            y = self.vae.decode(z).sample.float()
            small = self.vae.decode(shrunk(z)).sample.float() if self.options.shrunk else None
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(y, x) + self.options.kl * kl
        if small is not None:
            loss = loss + self.options.shrunk * reconstruction_loss(small, shrunk(x))
        self.metrics = {"psnr": decibels(y, x), "kl": float(kl.detach())}
        return loss

    def validate(self, step: int, folder: Path) -> None:
        """Draws held-out pictures above their reconstructions."""
        _, rgb, _, _ = Toybox(self.seed, "held-out").batch(range(8), self.options.image_size, n_view=1)
        x = torch.from_numpy(rgb).permute(0, 3, 1, 2).to(self.device) * 2 - 1
        y = self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample
        write_png(folder / "reconstructions.png", grid(torch.cat([x, y]).permute(0, 2, 3, 1).cpu() / 2 + 0.5, 8))

    def configure_optimizers(self):
        ends = (self.vae.encoder.conv_in.weight, self.vae.decoder.conv_out.weight)
        return self.muon(self.vae, ends, self.options.learning_rate)

    def muon(self, network: nn.Module, ends: tuple[Tensor, ...], rate: Any) -> dict[str, Any]:
        """Muon on all weights of a network but ``ends``, whose rows are colours and no features."""
        return self.scheduled(Muon(network.parameters(), 1.0, weight_decay=1e-4, elementwise=ends), rate)


class DecoderSystem(AutoencoderSystem):
    """Trains the decoder on: latents and encoder stay, but what it decodes has noise on it, as much as samples have
    errors (Zheng et al. 2025, arXiv 2510.11690, section 3.3). Without, small errors of a sample become speckles."""

    stage = "decoder"

    def __init__(self, options: DecoderConfig, pictures: AutoencoderConfig, seed: int, vae: AutoencoderKL) -> None:
        told = options.model_dump_json()
        super().__init__(pictures, seed + 1, vae.requires_grad_(False), options.max_steps, decoder=told)
        self.noise = options
        vae.train().decoder.requires_grad_(True)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        x = self.pictures(step)
        rng = self.rng(step, "latents")
        with autocast_bf16(x.device, self.options.bf16):
            mean = self.vae.encode(x).latent_dist.mean.float()
            level = self.noise.latent_noise * torch.rand(len(mean), 1, 1, 1, generator=rng)
            z = mean + (level * torch.randn(mean.shape, generator=rng)).to(mean)
            y = self.vae.decode(z).sample.float()
        self.metrics = {"psnr": decibels(y, x)}
        return reconstruction_loss(y, x)

    def configure_optimizers(self):
        decoder = self.vae.decoder
        return self.muon(decoder, (decoder.conv_out.weight,), self.noise.learning_rate)


@torch.no_grad()
def standardise(vae: Any, rgb: Tensor) -> None:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions, in place and exactly: afterwards the
    latents of the pictures ``rgb`` (N, H, W, 3) are standard normal by channel and ``scaling_factor`` is 1."""
    x = rgb.permute(0, 3, 1, 2) * 2 - 1
    z = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in x.split(8)]).float()
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    c = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:c] /= std[:, None, None, None]
    quant.bias[:c] = (quant.bias[:c] - mean) / std
    quant.bias[c:] -= 2 * torch.log(std)  # the other half is the log variance
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
