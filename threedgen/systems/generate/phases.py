"""Phases of a run: warm start from sampled views, distillation, refinement rounds; loss of a fit to images (`Fit`).

    0 ... warm_start.share ........................... refine.share per round ... max_steps
    | warm start: fit  | distillation                | resample views, fit | ... |

The numbers are steps; both shares are fractions of all steps (trainer.max_steps).

`GenerateSystem.training_step` finds the phase of the current step and takes the loss from it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import at
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import Rig, ring_rig
from threedgen.geometry.views import Pixels, Views
from threedgen.guidance.completion import KnownViews, known_views, with_known_views
from threedgen.guidance.guidance import Condition, guided, repeat_text
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import InitLatents, fresh_noise, sample_latents
from threedgen.representations import losses
from threedgen.representations.base import Render
from threedgen.representations.field.ngp import finite_difference_normal
from threedgen.representations.march import step_size
from threedgen.run.memory import to_device
from threedgen.run.seeding import generator

from .scene import Scene
from .sections import RefineConfig
from .views import sharpen

HUBER_BETA = 0.1
"""Threshold of the Huber loss on colours in [0, 1]; linear above it, so that outliers blur the object less."""
ERROR_WEIGHT = 10
"""Weight of the Huber loss on colours in the loss of `Fit`."""
OPAQUE_WEIGHT = {"0%": 0.01, "40%": 0.05, "100%": 6.0}
"""Weight of the entropy of the opacity in the loss of `Fit`: {percentage of the steps of the fit: weight}."""
SPARSITY_WEIGHT = 0.1
"""Weight of the sparsity loss, which removes density of the background colour; the colour loss cannot detect it."""
SMOOTHNESS_WEIGHT = 0.05
"""Weight of the smoothness loss, which reduces bumps: the difference between normals at nearby points."""
GRAIN_WEIGHT = 2.0
"""Weight of the total variation of the colours, which removes grain. With 4 instead, pupils become paler."""
GRAIN_LIMIT = 0.1
"""Largest difference of two colours in [0, 1], per channel, that counts as grain; larger ones are borders of parts."""
SURFACE_POINTS = 512
"""Maximum number of surface points per step in the smoothness loss and in the total variation."""
COMPLETION_STEPS = 0.6
"""Fraction of `refine.steps` for views that are completed from known views: these determine most of them."""
SURFACE_DISTANCE = 0.02
"""Standard deviation of the offset between the two points whose normals the smoothness loss compares.

