"""The task train-matte: trains the network that separates an object from its background in samples of a prior.

The training images are renders with known opacity. To look like samples of the prior, they are encoded by its VAE,
noise is added to the latents, and they are decoded.

RUN/pictures/, fresh/    caches of training and held-out images, safe to delete
RUN/matte/               weights of the network; the option `fit.matte` of other tasks takes this folder
RUN/summary.json         mean absolute error of the opacity, and IoU of the masks, on held-out images
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.latent_cache import BLOCK, encode, sample_entries
from threedgen.geometry.images import to_uint8
from threedgen.guidance.matte import Matte
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.run.arrays import Array
from threedgen.run.cache import BlockCache, digest
from threedgen.run.disk import writing
from threedgen.run.dtypes import autocast_bf16
from threedgen.run.seeding import numpy_generator, seed_networks
from threedgen.toybox.training.options import TrainMatteConfig
from threedgen.toybox.world.raycast import render
from threedgen.toybox.world.toybox import Split, Toybox, random_solids
from threedgen.train.status import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

BRIGHTNESS, TINT, NOISE = 0.04, 0.015, 0.01
"""Standard deviations of the random augmentation of images in [0, 1]: logarithm of the factor on the brightness, offset
of each colour channel, and noise of each pixel."""
LATENT_NOISE = 0.25
"""Maximum standard deviation of the noise on the latents of training images."""
AUTOENCODER = "toybox-base"
"""Model whose VAE encodes and decodes the images."""
FRESH, RANDOM_SOLIDS_SHARE, MEASURED = 3, 0.1, 256
"""Number of new images per step, share of images of random solids, and maximum number of images in the evaluation."""


class MatteImages:
    """Disk cache of `count` training images with opacity, rendered on first use, in the folder `folder`.

    Call the object with the indices (N,) of images to get them as RGB and opacity: (N, S, S, 4), float32 in [0, 1],
    where S is `config.network.size`. To look like samples of the diffusion model `prior`, the colours are encoded by
    its VAE, noise of a standard deviation up to 0.25 is added to the latents, and the latents are decoded. The opacity
    is the true one of the renderer.
    """

    def __init__(
        self, folder: Path, prior: LatentDiffusion, count: int, config: TrainMatteConfig, split: Split = "train"
    ) -> None:
        self.size, self.prior = config.network.size, prior
        self.seed, self.box = config.seed, Toybox(config.seed, split)
        settings = f"{self.size} px, jumbles {RANDOM_SOLIDS_SHARE}, noise {LATENT_NOISE}"
        source = f"{self.box.describe()}\n{settings}\n{digest(prior.vae)}"
        self.cache = BlockCache(folder, "pictures", count, (self.size, self.size, 4), np.uint8, source, BLOCK)

    def __call__(self, indices: Array) -> Tensor:
        """Return the images with the numbers `indices` (N,), as RGB and opacity: (N, S, S, 4), float32 in [0, 1]."""
        for block in self.cache.missing_blocks(indices):
            self.cache.store(block, self.make(range(block * BLOCK, (block + 1) * BLOCK)))
        return torch.from_numpy(np.stack([self.cache[i] for i in indices])).float() / 255

    def make(self, indices: range) -> Array:
        rng = numpy_generator(self.seed, indices.start, "matte")
        assets = [random_solids(rng, i) if rng.random() < RANDOM_SOLIDS_SHARE else self.box.asset(i) for i in indices]
        c2w, fov, _, grey = zip(*(self.box.cameras(i, 1) for i in indices), strict=True)
        scene = (assets, np.arange(len(assets)), np.concatenate(c2w), np.concatenate(fov), self.size)
        black, white = (render(*scene, background).rgb for background in (0.0, 1.0))
        opacity = 1 - (white - black).mean(-1, keepdims=True)
        rgb = self.decode_noisy(black + (1 - opacity) * np.reshape(grey, (-1, 1, 1, 1)), rng)
        return to_uint8(np.concatenate([rgb, opacity], -1))

    @torch.no_grad()
    def decode_noisy(self, rgb: Array, rng: np.random.Generator) -> Array:
        """Encode images (N, S, S, 3) in [0, 1] by the VAE, add noise to the latents, and decode them.

        The standard deviation of the noise is random for each image, up to `LATENT_NOISE`. The result has the shape and
        range of `rgb` and is float32.
        """
        z = encode(self.prior.vae, torch.from_numpy(rgb).float())
        noise = LATENT_NOISE * rng.random((len(z), 1, 1, 1)) * rng.standard_normal(z.shape)
        return self.prior.decode_latents(z + torch.from_numpy(noise).to(z)).float().cpu().numpy()


class MatteSystem(System):
    """LightningModule that trains a `Matte`, a network that predicts the opacity of an object at each pixel.

    The loss is the binary cross entropy with the true opacity: the renderer gives it, and the training `images` have it
    as their fourth channel.
    """

    stage = "matte"
    rate, weight_decay = {"0%": 0.0, "3%": 2e-3, "40%": 2e-3, "100%": 1e-5}, 0.001

    def __init__(self, config: TrainMatteConfig, images: MatteImages) -> None:
        super().__init__(config)
        seed_networks(config.seed, "matte")
        self.options, self.net, self.images = config.training, Matte(**config.network.model_dump()), images

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o = int(batch), self.options
        rng = self.numpy_rng(step, "pictures")
        entries = sample_entries(rng, self.cache_step(step), o.batch, o.pictures, o.first, min(FRESH, o.batch))
        rgba = self.images(entries).permute(0, 3, 1, 2)
        x, opacity = augment(rgba[:, :3], self.rng(step, "variation")).to(self.device), rgba[:, 3].to(self.device)
        with autocast_bf16(self.device):
            logits = self.net(x)
        loss = F.binary_cross_entropy_with_logits(logits, opacity)
        self.metrics = {"wrong": float((logits.detach().sigmoid() - opacity).abs().mean())}
        return loss


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return images `x` (B, 3, S, S) in [0, 1] with random brightness, tint and pixel noise, clipped to [0, 1].

    `rng` is a generator on the CPU.
    """
    count = len(x)
    brightness = torch.exp(BRIGHTNESS * torch.randn(count, 1, 1, 1, generator=rng))
    tint = TINT * torch.randn(count, 3, 1, 1, generator=rng)
    return (x * brightness + tint + NOISE * torch.randn(x.shape, generator=rng)).clamp(0, 1)


