"""The task train-threedim: trains a novel-view model on pairs of views (3DiM, arXiv 2210.04628, sections 2.1 and 7.2).

The gap test measures whether the model uses its condition, a view of the scene. The model predicts the clean target
view from the noisy target view in one step, first with the true condition and then with a view of another scene. The
gap is the PSNR of the first prediction minus that of the second. A model that ignores its condition has no gap, but can
be good in every other metric.

RUN/bank/           cache of views, encoded if the model works on latents; safe to delete
RUN/samples.png     held-out scenes: condition, sampled views and true views
RUN/model/          averaged weights; image-to-3d takes this folder as `weights`, consistency as `sampler.weights`
"""

from collections.abc import Callable
from functools import partial
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import ConfigError, registry
from threedgen.data.srn.pairs import PairCache
from threedgen.geometry.images import enlarge_small, grid, psnr, write_png
from threedgen.geometry.views import Views
from threedgen.guidance.novel_view import novel_views as folders
from threedgen.guidance.novel_view import sampler
from threedgen.guidance.novel_view.options import CamerasConfig, XUNetConfig
from threedgen.guidance.novel_view.xunet import LatentPairs, XUNet
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.disk import writing
from threedgen.run.dtypes import autocast_bf16
from threedgen.run.memory import to_device
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.system import AveragedSystem, stratified_uniform
from threedgen.train.task import Task, run_task

from .options import PixelsConfig, TrainThreeDiMConfig

BETAS = (0.9, 0.99)
DROPPED = 0.1  # fraction of the condition views that are dropped in training, for classifier-free guidance
GAP_LEVELS, LOGGED_LEVEL = (0.5, 0.05, 0.006), 0.05
"""Noise levels alpha_bar of `gap_test`, and the level of the metrics "gap", "psnr_true" and "psnr_shuffled"."""
CHUNK = 16  # number of pairs per forward pass
SHEET_SCENES, SHEET_VIEWS, SHEET_STEPS = 3, 6, 32


class Gap(NamedTuple):
    """Result of `gap_test` at one noise level: PSNR of predicted views with the true and with a false condition view.

    Attributes:
        alpha_bar: noise level in (0, 1), the squared factor of the clean view in the noisy view; 1 would be no noise.
        true: mean PSNR in dB if the model is conditioned on a view of the same scene.
        shuffled: mean PSNR in dB if the model is conditioned on a view of another scene.
    """

    alpha_bar: float
    true: float
    shuffled: float

    @property
    def gap(self) -> float:
        return self.true - self.shuffled


class Pairs(NamedTuple):
    """B pairs of views (C, h, w), encoded for the model as latents or pixels. Both views of a pair show the same scene.

    Attributes:
        x: (B, C, h, w) condition views, the input of the model.
        x0: (B, C, h, w) target views, without noise.
        c2w: (B, 2, 4, 4) camera-to-world poses, OpenGL axes; index 0 is the condition, index 1 the target.
        K: (B, 3, 3) intrinsics of both views in pixels of the images, also if views are latents.
    """

    x: Tensor
    x0: Tensor
    c2w: Tensor
    K: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(to_device(tensor, device) for tensor in self))


