"""LightningModule of text to 3D, and its optimizers. The core loop is `training_step` and `distillation_loss`."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from threedgen.config import at, registry
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.rigs import Rig, RigSampler, orbit
from threedgen.guidance.losses.sds import Distillation, RenderedViews
from threedgen.guidance.prior import Prior
from threedgen.representations.base import ParameterGroup, Regulariser, Render
from threedgen.run.seeding import generator
from threedgen.train.checkpoint_file import CheckpointData

from .options import GenerateConfig
from .phases import Phase, Refinement, StepResult, warm_start
from .scene import Scene
from .sections import OptimizerConfig


class GenerateSystem(Scene):
    """LightningModule that optimises one object for one prompt.

    Each random generator is seeded by (seed, step, purpose), so a resumed run gives the same result. To replace the
    training step, write a subclass and register it as a component of the kind "system".

    Attributes:
        distillation: distillation loss. Its parameters, if it has any, are trained and saved with the object.
        phases: consecutive ranges of steps, each with its own loss; see `phases.Phase`.
    """

    distillation: Distillation

    def __init__(
        self,
        config: GenerateConfig,
        prior: Prior,
        text_embeddings: Tensor,
        views: Tensor | None = None,
        view_cameras: Cameras | None = None,
    ) -> None:
        """Build the untrained object and the phases of its training.

        Args:
            text_embeddings: (n, L, D) embeddings of n = 2 to 7 texts, with L rows of D numbers each, in this order:
                prompt; negative prompt; with the option `view_prompts`, prompts of the side, front, back and overhead
                view; if `config.empty_prompt` is True, the empty prompt.
            views: (V, H, W, 3) images in [0, 1] for the warm start, sampled by the prior; None: no warm start.
            view_cameras: V cameras of `views`; None: no warm start.
        """
        count = len(text_embeddings) - config.empty_prompt
        text_embeddings, empty = text_embeddings[:count], text_embeddings[count:]
        super().__init__(config, prior, text_embeddings)
        init_rng = generator(config.seed, 0, "distillation parameters")
        parts = (prior.schedule, self.max_steps, prior, init_rng)
        self.distillation = registry.build("distillation", config.distillation, *parts)
        if config.empty_prompt:
            self.distillation.empty_text = empty
        self.distillation.prompt = config.object_text()
        prior.cast_networks(lora=any(p.requires_grad for p in self.distillation.parameters()))
        self.sample_cameras: RigSampler = registry.implementation("camera", config.camera.name)
        self.refinement = Refinement(self)
        labels, steps = lambda step: f"distilling at {self.size(step)} px", config.distilled_steps
        distil = Phase(config.warm_steps, steps, labels, self.distillation_loss)
        self.phases = [*warm_start(self, views, view_cameras), distil, *self.refinement.phases()]
        self.phases = [phase for phase in self.phases if phase.steps > 0]

    # --- the core loop: Lightning calls training_step, backward, then optimizer_step (scene.py)

    def training_step(self, batch: int, index: int) -> Tensor:
        """Return the scalar loss of a step, from the phase of the step. Lightning calls this method.

        The data loader yields step numbers, so `batch` is the step. Lightning's batch index `index` is not used.
        """
        step = int(batch)
        self.before_step(step)
        result = self.phase_at(step).losses(step)
        measured = {name: self.metrics[name] for name in self.config.metrics if name in self.metrics}
        self.terms, self.metrics = result.terms, {**measured, **result.metrics}
        return result.loss

    def distillation_loss(self, step: int) -> StepResult:
        """Render views from random cameras, and return the weighted sum of distillation loss and regularisers.

        Regularisers are losses of the render alone, without the prior, such as the sparsity of the opacity. The result
        also has the terms of the sum, without their weights, and further metrics, both by name for the log.
        """
        rig, weights = self.training_rig(step), self.loss_weights(step)
        normals = self.config.guidance_input == "normal" or weights["orientation"] > 0
        render = self.render(rig.cameras, step, light=rig.light, training=True, normals=normals)
        views = self.rendered_views(render, rig)
        latents = self.prior.encode_images(views.images, self.rng(step, "posterior"))
        condition, rng = self.condition(rig, render.background), self.rng(step, "distillation")
        guidance, logs = self.distillation(latents, self.prior.denoise, condition, step, rng, views)
        loss, terms = weights["distillation"] * guidance, {"distillation": guidance.detach()}
        for name, regulariser in self.regularisers.items():
            if weights[name]:
                term = regulariser(render)
                loss, terms[name] = loss + weights[name] * term, term.detach()
        return StepResult(loss, terms, {**logs, "opacity": render.opacity.detach().mean()})

    def on_save_checkpoint(self, checkpoint: CheckpointData) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["refine_round"] = self.refinement.round

    def on_load_checkpoint(self, checkpoint: CheckpointData) -> None:
        super().on_load_checkpoint(checkpoint)
        self.refinement.round = checkpoint.get("refine_round")  # older checkpoints do not contain it

    def phase_at(self, step: int) -> Phase:
        return next((phase for phase in reversed(self.phases) if phase.start <= step), self.phases[0])

    @property
    def stage(self) -> str:  # type: ignore[override]
        return self.phase_at(self.global_step).label(self.global_step)

    def size(self, step: int) -> int:
        """Return the side of the square training renders at a step, in pixels."""
        return int(piecewise_constant(self.config.size, step, self.max_steps))

    def training_rig(self, step: int) -> Rig:
        """Sample the cameras and point lights of a step, in groups of `camera.n_view` views of the object.

        The number of groups is the value of the option `scenes_per_step` at the step.
        """
        size = self.size(step)
        groups = int(piecewise_constant(self.config.scenes_per_step, step, self.max_steps))
        rng = self.rng(step, "cameras")
        return self.sample_cameras(self.config.camera, rng, step, n_groups=groups, height=size, width=size)

    def loss_weights(self, step: int) -> dict[str, float]:
        """Return the weight of each loss term at a step, by the keys of the config section `loss`."""
        loss = self.config.loss
        return {name: at(getattr(loss, name), step, self.max_steps) for name in type(loss).model_fields}

    @cached_property
    def regularisers(self) -> dict[str, Regulariser]:
        """Regularisers by their key in the config section `loss`: functions from a render to a scalar loss.

        They are the registered components of the kind "regulariser". If the representation of the object has a function
        of its own for a key, that function is used instead.
        """
        own, names = self.field.regularisers(), type(self.config.loss).model_fields
        known = registry.names("regulariser")
        return {
            name: own[name] if name in own else registry.implementation("regulariser", name)
            for name in names
            if name in own or name in known
        }

    def rendered_views(self, render: Render, rig: Rig) -> RenderedViews:
        """Reshape the flat pixels (B H W, C) of a render to images (B, H, W, C). `rig` has B cameras.

        Images have C = 3 for colours and normals, and C = 1 for opacity and depth. The attribute `images` of the result
        is the input of the prior: colours, or normals as colours, as the option `guidance_input` says.
        """
        cameras = rig.cameras

        def image(values: Tensor) -> Tensor:
            return values.view(len(cameras), cameras.height, cameras.width, -1)

        normals = None if render.normal is None else image(render.normal)
        rgb = normals if self.config.guidance_input == "normal" and normals is not None else image(render.rgb)
        extra = {name: image(values) for name, values in render.extra.items()}
        return RenderedViews(rgb, image(render.opacity), image(render.depth), normals, cameras, extra)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the trained parameters in groups: those of the object, the background and the distillation loss.

        Each group names the config key of its learning rate.
        """
        own = [p for p in self.distillation.parameters() if p.requires_grad]
        groups = [
            *self.field.parameter_groups(),
            ParameterGroup("background", list(self.background.parameters()), "background"),
            ParameterGroup("distillation", own, "distillation"),
        ]
        return [group for group in groups if group.parameters]

    def configure_optimizers(self) -> Any:
        options, groups = self.config.optimizer, self.parameter_groups()
        named = [{"params": group.parameters, "name": group.name, "lr": 1.0} for group in groups]
        return self.scheduled(registry.build("optimizer", options, named), *map(self.learning_rate, groups))

    def learning_rate(self, group: ParameterGroup) -> object:
        """Return the learning rate schedule of a parameter group: a number or a dict {step: value}, as in the config.

        The string `group.learning_rate` is the name of the option with the schedule, such as "encoding". It is looked
        up in the config section `optimizer`, then in `field` (options of the representation). If neither has a value
        for it, the result is `optimizer.networks`.
        """
        options, key = self.config.optimizer, group.learning_rate
        rates = [getattr(section, key, None) for section in (options, self.config.field)]
        return next((rate for rate in rates if rate is not None), options.networks)

    def validate(self, step: int, folder: Path) -> None:
        """Write four renders from around the object to folder/validation/STEP.png.

        Also compute the metrics of plug-ins that the option `metrics` names, and store them in the dict `metrics`.
        """
        table = self.config.result.turntable
        size = min(table.height, 128)
        angle = torch.deg2rad(torch.tensor([table.elevation, table.fov]))
        cameras = orbit(4, float(angle[0]), table.distance, float(angle[1]), size, size, azimuth=0.35)
        (folder / "validation").mkdir(exist_ok=True)
        write_png(folder / "validation" / f"{step:06d}.png", grid(self.images(cameras), 4))
        self.metrics |= self.measure(step)

    def measure(self, step: int) -> dict[str, float]:
        """Return the metrics of plug-ins that the option `metrics` names, by name, measured on the object at `step`.

        The caller has set eval mode and disabled gradients.
        """
        return {name: float(registry.implementation("metric", name)(self, step)) for name in self.config.metrics}