@torch.no_grad()
def evaluate(net: Matte, images: MatteImages, count: int) -> dict[str, float]:
    """Measure a matte network, which predicts the opacity of an object at each pixel, on the first `count` images.

    Return a dict with "error", the mean absolute error of the opacity in [0, 1], and "iou", the intersection over union
    of the predicted and the true mask (opacity above 0.5), computed over the pixels of all images together.
    """
    rgba = images(np.arange(count))
    opacity, truth = net.opacity(rgba[..., :3].to(net.out.weight.device)).cpu(), rgba[..., 3]
    mask, true_mask = opacity > 0.5, truth > 0.5
    iou = float((mask & true_mask).sum() / (mask | true_mask).sum())
    return {"error": float((opacity - truth).abs().mean()), "iou": iou}


def train(task: Task) -> Status:
    config: TrainMatteConfig = task.config
    prior = LatentDiffusion.load(AUTOENCODER, image_size=config.network.size)
    with writing(task.folder):
        images = MatteImages(task.folder / "pictures", prior, config.training.pictures, config)
    system = MatteSystem(config, images)

    def finish() -> dict[str, object]:
        system.net.save(task.folder / "matte")
        count = min(MEASURED, config.training.pictures)
        held_out = MatteImages(task.folder / "fresh", prior, count, config, "held-out")
        return {"matte": evaluate(system.net, held_out, count)}

    return task.train(system, metrics=("wrong",), finish=finish)


run = partial(run_task, train, result="matte", files=("matte/config.json",))
