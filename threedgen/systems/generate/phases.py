"""Phases of a run: warm start from sampled views, distillation, and refinement rounds.

    0 ... warm_start.share ........................... refine.share per round ... max_steps
    | warm start: fit  | distillation                | resample views, fit | ... |

Each phase maps a step to its loss. `GenerateSystem.training_step` asks the phase of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import Rig, ring_rig
from threedgen.guidance.guidance import Condition, guided, per_image
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import InitLatents, fresh_noise, sample_latents
from threedgen.run.seeding import generator
from threedgen.systems.generate.options import RefineConfig

from .fitting import Fit, StepResult
from .scene import Scene


@dataclass(frozen=True)
class Phase:
    """Consecutive steps with one kind of loss.

    Attributes:
        start, steps: first step and number of steps.
        label: step -> text of the progress bar.
        losses: step -> result of the training step.
    """

    start: int
    steps: int
    label: Callable[[int], str]
    losses: Callable[[int], StepResult]


def warm_start(scene: Scene, images: Tensor | None, cameras: Cameras | None) -> list[Phase]:
    """Return the fit to views (V, H, W, 3) that the prior sampled from the prompt; no phase without them."""
    if images is None or cameras is None or not scene.config.warm_steps:
        return []
    steps, fits = scene.config.warm_steps, list[Fit]()

    def losses(step: int) -> StepResult:
        if not fits:
            fits.append(Fit(scene, cameras, images))
        return fits[0].losses(step, step, steps)

    return [Phase(0, steps, lambda step: "fitting the sampled views", losses)]


class Refinement:
    """Refinement rounds: views all around are rendered, resampled by the prior, and the object is fitted to them.

    After MVEdit (arXiv 2403.12032) and Instruct-NeRF2NeRF (arXiv 2303.12789), with groups of consistent views.
    """

    def __init__(self, scene: Scene) -> None:
        config, refine = scene.config, scene.config.refine
        self.scene, self.options = scene, refine
        self.steps, self.rounds = config.round_steps, len(refine.strengths) if config.round_steps else 0
        self.start = scene.max_steps - self.rounds * self.steps
        self.fits: dict[int, Fit] = {}
        if self.rounds:
            side = scene.prior.image_size
            table, n_view = config.result.turntable, config.views_per_scene
            self.rig = ring_rig(table, refine.groups, n_view, refine.elevation_range, side)
            # in checkpoints: a resumed round must be fitted to the same images
            images = torch.zeros(len(self.rig.cameras), side, side, 3, dtype=torch.float16)
            scene.register_buffer("refine_images", images)

    def phases(self) -> list[Phase]:
        """Return one phase for each round."""

        def phase(number: int) -> Phase:
            label = f"refining, {self.name(number)}"
            start = self.start + number * self.steps
            return Phase(start, self.steps, lambda step: label, lambda step: self.losses(number, step, step - start))

        return [phase(number) for number in range(self.rounds)]

    def name(self, number: int) -> str:
        return f"round {number + 1} of {self.rounds}"

    def losses(self, number: int, step: int, done: int) -> StepResult:
        """Resample the views at the first step of a round; return the loss of the fit to them."""
        if not done:  # also if the step is repeated: it gives the same images
            self.resample(number, generator(self.scene.seed, step, "drawing"), self.scene.from_nothing and step == 0)
            # moments of the gradients of distillation, which are a thousand times as large
            self.scene.clear_optimizer_state()
        if number not in self.fits:
            self.fits = {number: Fit(self.scene, self.rig.cameras, self.images.float())}
        return self.fits[number].losses(step, done, self.steps)

    @property
    def images(self) -> Tensor:
        """Resampled views (V, H, W, 3) of the current round, float16."""
        return self.scene.get_buffer("refine_images")

    def resample(self, number: int, rng: torch.Generator, from_nothing: bool) -> None:
        """Fill `images` for a round, with the same random numbers on all devices.

        Args:
            from_nothing: there is no object to render yet.
        """
        scene, images = self.scene, []
        with scene.track_progress(f"sampling views, {self.name(number)}", len(self.rig.cameras)) as count:
            for rig in self.rig.groups():
                renders = None if from_nothing else scene.images(rig.cameras).to(scene.device)
                parts = (scene.prior, renders, rig, scene.condition(rig), self.options)
                images.append(resample_views(*parts, self.options.strengths[number], rng))
                count.add(len(rig.cameras))
        self.images.copy_(torch.cat(images))


@torch.no_grad()
def resample_views(
    prior: Prior,
    renders: Tensor | None,
    rig: Rig,
    condition: Condition,
    options: RefineConfig,
    strength: float,
    rng: torch.Generator,
) -> Tensor:
    """Resample the views (V, H, W, 3) of one group together by img2img (SDEdit, Meng et al. 2022).

    Args:
        renders: images to start from; None: start from the prior's coarse prediction, or from noise without one.
        strength: img2img noise strength in (0, 1].
    """
    if renders is not None:
        z: Tensor | None = prior.encode_images(renders, rng)
    else:
        c2w = condition.c2w if rig.n_view > 1 else None
        z = prior.coarse_latents(per_image(condition.text[0], rig.n_view), c2w)
    if z is None:
        z, strength = torch.zeros(len(rig.cameras), *prior.latent_shape, device=prior.device), 1.0
    denoise = guided(prior.denoise, options.guidance_scale)
    init, noise = InitLatents(z, strength), fresh_noise(z, rng)
    z = sample_latents(denoise, noise, condition, prior.schedule, options.steps, init)
    return sharpen(prior.decode_latents(z), options.sharpen)


def sharpen(images: Tensor, amount: float) -> Tensor:
    """Sharpen images (V, H, W, 3) in [0, 1] by an unsharp mask with a blur of 1/64 of their height."""
    if not amount:
        return images
    sigma, x = images.shape[1] / 64, images.permute(0, 3, 1, 2)
    size = 2 * math.ceil(3 * sigma) + 1
    blurred = gaussian_blur2d(x, (size, size), (sigma, sigma))
    return (x + amount * (x - blurred)).clamp(0, 1).permute(0, 2, 3, 1)