def piecewise_constant(schedule: float | dict, step: int, max_steps: int) -> float:
    """Return the value of a schedule at `step`, without interpolation.

    A schedule is a constant, or {key: value} with keys in increasing order. A key is a step, or a percentage of
    `max_steps` such as "50%". The result is the value of the last key at or before `step`. Before the first key, it is
    the value of the first key.
    """
    if not isinstance(schedule, dict):
        return schedule
    reached = [key for key, first in key_steps(schedule, max_steps).items() if first <= step]
    return schedule[reached[-1] if reached else next(iter(schedule))]


def key_steps(schedule: dict, max_steps: int) -> dict[int | str, float]:
    """Return {key: step} for the keys of a schedule. A key is a step, or a percentage of `max_steps` such as "50%"."""
    return {k: float(k[:-1]) / 100 * max_steps if isinstance(k, str) else k for k in schedule}


BETAS, EPS = (0.9, 0.99), 1e-15
Groups = list[dict[str, Any]]
"""PyTorch parameter groups with the keys `params`, `name` and `lr`, which is 1; learning rate schedules multiply it."""


def adam(options: OptimizerConfig, groups: Groups) -> Optimizer:
    return Adam(groups, lr=1.0, betas=BETAS, eps=EPS, fused=True)


def adamw(options: OptimizerConfig, groups: Groups) -> Optimizer:
    return AdamW(groups, lr=1.0, betas=BETAS, eps=EPS, weight_decay=0.01, fused=True)