@torch.no_grad()
def gap_test(
    model: sampler.ViewModel, pairs: Pairs, alpha_bars: tuple[float, ...], rng: torch.Generator, kinds: int = 1
) -> list[Gap]:
    """Measure how much a model uses its condition view, the known view of a scene from which it predicts a target view.

    At each noise level the model predicts the clean target view from the noisy target view, in one step. It does so
    twice: with the true condition view, and with a false one, from another scene. The result has the PSNR of both
    predictions. They are equal if the model ignores its condition.

    Args:
        pairs: condition and target views, one pair per scene. Their number is a multiple of `kinds`.
        alpha_bars: noise levels in (0, 1), squared factors of the clean view in the noisy view; 1 would be no noise.
        rng: generator of the noise on the target views.
        kinds: number of object categories. Pair i must have the category i % `kinds`. The false condition view of pair
            i is that of pair i + `kinds` (at the end, the first pairs follow): another scene of the same category.

    Returns:
        One result per noise level.
    """
    noise = torch.randn(pairs.x0.shape, generator=rng).to(pairs.x0)
    has_condition = torch.ones(len(pairs.x), dtype=torch.bool, device=pairs.x.device)

    def decode(x: Tensor) -> Tensor:
        return torch.cat([model.decode_images(part) for part in x.split(CHUNK)]).clamp(0, 1).float().cpu()

    truth = decode(pairs.x0).numpy()

    def fidelity(x: Tensor, logsnr: Tensor) -> float:
        z = sampler.add_noise(pairs.x0, noise, logsnr)
        inputs = (x, z, logsnr, pairs.c2w, pairs.K, has_condition)
        output = torch.cat([model.predict(*part) for part in zip(*(t.split(CHUNK) for t in inputs), strict=True)])
        x0 = sampler.x0_from_output(z, output, logsnr, model.prediction)
        views = decode(sampler.clipped(model, x0))
        return fmean(psnr(*pair) for pair in zip(truth, views.numpy(), strict=True))

    levels = {a: torch.full((len(pairs.x),), log(a) - log(1 - a), device=pairs.x.device) for a in alpha_bars}
    shuffled = pairs.x.roll(-kinds, 0)
    return [Gap(a, fidelity(pairs.x, level), fidelity(shuffled, level)) for a, level in levels.items()]


def once_around(views: Views, count: int) -> Views:
    """Return `count` of the views, evenly spaced in the order of their camera azimuths from -180 to 180 degrees.

    If there are fewer views, all are returned in this order.
    """
    position = views.cameras.position
    order = torch.atan2(position[:, 1], position[:, 0]).argsort()
    chosen = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return views.select(order[chosen])


def pair_loss(
    model: sampler.ViewModel, pairs: Pairs, logsnr: Tensor, has_condition: Tensor, noise: Tensor, blank: Tensor
) -> Tensor:
    """Return the training loss of a novel-view model for B pairs of views, the mean squared error of its output.

    From a condition view (known view) of a scene, the model denoises a target view of the same scene. Its output is the
    noise, v or the clean view, as `model.prediction` says.

    Args:
        model: the novel-view model.
        pairs: condition views `pairs.x` and clean target views `pairs.x0`, (B, C, h, w) each, and their cameras. Views
            are latents or pixels, as the model needs them.
        logsnr: (B,) log signal-to-noise ratios of the noisy target views.
        has_condition: (B,) bool; where False, `blank` replaces the condition view.
        noise: (B, C, h, w) unit Gaussian noise that is added to the target views.
        blank: (B, C, h, w) unit Gaussian noise that replaces dropped condition views.
    """
    x = torch.where(has_condition[:, None, None, None], pairs.x, blank)
    z = sampler.add_noise(pairs.x0, noise, logsnr)
    out = model.predict(x, z, logsnr, pairs.c2w, pairs.K, has_condition)
    return F.mse_loss(out, sampler.target(pairs.x0, noise, logsnr, model.prediction))


