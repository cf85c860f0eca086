"""LightningModules that train the UNet of a 2D model (generates single images) or of a multi-view prior."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.data.assets.source import AssetViews
from threedgen.data.latent_cache import ExampleSource, LatentCache, choose_by_share, sample_entries
from threedgen.evaluation.features import FeatureNetwork
from threedgen.geometry.images import grid, to_uint8
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.attention.joined import SEPARATE_LEVELS, camera_vector
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.arrays import Array
from threedgen.run.dtypes import autocast_bf16
from threedgen.run.seeding import generator, numpy_generator
from threedgen.systems.train.denoising import Batch, DenoisingSystem, Sheet, drop_captions
from threedgen.toybox.data.pictures import ViewRings

from .options import DiffusionConfig, MultiviewDiffusionConfig, TrainBaseConfig, TrainOwnPriorConfig, TrainPriorConfig
from .text_encoder import vocabulary_digest

CODE_NOISE = 0.3
"""Standard deviation of the noise that training adds to object codes, vectors of what a caption leaves unspecified.

Without noise, the codes have the standard deviation 1."""
SHEET_PROMPTS = (
    "a blue dog wearing a red hat",
    "a yellow car with black wheels",
    "a white house with a red roof",
    "a green robot wearing a purple scarf",
    "a pink teapot",
    "a brown chair",
    "a red penguin",
    "a grey wizard",
    "a blue room with a red sofa and a window",
    "a yellow room with a green bed, a brown door and a purple lamp",
    "the corner of a green room",
    "a pink room with a blue floor and a black table",
)
"""Prompts of the sample sheet. A multi-view prior samples only the first eight, which are objects, not rooms."""


@lru_cache(20_000)
def _part_weights(source: ViewRings, index: int, size: int) -> Array:
    return source.part_weights(index, size)


def objects_of(images: int, n_view: int) -> int:
    """Return the smallest number of objects, with `n_view` images each, that have at least `images` images in all."""
    return -(-images // n_view)


class PriorSystem(DenoisingSystem):
    """LightningModule that trains a UNet on single images and views of objects (MVDream, arXiv 2308.16512, section 3).

    All processes sample the same batch, and each process trains on an equal part of it. The number of processes
    therefore changes the result only by rounding. `setup` raises ConfigError if they cannot share the batch equally.

    Args:
        config: config of the run.
        prior: model whose UNet is trained in place.
        caches: pairs (share of the steps, disk cache of latents on which these steps train). The shares sum to 1.
    """

    stage = "UNet"
    options: DiffusionConfig
    object_codes = 0.0

    def __init__(
        self,
        config: TrainBaseConfig | TrainPriorConfig | TrainOwnPriorConfig,
        prior: LatentDiffusion,
        *caches: tuple[float, LatentCache],
    ) -> None:
        super().__init__(config, prior, vocabulary=vocabulary_digest(prior.tokenizer))
        self.options, self.caches = config.training, caches
        self.timestep_power = self.options.timestep_power
        self.timestep_logit_normal = self.options.timestep_logit_normal
        if isinstance(self.options, MultiviewDiffusionConfig):
            self.view_noise, self.object_codes = self.options.view_noise, self.options.object_codes
            if self.view_noise.companions:
                prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
        prior.unet.register_to_config(sample_size=prior.image_size // prior.factor)  # so that it is saved and loaded
        self.n_view = max((cache.source.n_view for _, cache in caches), default=1)
        self.unet = prior.unet.requires_grad_(True).train()
        self.keep_average(self.unet, self.options.ema)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        count, batch = self.process[1], self.options.batch
        if any(objects_of(batch, cache.source.n_view) % count for _, cache in self.caches):
            problem = f"cannot be shared equally by {count} processes. Set a multiple of {count * self.n_view}"
            raise ConfigError(f"{problem}, or another trainer.devices", "training.batch", batch)

    def elementwise(self) -> Iterable[Tensor]:
        return (self.unet.conv_out.weight,)  # its rows are latents, not features

    def mean_of_processes(self, loss: Tensor) -> float:
        own = loss.detach().clone()
        return float(own if self.process[1] == 1 else self.trainer.strategy.reduce(own, reduce_op="mean"))

    def rng(self, step: int, purpose: str) -> torch.Generator:
        return generator(self.seed, step, purpose)  # equal in all processes

    def numpy_rng(self, step: int, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, step, purpose)

    def entries(self, step: int, n_view: int, share: float) -> Array:
        """Sample the indices (n,) of the cache entries for training step ``step``: new entries first, then older ones.

        An entry has ``n_view`` images. The older entries are random entries of a pool, which grows: the new entries of
        a step join it after the step. When the pool is full, no entry is new. Training options set the sizes, as
        numbers of images, which are divided by ``n_view`` and rounded up: ``batch`` gives n, ``fresh`` the new entries
        per step, ``first`` the pool at the first step, and ``pictures`` the full pool.

        ``share``, in [0, 1], is the share of the steps that use this cache; the others use other caches. The pool is
        therefore taken to have grown in ``step`` * ``share`` earlier steps, rounded down.
        """
        o, rng = self.options, self.numpy_rng(step, "pictures")
        numbers = (objects_of(number, n_view) for number in (o.batch, o.pictures, o.first, o.fresh))
        return sample_entries(rng, int(step * share), *numbers)

    def fill(self, cache: LatentCache, chosen: Array) -> None:
        """Make missing entries of a cache, so that processes that train together share this work.

        `chosen`, indices (n,), are the entries that all processes need next. To make an entry is to render its images
        and to encode them by the VAE. Each process makes a part of the entries that `cache` lacks, and waits until all
        are made. With one process the method does nothing: the cache makes missing entries when they are read.
        """
        if self.process[1] > 1:
            self.trainer.strategy.barrier()  # so that all find the same entries missing
            cache.prepare(chosen, self.process)
            self.trainer.strategy.barrier()

    def batch(self, step: int) -> Batch:
        o, rng, gen = self.options, self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        share, cache = choose_by_share(self.caches, self.numpy_rng(step, "mode").random())
        n_view, part = cache.source.n_view, slice(self.process[0], None, self.process[1])
        chosen = self.entries(step, n_view, share)
        self.fill(cache, chosen)
        dropped = [rng.random() < o.no_text for _ in chosen]
        t, noise = (x[part].flatten(0, 1) for x in self.sample_noise(step, (len(chosen), *cache.latent_shape), gen))
        weights = self.part_weights(cache.source, chosen, cache.latent_shape[-1])  # of all, as their mean is 1
        chosen = chosen[part]
        captions, z = drop_captions(cache.captions(chosen), dropped[part]), cache.latents(chosen)
        camera = camera_vector(cache.c2w(chosen).flatten(0, 1)).to(self.device) if n_view > 1 else None
        with autocast_bf16(self.device):
            text = self.model.encode_prompt(captions)
        if camera is not None and self.model.has_code:
            text = self.with_codes(text, z, cache.c2w(chosen), len(dropped), self.rng(step, "codes"))
        text = text.repeat_interleave(n_view, 0)
        weights = None if weights is None else weights[part].flatten(0, 1).to(self.device)
        return Batch(z.flatten(0, 1), t, noise, text, {"camera": camera, "n_view": n_view}, weights)

    def part_weights(self, source: ExampleSource, chosen: Array, size: int) -> Tensor | None:
        """Return loss weights (n, V, 1, size, size) of the latents of n entries with V views each, mean 1.

        Small parts of toybox objects, such as eyes, get larger weights. None: `source` knows no parts of its images.
        """
        if not isinstance(source, ViewRings):
            return None
        weights = torch.from_numpy(np.stack([_part_weights(source, int(k), size) for k in chosen]))
        return weights[:, :, None] / weights.mean()

    def with_codes(self, text: Tensor, z: Tensor, c2w: Tensor, total: int, rng: torch.Generator) -> Tensor:
        """Return the text embeddings `text` (n, L, D) of n captions with object codes as their last tokens.

        An object code is a vector of length D for what a caption leaves unspecified; it replaces the last of the L
        tokens. The n captions are the part of this process of a batch of `total` captions, for which `rng` is equal in
        all processes. Each caption has a code with the probability `object_codes` (training option). The prior computes
        it from the clean latents `z` (n, V, C, h, w) of V views of the object and their camera-to-world poses `c2w` (n,
        V, 4, 4), OpenGL axes; Gaussian noise of standard deviation 0.3 is added to this code. The last token of the
        other captions is zero.
        """
        coded = self.model.encode_code(text, z.to(self.device), c2w)
        code = coded[:, -1:]
        part = slice(self.process[0], None, self.process[1])
        noise = torch.randn(total, *code.shape[1:], generator=rng)[part].to(code)
        known = torch.rand(total, 1, 1, generator=rng)[part] < self.object_codes
        code = (code + CODE_NOISE * noise) * known.to(code)
        return torch.cat([coded[:, :-1], code], 1)

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        with autocast_bf16(self.device):
            return self.model.predict(x, t, batch.text, **batch.condition).float()

    def training_step(self, batch: int, index: int) -> Tensor:
        made = self.batch(int(batch))
        loss = self.denoising_loss(made)
        name = "loss_2d" if made.condition["camera"] is None else "loss_3d"
        others = {key: value for key, value in self.metrics.items() if "loss" not in key}
        self.metrics = others | {name: self.mean_of_processes(loss)}
        return loss

    def save(self, folder: Path) -> None:
        self.model.save(folder / ("prior" if self.model.needs_camera else "base"))

    def sample_sheet(self) -> Sheet:
        """Sample images of `SHEET_PROMPTS` for the sample sheet, an image that shows the progress of the training.

        Returns the images, four per row, each with its prompt as the label. A 2D model samples one image per prompt. A
        multi-view prior samples `n_view` views around the object, and only for the first eight prompts, which are
        objects, not rooms.
        """
        n_view, c2w = self.n_view, None
        prompts = SHEET_PROMPTS[:8] if n_view > 1 else SHEET_PROMPTS
        if n_view > 1:
            azimuth = torch.deg2rad(20 + torch.arange(n_view) * 360 / n_view)
            c2w = orbit_c2w(torch.full((n_view,), 0.26), azimuth, torch.full((n_view,), 2.6))
        images = [image for k, prompt in enumerate(prompts) for image in self.sample(k, prompt, c2w)]
        return Sheet(images, 4, [prompt for prompt in prompts for _ in range(n_view)])

    def sample(self, number: int, prompt: str, c2w: Tensor | None) -> Tensor:
        """Sample views (V, H, W, 3) in [0, 1] of a prompt from the model in training.

        `number` seeds the noise. `c2w` (V, 4, 4) are camera-to-world poses, OpenGL axes; None: one image (1, H, W, 3)
        without a camera.
        """
        rng = self.rng(number, "sheet")
        return self.model.sample(prompt, c2w, steps=30, guidance_scale=4.0, generator=rng)


class OwnPriorSystem(PriorSystem):
    """LightningModule that trains a multi-view prior (diffusion model) on renders of the user's 3D assets.

    The sample sheet, an image that is written during the training, has renders of held-out assets beside samples of
    their captions from the same cameras. The FID between these renders and samples is logged as `fid`. It is computed
    from few images, so compare its values only within one run.

    Args:
        config: config of the run.
        prior: model whose UNet is trained in place.
        shown: source of the renders of held-out assets, with captions and cameras; None: no sheet and no FID.
        caches: pairs (share of the steps, disk cache of latents on which these steps train). The shares sum to 1.
    """

    features: FeatureNetwork

    def __init__(
        self, config: TrainOwnPriorConfig, prior: MVDream, shown: AssetViews | None, *caches: tuple[float, LatentCache]
    ) -> None:
        super().__init__(config, prior, *caches)
        self.shown = shown
        self.set_unregistered(features=registry.build("features", config.features) if shown else None)

    def sample_sheet(self) -> Sheet:
        if self.shown is None:
            return Sheet((), 1, ())
        count, size = len(self.shown.entries), self.model.image_size
        truth = self.shown.render_examples(range(count), size)
        c2w = torch.from_numpy(truth.c2w).unflatten(0, (count, -1))
        sampled = [self.sample(k, caption, c2w[k]) for k, caption in enumerate(truth.captions)]
        views, renders = to_uint8(torch.stack(sampled)), to_uint8(truth.rgb).reshape(count, -1, size, size, 3)
        self.metrics["fid"] = self.features.fid(*(torch.from_numpy(x).flatten(0, 1) for x in (views, renders)))
        strips = [grid(rows[k], self.shown.n_view) for k in range(count) for rows in (renders, views)]
        return Sheet(strips, 2, [text for caption in truth.captions for text in (caption, "sample")])