It is a fraction of the option `march.radius`. For the total variation of the colours, the offset is half as long.
"""


class StepResult(NamedTuple):
    """Result of a training step: the scalar loss, its terms by name for the log, and further metrics by name.

    Terms and metrics stay on the device until they are logged, since a conversion to a number waits for the GPU.
    """

    loss: Tensor
    terms: Mapping[str, Tensor | float]
    metrics: Mapping[str, Tensor | float]


class Fit:
    """Training loss that compares renders of an object with V given images, such as views sampled by the prior.

    `scene` is the LightningModule with the object, `images` are (V, H, W, 3) in [0, 1], and `cameras` are their V
    cameras. The method `losses` returns the loss of a step.
    """

    def __init__(self, scene: Scene, cameras: Cameras, images: Tensor) -> None:
        self.scene, self.cameras = scene, cameras.with_size(*images.shape[1:3])
        opacity = None if scene.matte is None else scene.matte.opacity(images.to(scene.device))
        self.pixels = Pixels(Views(images, self.cameras), opacity)

    def losses(self, step: int, done: int, steps: int) -> StepResult:
        """Return the loss of a step: error of the colours plus penalties. The result also has values for the log.

        A step compares renders with `fit.rays` random pixels of the V images to which the object is fitted. For
        rasterised objects (meshes and 3D Gaussians) it uses random whole images with about as many pixels, at least one
        image. The penalties are on:

        - entropy of the opacity, which drives it to 0 or 1. Its weight rises during the fit.
        - opacity of all pixels (sparsity loss), with a low weight. It removes density that has the colour of the
          background, which the error of the colours does not notice.
        - opacity of pixels where the image has no object: those farther from it than 1/32 of the image side.
        - spread of the weights along a ray (distortion loss), not for rasterised objects. Its weight is
          `fit.distortion`.
        - differences between nearby surface normals.
        - differences between nearby colours of the surface (total variation), not for rasterised objects.

        Args:
            step: step of the run; it seeds the random numbers.
            done: number of steps of this fit before this step.
            steps: total number of steps of this fit. Weights that change do so with `done` / `steps`.
        """
        o, rng, device = self.scene.config.fit, self.scene.rng(step, "pixels"), self.scene.device
        opaque, distortion = (at(value, done, steps) for value in (OPAQUE_WEIGHT, o.distortion))
        if self.scene.field.rasterised:
            result, indices = self._render_images(step, rng)
            rough = 0 if result.surface is None else SMOOTHNESS_WEIGHT * losses.normal_consistency(*result.surface)
        else:
            result, indices, rays = self._render_pixels(step, rng)
            rough = self._roughness(result, *rays, rng)
        colours, background = (to_device(part, device) for part in self.pixels.composite(indices, rng))
        error = F.smooth_l1_loss(result.rgb_fg + background * (1 - result.opacity), colours, beta=HUBER_BETA)
        clear = opaque * losses.opaque(result) + SPARSITY_WEIGHT * losses.sparsity(result)
        # opacity far from the object; density with the background colour has no colour error there
        empty = to_device(self.pixels.far[indices].nonzero()[:, 0], device)
        clear = clear + result.opacity.index_select(0, empty).sum() / len(colours)
        if distortion and (spread := losses.distortion(result, 2 * self.scene.config.march.radius)) is not None:
            clear = clear + distortion * spread
        loss = ERROR_WEIGHT * error + clear + rough
        opacity = result.opacity.detach().mean()
        return StepResult(loss, {"loss_views": ERROR_WEIGHT * error.detach()}, {"opacity": opacity})

    def _render_images(self, step: int, rng: torch.Generator) -> tuple[Render, Tensor]:
        pixels = self.cameras.height * self.cameras.width
        count = max(1, self.scene.config.fit.rays // pixels)
        chosen = torch.randperm(len(self.cameras), generator=rng)[:count]
        indices = (chosen[:, None] * pixels + torch.arange(pixels)).flatten()
        return self.scene.render(self.cameras.select(chosen), step, training=False), indices

    def _render_pixels(self, step: int, rng: torch.Generator) -> tuple[Render, Tensor, tuple[Tensor, Tensor]]:
        indices, device = self.pixels.sample(self.scene.config.fit.rays, rng), self.scene.device
        origins, directions = (to_device(x[indices], device) for x in (self.pixels.origins, self.pixels.directions))
        shading = self.scene.material.sample_shading(step, False, rng)
        render = self.scene.render_rays(origins, directions, shading, rng, training=True)
        return render, indices, (origins, directions)

    def _roughness(self, result: Render, origins: Tensor, directions: Tensor, rng: torch.Generator) -> Tensor:
        field, march = self.scene.field, self.scene.config.march
        solid = (result.opacity[:, 0] > 0.5).nonzero()[:SURFACE_POINTS, 0]
        depth = (result.depth / result.opacity)[solid].detach()
        points = origins[solid] + depth * directions[solid]
        offsets = SURFACE_DISTANCE * march.radius * to_device(torch.randn(points.shape, generator=rng), points.device)
        length = step_size(march)

        def opacity(x: Tensor) -> Tensor:  # of one marching step: bounded, unlike the density
            return 1 - torch.exp(-length * field.density(x))

        def normal(x: Tensor) -> Tensor:
            return finite_difference_normal(opacity, x, 1.5 * SURFACE_DISTANCE * march.radius, march.radius)

        def colour(x: Tensor) -> Tensor:
            return self.scene.material(field(x)[1])

        bumps = SMOOTHNESS_WEIGHT * losses.normal_smoothness(normal, points, offsets)
        return bumps + GRAIN_WEIGHT * losses.total_variation(colour, points, offsets / 2, GRAIN_LIMIT)


@dataclass(frozen=True)
class Phase:
    """Range of consecutive training steps that use the same loss.

    Attributes:
        start: first step of the range.
        steps: number of steps in the range.
        label: function from a step to the text of the progress bar, such as "distilling at 64 px".
        losses: function from a step to its loss, loss terms and metrics.
    """

    start: int
    steps: int
    label: Callable[[int], str]
    losses: Callable[[int], StepResult]


def warm_start(scene: Scene, images: Tensor | None, cameras: Cameras | None) -> list[Phase]:
    """Return a list with the warm start as its only item, or an empty list if the run has no warm start.

    The warm start is a `Phase`, a range of steps with one loss, that fits the object of `scene` to V images. `images`
    are (V, H, W, 3) in [0, 1], and `cameras` are their V cameras; both are None without a warm start.
    """
    if images is None or cameras is None or not scene.config.warm_steps:
        return []
    steps, fits = scene.config.warm_steps, list[Fit]()

    def losses(step: int) -> StepResult:
        if not fits:
            fits.append(Fit(scene, cameras, images))
        return fits[0].losses(step, step, steps)

    return [Phase(0, steps, lambda step: "fitting the sampled views", losses)]


class Refinement:
    """Refinement rounds at the end of a run. `phases` returns them as a list of `Phase` (range of steps with one loss).

    In each round the object is rendered from all around, the prior resamples the renders by img2img, and the object is
    fitted to the resampled images. The method follows MVEdit (arXiv 2403.12032) and Instruct-NeRF2NeRF (arXiv
    2303.12789). Here the prior denoises `camera.n_view` views together, so these views are consistent.

    The attribute `round` is the number of the round whose views are in `images`, from 0: -1 before the first round,
    None if a checkpoint does not contain it. Checkpoints contain both.
    """

    def __init__(self, scene: Scene) -> None:
        config, refine = scene.config, scene.config.refine
        self.scene, self.options = scene, refine
        self.steps, self.rounds = config.round_steps, len(refine.strengths) if config.round_steps else 0
        self.start = config.warm_steps + config.distilled_steps
        self.round: int | None = -1
        self.fits: dict[int, Fit] = {}
        if self.rounds:
            p, side, n_view = config.preview, scene.prior.image_size, config.views_per_scene
            self.rig = ring_rig(refine.groups, n_view, config.camera.elevation_range, p.distance, p.fov, side)
            # in checkpoints: a resumed round must be fitted to the same images
            images = torch.zeros(len(self.rig.cameras), side, side, 3, dtype=torch.float16)
            scene.register_buffer("refine_images", images)

    def phases(self) -> list[Phase]:
        def phase(number: int) -> Phase:
            label = f"refining, {self.name(number)}"
            start = self.start + number * self.steps
            end = self.scene.max_steps if number == self.rounds - 1 else start + self.steps
            return Phase(start, end - start, lambda step: label, lambda step: self.losses(number, step, step - start))

        return [phase(number) for number in range(self.rounds)]

    def name(self, number: int) -> str:
        return f"round {number + 1} of {self.rounds}"

    def losses(self, number: int, step: int, done: int) -> StepResult:
        """Return the loss on the resampled views of round `number` (from 0), after `done` steps of the round.

        `step` is the step of the run, which seeds the random numbers. The first step of a round resamples the views, as
        does the first step of a run that was resumed with another number of steps and is inside another round now.
        """
        if not done or self.round not in (number, None):  # also if the step is repeated: it gives the same images
            self.resample(number, generator(self.scene.seed, step, "drawing"), first=step == 0)
            self.round = number
            # the moments of the optimizer come from distillation, whose gradients are a thousand times larger
            self.scene.clear_optimizer_state()
        if number not in self.fits:
            self.fits = {number: Fit(self.scene, self.rig.cameras, self.images.float())}
        return self.fits[number].losses(step, done, self.steps)

    @property
    def images(self) -> Tensor:
        """Resampled views (V, H, W, 3) of the current round in [0, 1], float16."""
        return self.scene.get_buffer("refine_images")

    def resample(self, number: int, rng: torch.Generator, first: bool) -> None:
        """Render the object, resample the renders by img2img, and store the result in `images`.

        Sampling starts from the latents of the renders. There are two exceptions if `first` is True:

        - A new object is untrained, so it is not rendered. Sampling starts from the latents of the coarse predictor
          (network of some priors that predicts latents without denoising), or from noise if there is none.
        - The option `edit` changes the object of an earlier run, whose renders still show the old prompt. If the prior
          has a coarse predictor, the change of its prediction from the old to the new prompt is added to the latents.

        In a distributed run, each process computes all images itself, with the same random numbers.

        Args:
            number: number of the round, from 0. It selects the noise strength in the option `refine.strengths`.
            rng: generator of the noise.
            first: whether the run starts with this round, without warm start and distillation.
        """
        scene, images, known = self.scene, list[Tensor](), None
        old_prompt_embedding = scene.old_prompt_embedding if first else None
        with scene.track_progress(f"sampling views, {self.name(number)}", len(self.rig.cameras)) as count:
            for rig in self.rig.groups():
                renders = None if first and scene.from_nothing else scene.images(rig.cameras).to(scene.device)
                parts = (scene.prior, renders, rig, scene.condition(rig), self.options, self.options.strengths[number])
                z = resample_views(*parts, rng, old_prompt_embedding, known)
                if renders is None and known is None and scene.prior.separate_levels:
                    known = known_views(scene.prior, z, rig.cameras.c2w, rng)  # the other groups are completed from it
                images.append(sharpen(scene.prior.decode_latents(z), self.options.sharpen))
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
    old_prompt_embedding: Tensor | None = None,
    known: KnownViews | None = None,
) -> Tensor:
    """Resample V views of one object together by img2img (SDEdit, Meng et al. 2022), and return latents (V, C, h, w).

    Some priors have a coarse predictor, which predicts latents from text and cameras without denoising.

    Args:
        renders: (V, H, W, 3) images in [0, 1] to start from. None: start from the latents of the coarse predictor, or
            from pure noise if the prior has no such predictor.
        rig: cameras of the V views.
        condition: inputs of the prior for these views: text, cameras and reference image.
        options: number of steps and guidance scale.
        strength: noise strength in (0, 1] for a start from `renders` or a coarse prediction. It has no effect on a
            start from pure noise.
        rng: generator of the noise.
        old_prompt_embedding: embedding (1, L, D) of the prompt that `renders` show, if `condition` has another, new
            prompt. The coarse prediction for the new prompt minus that for the old one is then added to the latents of
            `renders`. None, or a prior without coarse predictor: nothing is added.
        known: noisy latents (at a low noise level, almost clean) and cameras of other views of the object. The
            resampled views attend to them, so that they show the same object. None: there are no such views.
    """

    def coarse(text: Tensor, text_guidance: bool = True) -> Tensor | None:
        c2w = condition.c2w if rig.n_view > 1 else None
        return prior.coarse_latents(repeat_text(text, rig.n_view), c2w, text_guidance)

    z = coarse(condition.text[0]) if renders is None else prior.encode_images(renders, rng)
    if old_prompt_embedding is not None and z is not None:
        # without guidance, which would exaggerate the change and spread it to other parts
        new, old = coarse(condition.text[0], False), coarse(old_prompt_embedding, False)
        z = z if new is None or old is None else z + new - old
    if z is None:
        z, strength = torch.zeros(len(rig.cameras), *prior.latent_shape, device=prior.device), 1.0
    denoise = prior.denoise if known is None else with_known_views(prior.denoise, known, len(known.latents))
    predict = guided(denoise, condition, options.guidance_scale)
    init, noise = InitLatents(z, strength), fresh_noise(z, rng)
    steps = options.steps if known is None else max(1, round(COMPLETION_STEPS * options.steps))
    return sample_latents(predict, noise, prior.schedule, steps, init)