class PairSystem(AveragedSystem):
    """LightningModule that trains a novel-view model, and averages its weights over the steps (EMA).

    `model` predicts one view of a scene from another view of it, and `cache` has the training views. Noise levels are
    sampled from a continuous range of log signal-to-noise ratios, not from T time steps.
    """

    stage = "novel views"

    def __init__(self, config: TrainThreeDiMConfig, model: Any, cache: PairCache) -> None:
        super().__init__(config)
        self.options, self.cache = config.training, cache
        self.model = model.requires_grad_(True).train()
        self.keep_average(self.model, 0.0)

    @property
    def examples(self) -> int:
        """Number of pairs per optimizer step over all devices."""
        return self.options.batch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def setup(self, stage: str) -> None:
        self.average.decay = 0.5 ** (self.examples / self.options.ema_half_life)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o = int(batch), self.options
        rng, gen = self.numpy_rng(step, "pairs"), self.rng(step, "diffusion")
        pairs = self.load_pairs(rng.integers(0, self.cache.train, o.batch), rng)
        logsnr = sampler.logsnr_cosine(stratified_uniform(o.batch, gen) ** o.time_power)
        has_condition = torch.rand(o.batch, generator=gen) >= DROPPED
        noise, blank = (torch.randn(pairs.x.shape, generator=gen) for _ in range(2))
        logsnr, has_condition, noise, blank = (
            to_device(part, self.device) for part in (logsnr, has_condition, noise, blank)
        )
        with self.autocast():
            return pair_loss(self.model, pairs, logsnr, has_condition, noise, blank)

    def load_pairs(self, scenes: Array, rng: np.random.Generator) -> Pairs:
        """Sample a pair of views of each of B scenes, and encode it for the model. `scenes` are scene indices (B,)."""
        x, y, c2w, K = self.cache.pairs(scenes, rng)
        if self.cache.encode is None:
            x, y = self.model.encode_images(x), self.model.encode_images(y)
        return Pairs(x, y, c2w, K).to(self.device)

    def autocast(self) -> torch.autocast:
        return autocast_bf16(self.device)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        o, parameters = self.options, self.model.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=o.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
        return self.scheduled(optimizer, rate_factor(o.warmup / self.examples, o.decay, self.max_steps))

    def validate(self, step: int, folder: Path) -> None:
        """Write the averaged weights to folder/model, and samples to folder/samples.png. Set the dict `metrics`.

        The metrics show how much the model uses its condition view (the known view of a scene). For held-out scenes, it
        predicts target views from noisy ones: a * clean view + b * noise, with a^2 = 0.05 and b^2 = 0.95. "psnr_true"
        is the PSNR in dB if the condition view is of the same scene, "psnr_shuffled" if it is of another scene, and
        "gap" their difference, which is 0 if the model ignores the view. "gap_0.5", "gap_0.05" and "gap_0.006" are the
        gaps for these values of a^2.
        """
        cache = self.cache
        count = cache.held_out // cache.source.n_families * cache.source.n_families
        held_out = np.arange(cache.train, cache.train + count)  # one pair of each scene, always the same
        with self.average.applied(self.model):
            with self.autocast():
                pairs = self.load_pairs(held_out, self.numpy_rng(0, "held-out pairs"))
                gaps = gap_test(self.model, pairs, GAP_LEVELS, self.rng(0, "gap test"), cache.source.n_families)
            one = gaps[GAP_LEVELS.index(LOGGED_LEVEL)]
            levels = {f"gap_{gap.alpha_bar:g}": gap.gap for gap in gaps}
            self.metrics = {"gap": one.gap, "psnr_true": one.true, "psnr_shuffled": one.shuffled, **levels}
            folders.save(self.model, folder / "model", cameras(cache))
            with self.autocast():
                self.write_sheet(folder / "samples.png")

    def write_sheet(self, path: Path) -> None:
        """Write an image with two rows per held-out scene, both of which start with the condition view.

        The first row continues with sampled views, the second with the true views of the same cameras.
        """
        cache, model, scale = self.cache, self.model, self.options.guidance_scale
        scenes = range(cache.train, cache.train + min(SHEET_SCENES, cache.held_out))
        truth = [once_around(cache.source.scene(scene), SHEET_VIEWS + 1) for scene in scenes]
        x = model.encode_images(torch.cat([views.images[:1] for views in truth]).to(self.device))[:, None]
        c2w = torch.stack([views.cameras.c2w for views in truth]).to(self.device)
        K = torch.stack([views.cameras.K[0] for views in truth]).to(self.device)
        rngs = [generator(self.seed, scene, "sheet") for scene in scenes]
        poses = (c2w[:, :1], c2w[:, 1:])
        samples = sampler.sample_views(model, x, *poses, K, rngs, steps=SHEET_STEPS, guidance_scale=scale)
        rows, count = list[Tensor](), len(truth[0])
        for views, sampled in zip(truth, samples, strict=True):
            rows += [views.images[:1], model.decode_images(sampled).float().cpu(), views.images]
        labels = ["given", *["sampled"] * (count - 1), "given", *["true"] * (count - 1)] * len(truth)
        write_png(path, grid(enlarge_small(torch.cat(rows)), count, labels))


