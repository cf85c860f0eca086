"""LightningModules that train the coarse predictor of a prior, its sampler of object codes and its view fusion.

The coarse predictor computes latents of a view in one step from caption, camera and object code, as a further input of
the prior's UNet. An object code is a vector of what the caption leaves unspecified. The view fusion refines the
prediction by the noisy latents of all views.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from threedgen.data.latent_cache import LatentCache, choose_by_share
from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.view_fusion import VIEWS
from threedgen.run.arrays import Array
from threedgen.run.dtypes import autocast_bf16
from threedgen.systems.train.denoising import drop_captions, view_timesteps
from threedgen.systems.train.options import ViewNoiseConfig
from threedgen.train.muon import Muon
from threedgen.train.system import AveragedSystem

from .options import CoarseConfig
from .system import CODE_NOISE

TWO_D, NO_TEXT, NO_CODE = 0.03, 0.2, 0.15
"""Training of the coarse predictor: fraction of the steps without cameras, fraction of the captions that are replaced
by "", and fraction of the object codes that are replaced by 0."""
STATED = 0.5
"""Training of the coarse predictor: argument `stated` of `CodedObjects.caption`, the probability that a caption states
all colours."""
WEIGHT_DECAY, EMA_DECAY = 0.05, 0.998
SOURCES, TARGETS, ALL_SOURCES = 3, 3, 0.75
"""Training of the coarse predictor: maximum number of views from which an object code is encoded, number of views that
are predicted per object, and fraction of the steps that encode codes from the maximum number of views."""
OBJECTS, FUSION_OBJECTS, BATCH, LEVELS = 16, 32, 128, 3
"""Batch sizes: objects per training step of the coarse predictor and of the view fusion, captions per training step of
the code sampler, and noise levels per caption in such a step."""
USUAL_VIEWS_SHARE, FUSION_NO_TEXT, FUSION_CODES = 0.75, 0.5, 0.35
"""Training of the view fusion: fraction of the steps with the usual number of views per object (the others have a
random number), and fractions of the coarse predictions that use no caption and that use an object code."""
TIMESTEP_POWER, VIEW_NOISE = 0.7, ViewNoiseConfig(independent=0.25, companions=0.35)
"""Training of the view fusion: exponent of the time steps t = T u^TIMESTEP_POWER, where u is uniform in [0, 1), and
shares of objects whose views have different noise levels."""
FIRST_OBJECTS, NEW_OBJECTS_PER_STEP = 2048, 2
"""Training step s, from 0, samples from the first FIRST_OBJECTS + s * NEW_OBJECTS_PER_STEP objects of the cache."""


class CodedObjects(NamedTuple):
    """Objects on which a coarse predictor and its sampler of object codes are trained.

    A coarse predictor computes latents of a view in one step. An object code is a vector of what the caption of an
    object leaves unspecified.

    Attributes:
        cache: disk cache with the latents and cameras of six views of each object.
        caption: ``caption(index, rng, stated)`` writes a new caption for an object, with random wording and a random
            subset of its colour words. It states all colours with the probability `stated`.
        part_weights: ``part_weights(index)`` returns weights (V, h, h) of the squared errors of the h x h latent pixels
            in the V = 6 cached views of an object, so that small parts count more.
    """

    cache: LatentCache
    caption: Callable[..., str]
    part_weights: Callable[[int], Array]


Parts = Sequence[tuple[float, CodedObjects]]
"""Pairs (share of the training steps, objects on which these steps train); the shares sum to 1."""


class PredictorSystem(AveragedSystem):
    """Base class of the LightningModules that train a coarse predictor or a part of it.

    A subclass implements the training step. A coarse predictor computes the latents of a view in one step, from
    caption, camera and object code: a vector of what the caption leaves unspecified. It has two parts that are trained
    separately: a sampler of object codes, and the view fusion, which corrects predictions with the noisy latents of all
    views.

    `coarse` is the coarse predictor. The frozen text encoder of `prior`, a diffusion model, encodes the captions.
    `cache` is a disk cache with the caption of each object, and the latents and cameras of six views of it. `steps` is
    the number of training steps.
    """

    prior: LatentDiffusion
    predictor: CoarsePredictor

    def __init__(
        self,
        options: CoarseConfig,
        seed: int,
        steps: int,
        coarse: CoarsePredictor,
        prior: LatentDiffusion,
        cache: LatentCache,
    ) -> None:
        super().__init__(options, seed, steps)
        self.options, self.cache = options, cache
        self.set_unregistered(prior=prior, predictor=coarse)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)
        torch.nn.Module.to(self.predictor, self.device)

    def encode_captions(self, captions: list[str], dropped: Array) -> Tensor:
        """Return text embeddings (n, L, D) of n captions, L tokens with D channels, as input of the coarse predictor.

        Captions are replaced by "" where the mask `dropped` (n,) is True. If the embeddings of the prior have an extra
        last token, which is for the object code (vector of what a caption leaves unspecified), this token is left out.
        """
        return self.prior.split_text(self.prior.encode_prompt(drop_captions(captions, dropped)))[1]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        volume = self.predictor.volume
        tables = [] if volume is None else volume.position_weights()
        optimizer = Muon(self.parameters(), 1.0, weight_decay=WEIGHT_DECAY, elementwise=tables)
        return self.scheduled(optimizer, self.options.learning_rate)


class CoarseSystem(PredictorSystem):
    """LightningModule that trains `coarse`, a coarse predictor: it predicts clean latents of a view in one step.

    The inputs of a prediction are a caption, a camera, and an object code: a vector of what the caption leaves
    unspecified. `parts` are pairs (share of the steps, objects on which these steps train). The objects come with a
    disk cache of the latents and cameras of six views of each (`CodedObjects`). Each step writes new captions for its
    objects, instead of those in the cache.

    The object encoder, a part of `coarse` that is trained too, computes the code from three of the six views, in some
    steps from one or two of them. Gaussian noise of standard deviation 0.3 (`CODE_NOISE`) is added to the code. The
    loss is the squared error of the predicted latents of the other three views; small parts of the object have larger
    weights. Some captions, codes and cameras are dropped, so that `coarse` can also predict without them.
    """

    stage = "coarse predictor"

    def __init__(
        self, options: CoarseConfig, seed: int, coarse: CoarsePredictor, prior: LatentDiffusion, parts: Parts
    ) -> None:
        super().__init__(options, seed, options.max_steps, coarse, prior, parts[0][1].cache)
        self.parts = parts
        self.coarse = coarse.requires_grad_(True).train()
        maps = (part for name, part in self.coarse.named_children() if name != "volume")
        torch.nn.ModuleList(maps).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
        self.coarse.sampler.requires_grad_(False)
        if self.coarse.fusion is not None:
            self.coarse.fusion.requires_grad_(False)
        self.keep_average(self.coarse, EMA_DECAY)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        rng, gen = self.numpy_rng(step, "coarse"), self.rng(step, "codes")
        objects = choose_by_share(self.parts, rng.random())[1]
        cache = objects.cache
        chosen = rng.integers(0, min(cache.count, FIRST_OBJECTS + step * NEW_OBJECTS_PER_STEP), OBJECTS)
        z = cache.latents(chosen).to(self.device)
        camera = camera_vector(cache.c2w(chosen).flatten(0, 1)).to(self.device).unflatten(0, z.shape[:2])
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(z.shape[1]), (OBJECTS, 1)), axis=1)).to(self.device)
        count = SOURCES if rng.random() < ALL_SOURCES else int(rng.integers(1, SOURCES))
        rows, source, target = torch.arange(OBJECTS)[:, None], order[:, :count], order[:, SOURCES:]
        target_camera = None if rng.random() < TWO_D else camera[rows, target].flatten(0, 1)
        kept = torch.from_numpy(rng.random((OBJECTS, 1)) >= NO_CODE).to(z)
        with autocast_bf16(self.device), sdpa_kernel(SDPBackend.MATH):  # the fused backward pass is slow on a CPU
            captions = [objects.caption(int(k), rng, STATED) for k in chosen]
            text = self.encode_captions(captions, rng.random(OBJECTS) < NO_TEXT)
            code = self.coarse.encode(z[rows, source], camera[rows, source])
            code = kept * (code + CODE_NOISE * torch.randn(code.shape, generator=gen).to(code))
            text, code = (x.repeat_interleave(TARGETS, 0) for x in (text, code))
            predicted = self.coarse(text, target_camera, code, TARGETS).float()
            weights = torch.from_numpy(np.stack([objects.part_weights(int(k)) for k in chosen])).to(z)
            weights = weights[rows, target].flatten(0, 1)[:, None]
        loss = (weights * (predicted - z[rows, target].flatten(0, 1)).square()).mean() / weights.mean()
        self.metrics = {"coarse": float(loss.detach())} if target_camera is not None else {}
        return loss


class FusionSystem(PredictorSystem):
    """LightningModule that trains the view fusion of `coarse`, a coarse predictor.

    The coarse predictor computes the latents of each view in one step, from caption, camera and object code: a vector
    of what the caption leaves unspecified. The view fusion corrects these predictions with the noisy latents of all
    views of an object, given their cameras. The loss is the squared error of the corrected predictions, with larger
    weights for small parts such as eyes. For about half of the objects, the coarse predictions use no caption, and for
    most no object code, so that the view fusion must use the noisy latents.

    `parts` are pairs (share of the steps, objects on which these steps train).
    """

    stage = "view fusion"

    def __init__(
        self, options: CoarseConfig, seed: int, coarse: CoarsePredictor, prior: LatentDiffusion, parts: Parts
    ) -> None:
        super().__init__(options, seed, options.fusion_steps, coarse, prior, parts[0][1].cache)
        self.parts = parts
        if coarse.fusion is None:
            raise ValueError("the coarse predictor has no view fusion")
        coarse.requires_grad_(False).eval()
        self.fusion = coarse.fusion.requires_grad_(True).train()
        self.fusion.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
        self.keep_average(self.fusion, EMA_DECAY)

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        rng, gen = self.numpy_rng(step, "fusion"), self.rng(step, "views")
        objects = choose_by_share(self.parts, rng.random())[1]
        cache = objects.cache
        chosen = rng.integers(0, min(cache.count, FIRST_OBJECTS + step * NEW_OBJECTS_PER_STEP), FUSION_OBJECTS)
        count = VIEWS if rng.random() < USUAL_VIEWS_SHARE else int(rng.integers(1, SOURCES + TARGETS + 1))
        views = rng.permuted(np.tile(np.arange(SOURCES + TARGETS), (FUSION_OBJECTS, 1)), axis=1)[:, :count]
        rows, z, c2w = np.arange(FUSION_OBJECTS)[:, None], cache.latents(chosen).to(self.device), cache.c2w(chosen)
        camera = camera_vector(c2w.flatten(0, 1)).to(self.device).unflatten(0, z.shape[:2])
        coded = torch.from_numpy(rng.random((FUSION_OBJECTS, 1)) < FUSION_CODES).to(z)
        with torch.no_grad(), autocast_bf16(self.device):
            text = self.encode_captions(cache.captions(chosen), rng.random(FUSION_OBJECTS) < FUSION_NO_TEXT)
            code = self.predictor.encode(z, camera)
            code = coded * (code + CODE_NOISE * torch.randn(code.shape, generator=gen).to(code))
            z, camera = z[rows, views], camera[rows, views]
            text, code = (x.repeat_interleave(count, 0) for x in (text, code))
            coarse = self.predictor(text, camera.flatten(0, 1), code, count).float().view_as(z)
        schedule = self.prior.schedule
        t = view_timesteps(FUSION_OBJECTS, count, schedule.T, TIMESTEP_POWER, VIEW_NOISE, gen).to(z.device)
        noise = torch.randn(z.shape, generator=gen).to(z)
        x = schedule.add_noise(z.flatten(0, 1), noise.flatten(0, 1), t.flatten()).view_as(z)
        with autocast_bf16(self.device):
            fused = self.fusion(x, schedule.noise_level(t), camera, coarse).float()
        weights = torch.from_numpy(np.stack([objects.part_weights(int(k)) for k in chosen])).to(z)[rows, views][
            :, :, None
        ]
        loss = (weights * (fused - z).square()).mean() / weights.mean()
        self.metrics = {"fusion": float(loss.detach())} if count == VIEWS else {}
        return loss


class CodeSystem(PredictorSystem):
    """LightningModule that trains the code sampler of `coarse`: a network that samples an object code for a caption.

    An object code is a vector of what the caption leaves unspecified. `coarse` is a coarse predictor: it computes the
    latents of a view in one step, from caption, camera and object code.

    The code sampler learns by flow matching. Its training targets are codes that the object encoder, a frozen network
    of `coarse`, computes from three views of an object. `objects` are the training objects, with a disk cache of the
    latents and cameras of six views of each. Each step writes new captions for its objects, and trains on three noise
    levels for each code.
    """

    stage = "object codes"

    def __init__(
        self, options: CoarseConfig, seed: int, coarse: CoarsePredictor, prior: LatentDiffusion, objects: CodedObjects
    ) -> None:
        super().__init__(options, seed, options.sampler_steps, coarse, prior, objects.cache)
        self.caption = objects.caption
        coarse.requires_grad_(False).eval()
        self.sampler = coarse.sampler.requires_grad_(True).train()
        self.keep_average(self.sampler, EMA_DECAY)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, cache = int(batch), self.cache
        rng, gen = self.numpy_rng(step, "codes"), self.rng(step, "flow")
        chosen = rng.integers(0, min(cache.count, FIRST_OBJECTS + step * NEW_OBJECTS_PER_STEP), BATCH)
        captions = [self.caption(int(k), rng) for k in chosen]
        views = rng.permutation(SOURCES + TARGETS)[:SOURCES]
        z, c2w = cache.latents(chosen)[:, views].to(self.device), cache.c2w(chosen)[:, views]
        with torch.no_grad(), autocast_bf16(self.device):
            text = self.encode_captions(captions, rng.random(BATCH) < NO_TEXT)
            camera = camera_vector(c2w.flatten(0, 1)).to(self.device).unflatten(0, c2w.shape[:2])
            code = self.predictor.encode(z, camera).repeat_interleave(LEVELS, 0)
        noise = torch.randn(code.shape, generator=gen).to(code)
        t = torch.randn(len(code), generator=gen).sigmoid().to(code)
        with autocast_bf16(self.device), sdpa_kernel(SDPBackend.MATH):
            words = self.sampler.encode_text(text).repeat_interleave(LEVELS, 0)
            velocity = self.sampler(torch.lerp(noise, code, t[:, None]), t, words)
        loss = F.mse_loss(velocity, code - noise)
        self.metrics = {"code": float(loss.detach())}
        return loss
