"""Base LightningModule of all trainings of latent diffusion models: training step, noise levels and validation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from threedgen.config import Config, Scheduled, at
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree
from threedgen.run.memory import to_device
from threedgen.train.system import AveragedSystem, sample_timesteps

from .options import ViewNoiseConfig

COMPANION_MAX = 0.3
"""Upper limit of the low time steps (`companions`) of `view_timesteps`, as a fraction of all T time steps."""


@dataclass(frozen=True)
class Batch:
    """Inputs and noise of a training step for B images, on any device.

    Attributes:
        latents: (B, C, h, w) clean latents, C channels of h x w latent pixels.
        t: (B,) int64 time steps in [0, T), T the number of time steps of the noise schedule.
        noise: (B, C, h, w) unit Gaussian noise.
        text: (B, L, D) encoded captions, D features of each of L tokens.
        condition: further keyword arguments of the network by name, such as "camera" (camera vectors of the images, or
            MV-Adapter's maps of camera rays or mesh geometry).
        weights: weights of the squared errors, (B, 1, h, w) of each latent pixel or (B, 1, 1, 1) of each image; None:
            all are 1.
    """

    latents: Tensor
    t: Tensor
    noise: Tensor
    text: Tensor
    condition: Tree = field(default_factory=dict)
    weights: Tensor | None = None


class Sheet(NamedTuple):
    """Sample sheet: images (H, W, 3) in [0, 1], row by row, with the number of columns and a label for each image."""

    images: Sequence[Tensor | Array]
    columns: int
    labels: Sequence[str]


class DenoisingSystem(AveragedSystem):
    """Base class of the LightningModules that train parts of a latent diffusion model to denoise.

    A subclass registers the modules that train, and defines `batch(step)`, which returns the `Batch` (latents, noise
    and conditions) of a training step. It may override `predict`, which returns the output of the network for noisy
    latents, `save`, which writes the trained weights to a folder, and `sample_sheet`, which returns sample images.

    Attributes:
        model: the diffusion model. It is no registered submodule, so checkpoints do not contain its frozen networks.
        timestep_power: exponent p of random time steps t = T u^p, with T the number of time steps of the noise schedule
            and u uniform in [0, 1); p above 1 favours low noise.
        timestep_logit_normal: (mean, standard deviation) of a normal distribution of logit(t / T), used instead of T
            u^p; None: T u^p.
        view_noise: probabilities that views of one object have different noise levels, see `view_timesteps`.
    """

    model: LatentDiffusion
    timestep_power: Scheduled = 1.0
    timestep_logit_normal: tuple[float, float] | None = None
    view_noise = ViewNoiseConfig()

    def __init__(
        self, config: Config, model: LatentDiffusion, seed: int | None = None, max_steps: int | None = None, **info: str
    ) -> None:
        super().__init__(config, seed, max_steps, **info)
        self.set_unregistered(model=model)

    def setup(self, stage: str) -> None:
        self.model.to(self.device)

    def batch(self, step: int) -> Batch:
        """Return the latents, noise and conditions of the training step with the number `step`."""
        raise NotImplementedError

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """Return the network output (B, C, h, w), float32, for noisy latents `x` (B, C, h, w) and time steps `t` (B,).

        The other inputs of the network are in `batch`.
        """
        return self.model.network(x, t, batch.text, **batch.condition)

    def training_step(self, batch: int, index: int) -> Tensor:
        loss = self.denoising_loss(self.batch(int(batch)))
        self.metrics = {"loss": loss.detach()}
        return loss

    def denoising_loss(self, batch: Batch) -> Tensor:
        """Add noise to the latents of a batch; return the mean squared error of the network's output, a scalar.

        The target of the output is the noise or the velocity v (v-prediction), as the noise schedule of `model` says.
        `batch.weights` weight the errors.
        """
        schedule = self.model.schedule.to(self.device)
        z, t, noise = (to_device(part, self.device) for part in (batch.latents, batch.t, batch.noise))
        output = self.predict(schedule.add_noise(z, noise, t), t, batch)
        target = schedule.target(z, noise, t)
        if batch.weights is None:
            return F.mse_loss(output, target)
        return (batch.weights * (output - target).square()).mean()

    def sample_noise(self, step: int, shape: Sequence[int], rng: Generator) -> tuple[Tensor, Tensor]:
        """Sample int64 time steps (N, V) and unit Gaussian noise (N, V, C, h, w) for V views of each of N objects.

        `step` is the number of the batch; the distribution of time steps may depend on the optimisation step to which
        the batch belongs. `shape` is (N, V, C, h, w).
        """
        power = float(at(self.timestep_power, self.optimisation_step(step), self.max_steps))
        logit_normal = self.timestep_logit_normal
        t = view_timesteps(shape[0], shape[1], self.model.schedule.T, power, self.view_noise, rng, logit_normal)
        return t, torch.randn(*shape, generator=rng)

    def validate(self, step: int, folder: Path) -> None:
        """Write the weights, averaged over the steps, and samples.png with samples of these weights to `folder`.

        Without an average, the current weights are used. `step` is the number of the current step.
        """
        with self.average_applied():
            self.save(folder)
            sheet = self.sample_sheet()
        if sheet.images:
            write_png(folder / "samples.png", grid(*sheet))

    def save(self, folder: Path) -> None:
        """Write the trained weights to `folder`. The base class writes nothing.

        `validate` calls this method while the modules have their averaged weights (EMA), if there is an average.
        """

    def sample_sheet(self) -> Sheet:
        """Return the images and labels of samples.png. The base class returns none, so that no file is written."""
        return Sheet((), 1, ())


def drop_captions(captions: Sequence[str], dropped: Iterable[bool]) -> list[str]:
    """Return the captions in a new list, with "" in place of caption k if flag k in `dropped` is True."""
    return ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]


def view_timesteps(
    objects: int,
    n_view: int,
    T: int,
    power: float,
    options: ViewNoiseConfig,
    rng: Generator,
    logit_normal: tuple[float, float] | None = None,
) -> Tensor:
    """Sample time steps (objects, n_view), int64 in [0, T), for the views of each object.

    Usually all views of an object have the same time step. It is T u^power with u uniform in [0, 1), so a `power` above
    1 favours low noise. With `logit_normal` = (mean, standard deviation), the logit of t / T of this common time step t
    is normal instead.

    `options` has the probabilities of two other cases. At most one of them applies to an object, none if n_view = 1.

    - `independent`: each view has a time step of its own, T u^power, even if `logit_normal` is set.
    - `companions`: 1 to n_view - 1 random views have low time steps, below 0.3 T, and the others the common one. The
      network learns to attend to the views with low noise (Diffusion Forcing, arXiv 2407.01392).
    """
    equal = sample_timesteps(objects, T, power, rng, logit_normal)[:, None].expand(-1, n_view)
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