def rate_factor(warmup: float, decay: float, max_steps: int) -> Callable[[int], float]:
    """Return a learning rate schedule: a function from the step to a factor in [0, 1].

    The factor rises linearly to 1 over the first `warmup` steps, and falls linearly to 0 over the last fraction `decay`
    of the `max_steps` steps. `decay` 0: it does not fall.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
        left = (max_steps - step) / (decay * max_steps) if decay > 0 else 1.0
        return min(rise, max(0.0, left))

    return factor


def cameras(cache: PairCache, scenes: int = 16) -> CamerasConfig:
    """Measure the cameras of the first `scenes` held-out scenes, to store the result with the trained model.

    The result has the ranges of elevation (degrees) and of distance from the origin (world units), and the mean focal
    length as a multiple of the image side. The task "image-to-3d" reads it.
    """
    views = cache.source.views
    held_out = np.arange(cache.train, cache.train + min(scenes, cache.held_out))
    _, pose, K = cache.views(np.repeat(held_out, views), np.tile(np.arange(views), len(held_out)))
    position = pose[:, :3, 3]
    distance = position.norm(dim=-1)
    elevation = torch.rad2deg(torch.asin((position[:, 2] / distance.clamp(min=1e-9)).clamp(-1, 1)))
    low, high = float(elevation.min()), float(elevation.max())
    near, far = float(distance.min()), float(distance.max())
    size = cache.size
    return CamerasConfig(elevation=(low, high), distance=(near, far), focal=float(K[:, 1, 1].mean()) / size)


def train(task: Task) -> Status:
    config: TrainThreeDiMConfig = task.config
    model = build(config)
    with writing(task.folder):
        system = PairSystem(config, model, pair_cache(config, model, task.folder / "bank"))
    return task.train(system, metrics=("gap",), finish=lambda: system.metrics)


def build(config: TrainThreeDiMConfig) -> XUNet | LatentPairs:
    """Return the model to train, which `config.model` selects: an X-UNet on pixels, or a prior's UNet on latents.

    X-UNet is the network of 3DiM. The weights are loaded from `config.model.start`. If this is None, which only the
    X-UNet permits, they are random. Raises ConfigError if the weights are missing or do not fit.
    """
    if isinstance(config.model, PixelsConfig):
        if config.model.start is not None:
            return load_start(config.model.start, config.model.network)
        seed_networks(config.seed, "novel views")
        return XUNet(config.model.network)
    return LatentPairs(MVDream.load(config.model.start))


def load_start(weights: str, network: XUNetConfig) -> XUNet:
    """Load a trained network on pixels. `weights` is "embedded" (comes with threedgen) or a trained model's folder.

    Raises ConfigError if the model works on latents, or if its options differ from `network`.
    """
    model, _ = folders.load(weights)
    if not isinstance(model, XUNet):
        raise ConfigError("is a model on latents; choose one on pixels", "model.start", weights)
    for name, wanted in network:
        found = getattr(model.config, name)
        if found != wanted:
            raise ConfigError(f"should be {found}, as in model.start", f"model.network.{name}", wanted)
    return model


def pair_cache(config: TrainThreeDiMConfig, model: XUNet | LatentPairs, folder: Path) -> PairCache:
    """Return the disk cache, in `folder`, of the views of all scenes, from which pairs of views are read.

    The model is trained on pairs of views of one scene: it predicts the second view from the first. Validation uses
    such pairs of other scenes. The views are stored as latents if `model` works on latents, else as images.
    """
    size = model.image_size[0]
    source = registry.build("pair-source", config.data, size, config.seed)
    encoder = () if isinstance(model, XUNet) else (model.encode_images, f"VAE {digest(model.prior.vae)}")
    return PairCache(folder, source, size, config.data.held_out, *encoder)


run = partial(run_task, train, result="model", files=("model/config.json", "samples.png"))
