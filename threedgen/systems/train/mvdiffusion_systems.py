"""LightningModules of the two stages of the task train-mvdiffusion, and the cached training data that they use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from threedgen.data.latent_cache import SceneCache, available_entries, choose_by_share, sample_entries
from threedgen.guidance.losses.lora import LoRA
from threedgen.guidance.priors.mvdiffusion import weights
from threedgen.guidance.priors.mvdiffusion.geometry import Geometry, Scenes
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels, given_condition
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.sampling import Size
from threedgen.run.arrays import Array

from .denoising import Batch, DenoisingSystem, Sheet
from .masks import MaskCache
from .options import SingleViewConfig, TrainMVDiffusionConfig, ViewsConfig

RESULT = "blocks.safetensors"
KEPT_GEOMETRIES = 64
SHEET_SCENES, SHEET_STEPS = 2, 30


@dataclass(frozen=True)
class SceneData:
    """Disk caches of the training data of all scenes at one image size (full or half).

    Their methods return the VAE latents and captions of views for given indices. The first stage of the training is a
    LoRA on single views, the second stage the attention between views.

    Attributes:
        cache: all views of each scene, with their captions and cameras and, if the scenes have it, depth.
        masks: for the first stage of an inpainting model: each view, whole and with a random grey hole. None for other
            models.
        photos: for the second stage of an inpainting model: the first view of each scene, whole and with grey around a
            central rectangle, which stands for a user's photo. A quarter of the views have no grey. None for other
            models.
    """

    cache: SceneCache
    masks: MaskCache | None = None
    photos: MaskCache | None = None


DataBySize = Sequence[tuple[float, SceneData]]
"""Pairs (fraction of the steps, training data at one image size): full size first, then possibly half size."""


class MVDiffusionSystem(DenoisingSystem):
    """Base class of the LightningModules of train-mvdiffusion, for both stages: single views, attention between views.

    It samples the image size of a step, full or half (`choose_image_size`). A subclass sets `data`, which has the
    training data of each image size, and defines `batch(step)`, which returns the `Batch` of a step.
    """

    model: MVDiffusion
    data: DataBySize

    def choose_image_size(self, step: int) -> tuple[float, SceneData]:
        """Sample the image size of a step, full or half. Return its probability, and all training data of this size.

        The probability times `step` estimates how many earlier steps had the same image size. Callers compute from this
        number how many cached scenes the step can use.
        """
        return choose_by_share(self.data, self.numpy_rng(step, "size").random())

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        return self.model.output(x, t, batch.text, **batch.condition)


class SingleViewSystem(MVDiffusionSystem):
    """LightningModule of the first stage of train-mvdiffusion, on single views, without attention between views.

    It trains the LoRA `lora`, and the whole first convolution of the UNet, which may have more input channels than the
    2D model (depth, or a mask and the latents of the known part).
    """

    stage = "single views"

    def __init__(
        self, config: TrainMVDiffusionConfig, stage: SingleViewConfig, model: MVDiffusion, data: DataBySize, lora: LoRA
    ) -> None:
        super().__init__(stage, model, config.seed, stage.max_steps)
        self.options, self.views_options, self.data = stage, config.training, data
        model.unet.requires_grad_(False)
        model.unet.conv_in.requires_grad_(True)
        self.learning = nn.ModuleDict({"conv_in": model.unet.conv_in, "lora": lora}).train()

    def batch(self, step: int) -> Batch:
        rng, count = self.numpy_rng(step, "choices"), self.options.batch
        (share, data), entries = self.choose_image_size(step), self.views_options
        available = available_entries(int(step * share), data.cache.count, entries.first, entries.fresh)
        if data.masks is None:
            z, extra, captions = sample_views(data.cache, rng, available, count)
        else:
            z, extra, captions = data.masks.sample(rng, available * data.cache.n_view, count)
        t, noise = (x.flatten(0, 1) for x in self.sample_noise(step, z[:, None].shape, self.rng(step, "diffusion")))
        condition = {"image_channels": None if extra is None else extra.to(self.device)}
        return Batch(z, t, noise, self.model.encode_prompt(captions), condition)


def sample_views(
    cache: SceneCache, rng: np.random.Generator, available: int, count: int
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Sample n = `count` single views of the first `available` scenes, with replacement.

    Returns latents (n, C, h, w); inverse depth (n, 1, h, w), scaled to [-1, 1] in each view (-2: unknown), or None for
    scenes without depth; and n captions.
    """
    scenes, views = rng.integers(0, available, count), rng.integers(0, cache.n_view, count)
    z = cache.latents(scenes)[range(count), views]
    captions = [texts[view] for texts, view in zip(cache.captions(scenes), views, strict=True)]
    depth = cache.depth(scenes)[range(count), views] if cache.has_depth else None
    return z, None if depth is None else depth_channels(depth, *z.shape[-2:]), captions


