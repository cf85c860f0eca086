"""Denoising training of latent diffusion models: the step, the noise levels and the validation of every kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import Config, Scheduled, at
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.run.arrays import Array
from threedgen.train.system import AveragedSystem, sample_timesteps

from .options import ViewNoiseConfig

COMPANION_MAX = 0.3
"""Companions get t = COMPANION_MAX T u^2 with u uniform."""


@dataclass(frozen=True)
class Batch:
    """Images of a training step, on any device.

    Attributes:
        latents: clean latents (B, C, h, w).
        t: time steps (B,), int64.
        noise: unit Gaussian noise, like `latents`.
        text: encoded captions (B, L, D).
        condition: further arguments of the network, by name.
        weights: weights (B,) of the squared errors; None: all equal.
    """

    latents: Tensor
    t: Tensor
    noise: Tensor
    text: Tensor
    condition: dict[str, Any] = field(default_factory=dict)
    weights: Tensor | None = None


class Sheet(NamedTuple):
    """Images (H, W, 3) of a sample sheet, row by row, with their labels."""

    images: Sequence[Tensor | Array]
    columns: int
    labels: Sequence[str]


class DenoisingSystem(AveragedSystem):
    """Base of the systems that train parts of a latent diffusion model to denoise.

    A subclass defines the data and conditions of a step (`batch`), registers the modules that train, and may define the
    network call (`predict`), the weight files (`save`) and the sample sheet (`sample_sheet`). `model` itself is not
    registered: its other networks are frozen and in no checkpoint.
    """

    model: LatentDiffusion
    timestep_power: Scheduled = 1.0
    view_noise = ViewNoiseConfig()

    def __init__(
        self,
        config: Config,
        model: LatentDiffusion,
        seed: int | None = None,
        max_steps: int | None = None,
        **facts: str,
    ) -> None:
        super().__init__(config, seed, max_steps, **facts)
        self.set_unregistered(model=model)

    def setup(self, stage: str) -> None:
        self.model.to(self.device)

    def batch(self, step: int) -> Batch:
        """Return the data of a step."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Return the output of the network (B, C, h, w), float32, for noisy latents `x` at time steps `t`."""
        return self.model.network(x, t, batch.text, **batch.condition)

    def training_step(self, batch: int, index: int) -> Tensor:
        loss = self.denoising_loss(self.batch(int(batch)))
        self.metrics = {"loss": float(loss.detach())}
        return loss

    def denoising_loss(self, batch: Batch) -> Tensor:
        """Return the mean squared error of the network's output (eps or v) at the batch's noise."""
        schedule = self.model.schedule.to(self.device)
        z, t, noise = (part.to(self.device) for part in (batch.latents, batch.t, batch.noise))
        output = self.predict(schedule.add_noise(z, noise, t), t, batch)
        target = schedule.target(z, noise, t)
        if batch.weights is None:
            return F.mse_loss(output, target)
        return (batch.weights * (output - target).square().mean((1, 2, 3))).mean()

    def sample_noise(self, step: int, shape: Sequence[int], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sample time steps (N, V) and unit Gaussian noise for latents of `shape` (N, V, C, h, w)."""
        power = float(at(self.timestep_power, step, self.max_steps))
        t = view_timesteps(shape[0], shape[1], self.model.schedule.T, power, self.view_noise, rng)
        return t, torch.randn(*shape, generator=rng)

    def validate(self, step: int, folder: Path) -> None:
        """Write the averaged weights and the sample sheet."""
        with self.average_applied():
            self.save(folder)
            sheet = self.sample_sheet()
        if sheet.images:
            write_png(folder / "samples.png", grid(*sheet))

    def save(self, folder: Path) -> None:
        """Write the trained weights. Called with the average applied."""

    def sample_sheet(self) -> Sheet:
        """Return the images of samples.png; none: no sheet."""
        return Sheet((), 1, ())


def drop_captions(captions: Sequence[str], dropped: Iterable[bool]) -> list[str]:
    """Replace captions by the empty one where `dropped` is true."""
    return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]


def view_timesteps(
    objects: int, n_view: int, T: int, power: float, options: ViewNoiseConfig, rng: torch.Generator
) -> Tensor:
    """Sample time steps (objects, n_view), int64 in [0, T), for the views of each object.

    Each object is of one of three kinds, with the shares in `options`: independent levels per view; low noise in 1 to
    n_view - 1 views and one level in the others; one level in all views. With equal levels a view needs no other view;
    views with low noise teach it to attend to them (Chen et al. 2024, "Diffusion Forcing", arXiv 2407.01392).
    """
    equal = sample_timesteps(objects, T, power, rng)[:, None].expand(-1, n_view)
    if n_view == 1 or not (options.independent or options.companions):
        return equal.clone()
    independent = (T * torch.rand(objects, n_view, generator=rng) ** power).long().clamp(max=T - 1)
    order = torch.rand(objects, n_view, generator=rng).argsort(1)
    count = torch.randint(1, n_view, (objects, 1), generator=rng)
    low = (COMPANION_MAX * T * torch.rand(objects, n_view, generator=rng) ** 2).long()
    kind = torch.rand(objects, 1, generator=rng)
    is_independent = kind < options.independent
    has_companions = (kind >= options.independent) & (kind < options.independent + options.companions)
    return torch.where(is_independent, independent, torch.where(has_companions & (order < count), low, equal))
