"""Training of the toybox's autoencoder, an unmodified AutoencoderKL of diffusers.

The network has no attention. Most steps can therefore train on crops near the centre of images, which cost a quarter
of whole images. Only the last steps train on whole images.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.geometry.images import grid, write_png
from threedgen.run.dtypes import autocast_bf16
from threedgen.toybox.world.rooms import Rooms
from threedgen.toybox.world.toybox import Toybox
from threedgen.train.muon import Muon
from threedgen.train.system import System

from .options import AutoencoderConfig

LATENT_CHANNELS = 8
GROUPS = 1
"""Number of groups of the group norms. With 1, all channels share a mean and a variance, so colours stay comparable."""
RATE = {"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5}
HALF_SIZE_WEIGHT = 0.25
"""Weight of the loss at half size: latents are resized to half, decoded, and compared with the half-size images (arXiv
2502.14831)."""
LATENT_NOISE = 0.5
"""Maximum standard deviation of the noise on latents in the training of the decoder."""
WHOLE_IMAGE_FRACTION = 0.25
"""Fraction of the steps, at the end of the training, that use whole images."""
RANDOM_SOLIDS_SHARE, ROOMS = 0.25, 0.2
"""Fraction of the object images that show random solids, and fraction of all images that show the inside of rooms."""
KL_WEIGHT = 1e-5


def build(options: AutoencoderConfig) -> AutoencoderKL:
    n = len(options.channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=tuple(options.channels),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    initialise_averaging(vae)
    return vae


@torch.no_grad()
def initialise_averaging(vae: Any) -> None:
    """Initialise the weights of an AutoencoderKL so that the encoder averages pixels and the decoder repeats them.

    A network with random weights needs hundreds of training steps to learn each axis of the colour space. Here, the
    channels 0 to 2 of the latents are the averaged colours (r, g, b) from the start, up to a factor.

    Inside encoder and decoder, the channels 0 to 5 carry (r, g, b, -r, -g, -b). The SiLU before each of the two output
    layers changes these values. The output layer subtracts the channels 3 to 5 from the channels 0 to 2, which gives
    the colours back, because silu(a) - silu(-a) = a. Residual branches start at zero. All other weights stay random.

    The posterior, the distribution of the latents of an image, starts with a standard deviation of 0.05.
    """
    signs = torch.cat([torch.eye(3), -torch.eye(3)])  # (6, 3)
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            for parameter in module.conv2.parameters():
                nn.init.zeros_(parameter)
            if module.conv_shortcut is not None:
                _set_taps(module.conv_shortcut, torch.eye(6), 1.0)
        elif isinstance(module, Downsample2D):
            _set_taps(module.conv, torch.eye(6), 0.25, slice(0, 2))
        elif isinstance(module, Upsample2D):
            _set_taps(module.conv, torch.eye(6), 1.0)
    for half, gain in ((vae.encoder, 0.5), (vae.decoder, 0.17)):  # norms enlarge toybox images about threefold
        _set_taps(half.conv_in, signs, 1.0)
        _set_taps(half.conv_out, signs.T, gain)
    c = vae.config.latent_channels
    for conv in (vae.quant_conv, vae.post_quant_conv):
        _set_taps(conv, torch.eye(c), 1.0)
    vae.quant_conv.weight[c:] = 0
    vae.quant_conv.bias[c:] = -6.0


def _set_taps(conv: Any, matrix: Tensor, weight: float, taps: slice | None = None) -> None:
    # out[:o] = weight * matrix (o, i) @ in[:i]; taps: rows and columns of the kernel that are set, None: the middle one
    out, inputs = matrix.shape
    middle = conv.kernel_size[0] // 2
    taps = taps or slice(middle, middle + 1)
    conv.weight[:out] = 0
    conv.weight[:out, :inputs, taps, taps] = weight * matrix[:, :, None, None]
    conv.bias[:out] = 0


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vertical and the horizontal differences of neighbouring pixels of images (B, C, H, W).

    Their shapes are (B, C, H - 1, W) and (B, C, H, W - 1).
    """
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def half_size(x: Tensor) -> Tensor:
    """Resize images or latents (B, C, H, W) to (B, C, H / 2, W / 2), bilinearly with antialiasing."""
    return F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Return the scalar loss between reconstructions `y` and true images `x`, both (B, 3, H, W) in [-1, 1].

    The loss is L1 + 2 MSE + 0.5 L1 of the differences of neighbouring pixels (vertical plus horizontal) + 2 L1 of
    images averaged over blocks of 8 x 8 pixels. The third term keeps outlines sharp. The last term makes the network
    learn colours early.
    """
    sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(y), edges(x), strict=True))
    coarse = F.l1_loss(F.avg_pool2d(y, 8), F.avg_pool2d(x, 8))
    return F.l1_loss(y, x) + 2 * F.mse_loss(y, x) + 0.5 * sharp + 2 * coarse


def psnr(y: Tensor, x: Tensor) -> float:
    """Return the PSNR in dB between reconstructions `y` and true images `x`, both of the same shape and in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(y.detach(), x)))