class ViewsSystem(MVDiffusionSystem):
    """LightningModule of the second stage of train-mvdiffusion. It trains the attention between the views of a scene.

    If the network has a branch for known views (clean images on which the other views are conditioned), this is trained
    too.

    Args:
        config: options of the task.
        model: MVDiffusion model: a UNet, which stays frozen in this stage, and the attention blocks to train.
        data: pairs (fraction of the steps, training data of one image size).
        difference: tensors {name: tensor} that are saved with the trained blocks: the frozen UNet's first convolution
            and its LoRA matrices, in which it differs from the 2D model. None: the whole UNet is saved instead; this is
            for a UNet from a file that has a whole UNet.
        lora: LoRA of the first stage, attached to the UNet; None without a first stage.
        metadata: values that the checkpoints store, such as the hash of a file of initial weights. A run resumes only
            from a checkpoint with equal values.
    """

    stage = "views"
    options: ViewsConfig
    difference: Mapping[str, Tensor] | None
    lora: LoRA | None

    def __init__(
        self,
        config: TrainMVDiffusionConfig,
        model: MVDiffusion,
        data: DataBySize,
        difference: Mapping[str, Tensor] | None,
        lora: LoRA | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(config, model, None, None, **metadata)
        assert model.multiview is not None
        self.config, self.options, self.data = config, config.training, data
        self.cache = data[0][1].cache
        model.unet.requires_grad_(False)
        self.blocks = nn.ModuleDict(model.multiview.new_blocks)
        self.keep_average(self.blocks, self.options.ema)
        self.geometry = lru_cache(KEPT_GEOMETRIES)(self._geometry)
        self.unknown_view = lru_cache(self._unknown_view)
        self.set_unregistered(difference=difference, lora=lora)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.lora is not None:  # the first stage left it on the CPU
            self.lora.to(self.device)

    def batch(self, step: int) -> Batch:
        o, model = self.options, self.model
        share, data = self.choose_image_size(step)
        available = (self.cache_step(step, share), o.batch, self.cache.count, o.first, o.fresh)
        chosen = sample_entries(self.numpy_rng(step, "scenes"), *available)
        z = data.cache.latents(chosen)
        extra, condition = self.image_conditions(data, chosen, z)
        t, noise = (x.flatten(0, 1) for x in self.sample_noise(step, z.shape, self.rng(step, "diffusion")))
        captions = [text for scene in data.cache.captions(chosen) for text in scene]
        tensors = {"image_channels": extra, "known_views": condition if model.has_condition_branch else None}
        moved = {name: None if tensor is None else tensor.to(self.device) for name, tensor in tensors.items()}
        geometry = Scenes([self.geometry(int(k) if self.cache.has_depth else 0) for k in chosen])
        return Batch(z.flatten(0, 1), t, noise, model.encode_prompt(captions), {"geometry": geometry, **moved})

    def image_conditions(
        self, data: SceneData, chosen: Sequence[int] | Array, z: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return two image inputs of the network, extra channels and known views, for the F views of each of n scenes.

        Args:
            data: cached training data.
            chosen: n scene indices.
            z: clean latents (n, F, C, h, w) of the views.

        Returns:
            Extra channels (n F, E, h, w), which the network concatenates to the noisy latents. They depend on the
                variant of the network. "depth": E = 1, the inverse depth, scaled to [-1, 1] in each view (-2: unknown).
                "outpaint": E = 1 + C, a mask (1 where unknown), then latents of the view with grey unknown pixels. The
                first view is known, usually in part, and the others are unknown. "panorama" (text only): None.
            Known views (n F, C + 1, h, w), clean views on which the network conditions the others. Only for the variant
                "depth", if the scenes mark some of their views as known; else None. A known view has C channels of
                clean latents and a channel of ones; other views are all 0.
        """
        if data.photos is not None:
            extra = self.unknown_view(data.cache.encoded_size).repeat(len(chosen), data.cache.n_view, 1, 1, 1)
            extra[:, 0] = data.photos.extra(chosen)
            return extra.flatten(0, 1), None
        if not data.cache.has_depth:
            return None, None
        parts = (z, data.cache.depth(chosen), data.cache.condition_mask(chosen))
        z, depth, mask = (part.flatten(0, 1) for part in parts)
        return depth_channels(depth, *z.shape[-2:]), given_condition(z, mask) if mask.any() else None

    def _unknown_view(self, size: Size) -> Tensor:
        return self.model.masked_extra(torch.zeros(1, *size, 3), torch.zeros(1, dtype=torch.bool))[0].cpu()

    def _geometry(self, scene: int) -> Geometry:
        depth = self.cache.depth([scene])[0] if self.cache.has_depth else None
        return self.model.geometry(self.cache.cameras(scene), depth)

    def save(self, folder: Path) -> None:
        assert self.model.multiview is not None
        weights.save_blocks(folder / RESULT, self.model.multiview, self.difference)

    def sample_sheet(self) -> Sheet:
        """Return the sample sheet: rows with the true views of training scenes, each above a row of samples."""
        cache, model, images, labels = self.cache, self.model, list[Tensor](), list[str]()
        by_size = {data.cache.encoded_size: data for _, data in self.data}

        def conditions(scene: int, size: Size) -> tuple[Tensor | None, Tensor | None]:
            return self.image_conditions(by_size[size], [scene], by_size[size].cache.latents([scene]))

        for scene in range(min(SHEET_SCENES, cache.count)):
            z, captions, rng = cache.latents([scene]), cache.captions([scene])[0], self.rng(scene, "sheet")
            views = (self.geometry(scene if cache.has_depth else 0), cache.size, partial(conditions, scene))
            samples = model.sample_views(captions, *views, SHEET_STEPS, self.options.guidance_scale, generator=rng)
            images += [*model.decode_latents(z[0]).float().cpu(), *samples]
            labels += [*captions, *captions]
        return Sheet(images, cache.n_view, labels)
