"""What learns in MV-Adapter (arXiv 2412.03632, sections 4 and A.2): branches of attention and the condition guider,
around a frozen 2D model.

All views of an object share a noise level of the shifted schedule, and each has noise of its own. Text, picture, or
both are left out of some objects, so that guidance has something to compare with; a picture that is left out is zeros
in the place of its features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.data.bank import LatentBank, choose_by_share, sample_entries
from threedgen.data.object_views import ObjectViews
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.guidance import Features
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.mvadapter.pictures import GREY
from threedgen.guidance.mvadapter.weights import save_adapter
from threedgen.run.arrays import Array
from threedgen.train.system import AveragedSystem, sample_timesteps

from .options import AdapterTrainingConfig, TrainMVAdapterConfig

RESULT = "adapter.safetensors"


def denoising_loss(output: Tensor, target: Tensor, weights: Tensor | float) -> Tensor:
    """The mean of squared errors of B pictures (B,C,h,w), each times its weight (B,)."""
    return (weights * (output - target).square().mean((1, 2, 3))).mean()


def left_out(rng: np.random.Generator, count: int, shares: tuple[float, float, float]) -> tuple[Array, Array]:
    """Of which of ``count`` objects the text, and of which the picture is left out.

    Three independent draws with ``shares``: of text, of pictures, of both.
    """
    text, picture, both = (rng.random(count) < share for share in shares)
    return text | both, picture | both


class AdapterSystem(AveragedSystem):
    """The new parts of ``network``, which is that of ``model``.

    banks: the same objects in one size or two, with the share of the steps that see it, that of the model first.
    ``held_out``: what the sample sheet shows.
    """

    stage = "adapter"
    options: AdapterTrainingConfig
    model: MVAdapter
    network: AdaptedUNet

    def __init__(
        self,
        config: TrainMVAdapterConfig,
        model: MVAdapter,
        network: AdaptedUNet,
        banks: Sequence[tuple[float, LatentBank]],
        objects: ObjectViews,
        held_out: ObjectViews,
    ) -> None:
        super().__init__(config)
        self.config, self.options, self.banks = config, config.training, banks
        self.objects, self.held_out = objects, held_out
        self.parts = network.new_parts
        self.keep_average(self.parts, self.options.ema)
        self.set_unregistered(model=model, network=network)

    def setup(self, stage: str) -> None:
        self.model.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, model = int(batch), self.options, self.model
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        share, bank = choose_by_share(self.banks, self.numpy_rng(step, "size").random())
        known = (int(step * share), o.batch, bank.count, o.first, o.fresh)
        chosen = sample_entries(self.numpy_rng(step, "objects"), *known)
        views = self.views(rng)
        no_text, no_picture = left_out(rng, len(chosen), self.config.dropouts)
        captions = ["" if without else text for text, without in zip(bank.captions(chosen), no_text, strict=True)]
        text, latents = model.encode_prompt(captions), bank.latents(chosen).to(self.device)
        z = latents[:, views].flatten(0, 1)
        t = sample_timesteps(len(chosen), model.schedule.T, 1.0, gen).repeat_interleave(len(views))
        noise = torch.randn(z.shape, generator=gen)
        noise, t, schedule = noise.to(self.device), t.to(self.device), model.schedule.to(self.device)
        seen = self.look_at(latents[:, -1], text, no_picture) if self.objects.reference else None
        control = torch.cat([self.objects.maps(int(index), bank.size)[views] for index in chosen]).to(self.device)
        texts = text.repeat_interleave(len(views), 0)
        out = model.network(schedule.add_noise(z, noise, t), t, texts, control, len(views), seen)
        weights = 1.0 if o.snr_gamma is None else schedule.min_snr_weight(t, o.snr_gamma)
        loss = denoising_loss(out, schedule.target(z, noise, t), weights)
        self.metrics = {"loss": float(loss.detach())}
        return loss

    def views(self, rng: np.random.Generator) -> list[int]:
        """Those of a step."""
        sets = self.options.view_sets
        return list(sets[rng.integers(len(sets))]) if sets else list(range(len(self.objects.sides)))

    def look_at(self, latents: Tensor, text: Tensor, without: Array) -> Features:
        """What the UNet sees of pictures by their latents (n,C,h,w), with text (n,L,D); zeros ``without`` (n,) one."""
        with self.model.autocast():
            features = self.network.reference_features(latents, text)
        kept = torch.from_numpy(~without).to(latents)[:, None, None]
        return {name: kept * tensor for name, tensor in features.items()}

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged adapter and draws samples.png: of each held-out object the truth, then what is drawn; on
        the left the picture that was given, if there is one."""
        o, size, number = self.options, self.banks[0][1].size, self.options.sheet_objects
        cells, labels = [], []
        with self.average.applied(self.parts):
            save_adapter(folder / RESULT, self.network)
            for k in range(number):
                made = self.held_out.block(range(k, k + 1), size)
                truth, picture, nothing = torch.from_numpy(made.rgb), None, torch.zeros(0, size, size, 3)
                if self.held_out.reference:
                    truth, picture, nothing = truth[:-1], truth[-1], torch.full((1, size, size, 3), GREY)
                drawn = self.model.sample_views(
                    made.captions[0],
                    self.held_out.maps(k, size),
                    picture,
                    steps=o.sheet_steps,
                    guidance_scale=o.guidance_scale,
                    negative_prompt="",
                    generator=self.rng(k, "sheet"),
                )
                given = nothing if picture is None else picture[None]
                cells += [given, truth, nothing, drawn]
                labels += [made.captions[0]] * 2 * (len(truth) + len(nothing))
        if cells:
            write_png(folder / "samples.png", grid(torch.cat(cells), self.held_out.n_view, labels))