class AutoencoderSystem(System):
    """LightningModule that trains `vae`, an AutoencoderKL, to reconstruct images.

    Each step renders `options.batch` new toybox images of `image_size` x `image_size` pixels. `max_steps` is the number
    of steps; None: `options.max_steps`. `facts` are further settings that must stay the same when a run is resumed.
    """

    stage = "autoencoder"

    def __init__(
        self,
        options: AutoencoderConfig,
        image_size: int,
        seed: int,
        vae: AutoencoderKL,
        max_steps: int | None = None,
        **facts: str,
    ) -> None:
        super().__init__(options, seed, max_steps or options.max_steps, size=str(image_size), **facts)
        self.options, self.image_size = options, image_size
        network: Any = vae
        self.vae = network.to(memory_format=torch.channels_last)  # faster on a CPU
        self.box, self.rooms = Toybox(seed + 1, "train"), Rooms(seed + 1, "train")

    def images(self, step: int) -> Tensor:
        """Return the training images of this process for the batch with the number `step`, float32 in [-1, 1].

        In the last quarter (WHOLE_IMAGE_FRACTION) of the optimisation steps they are whole images (batch, 3,
        image_size, image_size). In all earlier steps they are two random crops of each image, (2 * batch, 3,
        image_size / 2, image_size / 2).
        """
        batch, size, rng = self.options.batch, self.image_size, self.numpy_rng(step, "crops")
        interiors = round(ROOMS * batch)
        objects, number = batch - interiors, self.cache_step(step)  # each process renders images of its own
        _, rgb, _, _ = self.box.batch(range(number * objects, (number + 1) * objects), size, 1, RANDOM_SOLIDS_SHARE)
        if interiors:
            views, _, _ = self.rooms.render_views(range(number * interiors, (number + 1) * interiors), size)
            rgb = np.concatenate([rgb, views])
        if self.optimisation_step(step) < (1 - WHOLE_IMAGE_FRACTION) * self.max_steps:
            c = size // 2
            middle = (size - c) / 2
            corner = np.clip(rng.normal(middle, 0.8 * middle, (2, batch, 2)), 0, size - c).astype(int)
            rgb = np.stack([rgb[i, y : y + c, x : x + c] for pair in corner for i, (y, x) in enumerate(pair)])
        x = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2) * 2 - 1
        return x.contiguous(memory_format=torch.channels_last).to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        x, rng = self.images(step), self.rng(step, "posterior")
        with autocast_bf16(x.device):
            posterior = self.vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=rng).to(mean)
            y = self.vae.decode(z).sample.float()
            small = self.vae.decode(half_size(z)).sample.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(y, x) + KL_WEIGHT * kl + HALF_SIZE_WEIGHT * reconstruction_loss(small, half_size(x))
        self.metrics = {"psnr": psnr(y, x), "kl": float(kl.detach())}
        return loss

    def validate(self, step: int, folder: Path) -> None:
        """Write reconstructions.png to `folder`: eight images of held-out objects above their reconstructions."""
        _, rgb, _, _ = Toybox(self.seed, "held-out").batch(range(8), self.image_size, n_view=1)
        x = torch.from_numpy(rgb).permute(0, 3, 1, 2).to(self.device) * 2 - 1
        y = self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample
        write_png(folder / "reconstructions.png", grid(torch.cat([x, y]).permute(0, 2, 3, 1).cpu() / 2 + 0.5, 8))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        ends = (self.vae.encoder.conv_in.weight, self.vae.decoder.conv_out.weight)
        return self.muon(self.vae, ends)

    def muon(self, network: nn.Module, ends: tuple[Tensor, ...]) -> OptimizerLRSchedulerConfig:
        return self.scheduled(Muon(network.parameters(), 1.0, weight_decay=1e-4, elementwise=ends), RATE)


class DecoderSystem(AutoencoderSystem):
    """LightningModule that trains the decoder of a VAE to reconstruct images from noisy latents of the frozen encoder.

    The decoder then tolerates the errors of sampled latents (Zheng et al. 2025, arXiv 2510.11690, section 3.3).
    `max_steps` is the number of steps. `options` are the options of the autoencoder, which give the number of images
    per step. `image_size` is the side of an image in pixels, and `vae` the trained VAE.
    """

    stage = "decoder"

    def __init__(
        self, max_steps: int, options: AutoencoderConfig, image_size: int, seed: int, vae: AutoencoderKL
    ) -> None:
        vae.requires_grad_(False)
        super().__init__(options, image_size, seed + 1, vae, max_steps, decoder=str(max_steps))
        self.vae.train().decoder.requires_grad_(True)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        x, rng = self.images(step), self.rng(step, "latents")
        with autocast_bf16(x.device):
            mean = self.vae.encode(x).latent_dist.mean.float()
            level = LATENT_NOISE * torch.rand(len(mean), 1, 1, 1, generator=rng)
            z = mean + (level * torch.randn(mean.shape, generator=rng)).to(mean)
            y = self.vae.decode(z).sample.float()
        self.metrics = {"psnr": psnr(y, x)}
        return reconstruction_loss(y, x)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        decoder = self.vae.decoder
        return self.muon(decoder, (decoder.conv_out.weight,))


@torch.no_grad()
def standardise(vae: Any, rgb: Tensor) -> None:
    """Change an autoencoder in place, so that each latent channel has mean 0 and variance 1 on images `rgb`.

    Only the 1x1 convolutions directly before and after the latents change. Reconstructions stay the same, and the
    `scaling_factor` of diffusers, by which latents are multiplied, can be 1. `rgb` is (N, H, W, 3) in [0, 1].
    """
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
