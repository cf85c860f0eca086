"""Config models of the task that makes objects (no torch here)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError, Layer, Scheduled, merge, plain, validate
from threedgen.config.errors import within
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, MultiviewCameraConfig, OrbitCameraConfig, TrainerConfig
from threedgen.export.options import ExportSection
from threedgen.guidance.distillation.options import ViewPromptsConfig
from threedgen.representations.options import MarchConfig, OccupancyConfig
from threedgen.run.prompts import normalise_prompt
from threedgen.systems.prompted import PromptedConfig
from threedgen.viewer.options import ViewConfig

TOGETHER = "camera.n_view should be 2 or more, and the prior one that knows cameras, such as prior.name=mvdream"
"""What it takes to have views of one object."""


class OptimizerConfig(Config):
    """Adam or AdamW with a learning rate for each group of parameters."""

    kind: Literal["adam", "adamw"] = Field("adam", description="adamw decays weights, adam does not")
    encoding: Scheduled = Field(0.01, ge=0, description="learning rate of the field's encoding")
    networks: Scheduled = Field(0.001, ge=0, description="learning rate of its small networks")
    geometry: Scheduled | None = Field(
        None, ge=0, description="learning rate of a mesh's shape, 0: it stays; null: as networks"
    )
    background: Scheduled = Field(0.001, ge=0, description="learning rate of the background")
    distillation: Scheduled = Field(1e-4, ge=0, description="learning rate of what the distillation trains (vsd)")
    betas: tuple[float, float] = Field((0.9, 0.99))
    eps: float = Field(1e-15, gt=0)
    weight_decay: float = Field(0.01, ge=0, description="for adamw; 0.01 is torch's default, which MVDream ran with")


class LossConfig(Config):
    """Weights of the terms; each may change with the step."""

    distillation: Scheduled = Field(1.0, ge=0, description="the prior's opinion")
    orientation: Scheduled = Field(0.0, ge=0, description="against matter that faces away; needs normals")
    sparsity: Scheduled = Field(0.0, ge=0, description="against matter at all: clears haze")
    opaque: Scheduled = Field(0.0, ge=0, description="against half-transparent rays: clears halos late in a run")
    z_variance: Scheduled = Field(0.0, ge=0, description="against matter spread out along rays")
    eikonal: Scheduled = Field(0.0, ge=0, description="for a field of distances: its gradient has length 1")
    normal_consistency: Scheduled = Field(0.0, ge=0, description="for a mesh: normals change little along its edges")
    laplacian: Scheduled = Field(0.0, ge=0, description="for a mesh: vertices lie amidst their neighbours")


class FitConfig(Config):
    """How an object is fitted to pictures, by a warm start and by refinement: 10 times the error of pixels (Huber),
    the opacity of those that see nothing, and these."""

    rays: int = Field(
        4096,
        ge=1,
        description="pixels of a step, drawn from all pictures; of a mesh as many whole pictures, at least one",
    )
    opaque: Scheduled = Field(
        {"0%": 0.01, "40%": 0.05, "100%": 6.0},
        ge=0,
        description="against half-transparent rays; 100% is the end of the fit",
    )
    sparsity: Scheduled = Field(
        0.1, ge=0, description="against matter at all: fog in the colour behind it fits as well"
    )
    smooth: Scheduled = Field(0.05, ge=0, description="against dents: normals near each other should be alike")
    distortion: Scheduled = Field(
        0.0,
        ge=0,
        description="against matter spread along rays (Mip-NeRF 360), so that light does not go deep into it; not for "
        "meshes, nor where march.chunk is too small for all rays of a step",
    )
    matte: str | None = Field(
        None,
        min_length=1,
        description="network that tells the thing in a picture from the grey behind it: toybox-matte, or RUN/matte of "
        "a train-toybox-matte run; null: what has another colour is the thing",
    )


class WarmStartConfig(Config):
    """Fit the field to sampled views first; distillation then refines it."""

    share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of trainer.max_steps in which the field is fitted to views that the prior samples; 0: start from "
        "nothing, as with a prior of single views",
    )


USUAL = "reconstruction"
"""The distillation of whoever names none."""


class RefineConfig(Config):
    """The last part of a run: views all around are rendered and drawn again by the prior, and the object fitted to them
    (MVEdit, arXiv 2403.12032; Instruct-NeRF2NeRF, arXiv 2303.12789; here several views at once)."""

    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="one round for each: how much noise a picture gets before it is drawn again; []: none"
    )
    share: float = Field(0.2, gt=0, le=1, description="of trainer.max_steps that a round takes")
    groups: int = Field(6, ge=1, le=64, description="times camera.n_view views that are drawn again together")
    elevation_range: tuple[float, float] = Field((0.0, 30.0), description="of their cameras, degrees")
    steps: int = Field(
        25, ge=1, le=1000, description="DDIM steps from noise to a picture; a round makes its strength's share of them"
    )
    guidance_scale: float = Field(3.0, ge=0)
    sharpen: float = Field(
        0.0,
        ge=0,
        le=4,
        description="how much of what a blur by a 64th of their side takes from the pictures is added to them (unsharp "
        "mask): the prior's decoder and the mean of many views are softer than their prompts",
    )


class PreviewConfig(Config):
    """The views that the prior samples from the prompt before the 3D work begins."""

    enabled: bool = Field(True, description="sample them (a warm start does so anyway)")
    steps: int = Field(
        30, ge=1, le=1000, description="DDIM steps from noise; fewer where the prior begins from a guess"
    )
    guidance_scale: float = Field(5.0, ge=0)
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees")
    azimuth: float = Field(0.0, ge=-360, le=360, description="degrees, of the first view; 0 is the front")


class ResultConfig(Config):
    """What is written at the end of a run."""

    turntable: OrbitCameraConfig = Field(
        OrbitCameraConfig(n_view=60, distance=2.6, height=256, width=256),
        description="cameras of turntable.mp4",
    )
    fps: int = Field(20, ge=1, le=120)
    mesh_resolution: int = Field(128, ge=16, le=512, description="grid points along an edge for marching cubes")


class GenerateConfig(PromptedConfig):
    """A prompt becomes a 3D object: cameras -> render -> distillation -> step."""

    common: ClassVar[tuple[str, ...]] = (
        "prompt", "negative_prompt", "prompt_check", "seed", "out", "threads",
        "prior.name", "prior.weights", "distillation.name", "distillation.guidance_scale", "field.name",
        "material.name", "background.name", "camera.n_view", "size", "scenes_per_step", "stages",
        "optimizer.encoding", "optimizer.networks", "warm_start.share", "refine.strengths", "refine.share",
        "march.samples", "result.mesh_resolution", "export.preset", "export.budget", "export.formats",
        "trainer.max_steps", "trainer.accelerator", "trainer.devices", "trainer.precision",
        "trainer.val_check_interval", "checkpoint.seconds",
    )  # fmt: skip

    negative_prompt: str = Field("", description="what to stay away from")
    view_prompts: ViewPromptsConfig = ViewPromptsConfig()
    prior: Annotated[Any, Component("prior", default="mvdream")] = Field({}, description="who judges the views")
    distillation: Annotated[Any, Component("distillation", default=USUAL)] = Field(
        {}, description="how the judgement becomes a loss"
    )
    field: Annotated[Any, Component("representation", default="ngp")] = Field({}, description="what is optimised")
    background: Annotated[Any, Component("background", default="solid")] = Field({}, description="what is behind it")
    material: Annotated[Any, Component("material", default="none")] = Field({}, description="how features are lit")
    march: MarchConfig = MarchConfig()
    occupancy: OccupancyConfig | None = Field(OccupancyConfig(), description="null: no empty-space skipping")
    camera: MultiviewCameraConfig = MultiviewCameraConfig()
    guidance_input: Literal["colour", "normal"] = Field(
        "colour", description="what the prior is shown: the picture, or the normals as colours, for the shape"
    )
    size: Scheduled = Field(64, ge=8, le=2048, description="pixels of a training render; changes take effect in jumps")
    scenes_per_step: Scheduled = Field(
        1, ge=1, le=64, description="how often camera.n_view views are rendered in a step; changes in jumps"
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    preview: PreviewConfig = PreviewConfig()
    fit: FitConfig = FitConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    refine: RefineConfig = RefineConfig()
    result: ResultConfig = ResultConfig()
    export: ExportSection = ExportSection()
    view: ViewConfig = Field(ViewConfig(), exclude=True)  # no part of the run, so in no config.yaml and no hash
    trainer: TrainerConfig = TrainerConfig(val_check_interval=100)
    checkpoint: CheckpointConfig = CheckpointConfig()
    stages: dict[str, dict[str, Any]] = Field(
        {},
        description="what is done first, one after the other: name: {options that differ from these}; each begins from "
        "the object of the one before, and the run itself from the last",
    )

    def stage(self, name: str) -> GenerateConfig:
        """The config of a stage: this one with the stage's options over it, without an asset. Raises ConfigError."""
        stage = self.stages[name]
        if "out" in stage:
            place = f"has no place: the folder of a stage is stages/{name} in that of the run"
            raise ConfigError(place, f"stages.{name}.out", stage["out"])
        whole = {k: v for k, v in plain(self).items() if k not in ("stages", "out", "about", "needs")}
        tree = merge(merge(whole, {"export": {"enabled": False}}), stage)
        return validate(type(self), [Layer(f"stages.{name}", tree)])

    @model_validator(mode="after")
    def _stages(self) -> GenerateConfig:
        for name in self.stages:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
                raise ValueError(f"stages {name!r} should be a name of letters, digits, '_' and '-', 40 at most")
            try:
                self.stage(name)
            except ConfigError as error:
                raise ValueError(str(error).split("\n")[0]) from None
        return self

    @property
    def views_per_scene(self) -> int:
        """How many views the prior looks at together; 1 is a prior's 2D mode, without cameras."""
        return self.camera.n_view if self.prior.multiview else 1

    @property
    def warm_steps(self) -> int:
        """Steps of the warm start: none for a prior that judges single views, as it samples no views to fit to."""
        return 0 if self.views_per_scene < 2 else int(self.warm_start.share * self.trainer.max_steps)

    @property
    def round_steps(self) -> int:
        """Length of a round of refinement; 0: there is none."""
        return int(self.refine.share * self.trainer.max_steps) if self.refine.strengths else 0

    @property
    def distilled_steps(self) -> int:
        """Steps between the warm start and the refinement, in which there is distillation."""
        return self.trainer.max_steps - self.warm_steps - len(self.refine.strengths) * self.round_steps

    def prompt_notes(self) -> list[str]:
        return [*super().prompt_notes(), *self._without_effect()]

    def _without_effect(self) -> Iterator[str]:
        if self.distilled_steps < 1 and self.distillation.name != USUAL:
            yield (
                f"distillation.name={self.distillation.name} has no effect: warm_start.share and refine.share leave "
                "nothing of the run to distillation"
            )
        if self.warm_start.share and self.views_per_scene < 2:
            alone = f"prior.name={self.prior.name} draws each view by itself"
            yield f"warm_start.share={self.warm_start.share:g} has no effect: {alone}, so there is nothing to fit to"

    @model_validator(mode="after")
    def _agree(self) -> GenerateConfig:
        """What one section says has to suit the others."""
        radius = self.field.radius
        if radius != self.march.radius:
            raise ValueError(
                f"field.radius {radius:g} and march.radius {self.march.radius:g} should be the same: rays are "
                "followed through the cube in which the field lives"
            )
        if self.loss.eikonal != 0 and not self.field.distance:
            raise ValueError(
                f"loss.eikonal is for fields of distances, and field.name {self.field.name} has none; "
                "set loss.eikonal=0 or field.name=sdf"
            )
        for name in ("normal_consistency", "laplacian"):
            if getattr(self.loss, name) != 0 and not self.field.mesh:
                raise ValueError(
                    f"loss.{name} is for meshes, and field.name {self.field.name} is none; "
                    "set it to 0, or field.name=dmtet"
                )
        warm, share, rounds = self.warm_start.share, self.refine.share, len(self.refine.strengths)
        if rounds * share > 1:
            raise ValueError(
                f"refine.share {share:g} of the run for each of {rounds} rounds is more than the run; "
                f"try refine.share={0.5 / rounds:.2g}"
            )
        if warm > (left := round(1 - rounds * share, 9)):  # 1 - 4 * 0.2 is a little less than 0.2
            raise ValueError(
                f"warm_start.share {warm:g} should be at most {left:.2g}, which refine leaves of the run; "
                f"try warm_start.share={left / 2:.2g}"
            )
        if self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                "trainer.accumulate_grad_batches should be 1; for more views in a step, set scenes_per_step"
            )
        return self

    def check(self) -> None:
        self.check_part(blank=not self.stages)
        for k, name in enumerate(self.stages):
            with within(f"stages.{name}"):
                self.stage(name).check_part(blank=k == 0)

    def check_part(self, blank: bool) -> None:
        """Checks a run by itself, or a stage of it. blank: it begins from nothing, from no object of a stage before.

        Raises ConfigError.
        """
        normalise_prompt(self.prompt)
        refined = len(self.refine.strengths) * self.round_steps
        if blank and refined == self.trainer.max_steps and self.views_per_scene < 2:
            raise ConfigError(
                f"all of the run fits the object to views, and prior.name={self.prior.name} draws each by itself here, "
                f"so they would not agree: refine.strengths=[] distils it instead; or {TOGETHER}",
                "refine.share",
            )
        super().check()
        self.check_prompt()
        if self.fit.matte is not None:
            from threedgen.guidance.weights.loading import matte

            with within("fit"):
                matte(self.fit.matte)
