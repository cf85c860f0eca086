"""Phases of a run: warm start from sampled views, distillation, and refinement rounds.

    0 ... warm_start.share ........................... refine.share per round ... max_steps
    | warm start: fit  | distillation                | resample views, fit | ... |

`GenerateSystem.training_step` finds the phase of the current step and takes the loss from it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
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
from .views import sharpen


@dataclass(frozen=True)
class Phase:
    """Range of consecutive training steps that use the same loss.

    Attributes:
        start: first step of the range.
        steps: number of steps in the range.
        label: function from a step to the text of the progress bar.
        losses: function from a step to its loss and metrics.
    """

    start: int
    steps: int
    label: Callable[[int], str]
    losses: Callable[[int], StepResult]


def warm_start(scene: Scene, images: Tensor | None, cameras: Cameras | None) -> list[Phase]:
    """Return a list with the `Phase` that fits the object to V images; an empty list if the run has no warm start.

    `images` are (V, H, W, 3) in [0, 1], and `cameras` are their V cameras. Both are None without a warm start.
    """
    if images is None or cameras is None or not scene.config.warm_steps:
        return []
    steps, fits = scene.config.warm_steps, list[Fit]()

    def losses(step: int) -> StepResult:
        if not fits:
            fits.append(Fit(scene, cameras, images))
        return fits[0].losses(step, step, steps)

    return [Phase(0, steps, lambda step: "fitting the sampled views", losses)]


ELEVATIONS = (0.0, 30.0)
"""Range of the camera elevations of refinement, degrees."""


class Refinement:
    """Refinement rounds at the end of a run.

    In each round the object is rendered from all around, the prior resamples the renders by img2img, and the object is
    fitted to the resampled images. The method follows MVEdit (arXiv 2403.12032) and Instruct-NeRF2NeRF (arXiv
    2303.12789). Here the prior denoises `camera.n_view` views together, so these views are consistent.
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
            self.rig = ring_rig(table, refine.groups, n_view, ELEVATIONS, side)
            # in checkpoints: a resumed round must be fitted to the same images
            images = torch.zeros(len(self.rig.cameras), side, side, 3, dtype=torch.float16)
            scene.register_buffer("refine_images", images)

    def phases(self) -> list[Phase]:
        def phase(number: int) -> Phase:
            label = f"refining, {self.name(number)}"
            start = self.start + number * self.steps
            return Phase(start, self.steps, lambda step: label, lambda step: self.losses(number, step, step - start))

        return [phase(number) for number in range(self.rounds)]

    def name(self, number: int) -> str:
        return f"round {number + 1} of {self.rounds}"

    def losses(self, number: int, step: int, done: int) -> StepResult:
        """Return the loss on the resampled views of round `number`, after `done` steps of the round.

        The first step of a round resamples the views.
        """
        if not done:  # also if the step is repeated: it gives the same images
            self.resample(number, generator(self.scene.seed, step, "drawing"), self.scene.from_nothing and step == 0)
            # distillation gradients are a thousand times larger, and so are their moments
            self.scene.clear_optimizer_state()
        if number not in self.fits:
            self.fits = {number: Fit(self.scene, self.rig.cameras, self.images.float())}
        return self.fits[number].losses(step, done, self.steps)

    @property
    def images(self) -> Tensor:
        """Resampled views (V, H, W, 3) of the current round in [0, 1], float16."""
        return self.scene.get_buffer("refine_images")

    def resample(self, number: int, rng: torch.Generator, from_nothing: bool) -> None:
        """Resample all views of round `number` and store them in `images`. All devices get the same images.

        `from_nothing` means that there is no object to render yet; the views are then sampled from the prompt alone.
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
    """Resample V views of one object together by img2img (SDEdit, Meng et al. 2022).

    Args:
        renders: (V, H, W, 3) images in [0, 1] to start from. None: start from the latents of the prior's coarse
            predictor, or from pure noise if the prior has no such predictor.
        rig: cameras of the V views.
        condition: inputs of the prior for these views: text, cameras and reference image.
        strength: img2img noise strength in (0, 1].

    Returns images (V, H, W, 3) in [0, 1] at the prior's image size.
    """
    if renders is not None:
        z: Tensor | None = prior.encode_images(renders, rng)
    else:
        c2w = condition.c2w if rig.n_view > 1 else None
        z = prior.coarse_latents(per_image(condition.text[0], rig.n_view), c2w)
    if z is None:
        z, strength = torch.zeros(len(rig.cameras), *prior.latent_shape, device=prior.device), 1.0
    predict = guided(prior.denoise, condition, options.guidance_scale)
    init, noise = InitLatents(z, strength), fresh_noise(z, rng)
    z = sample_latents(predict, noise, prior.schedule, options.steps, init)
    return sharpen(prior.decode_latents(z), options.sharpen)
