"""Config model of the task that trains MVDiffusion (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import called
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, LearningConfig, RunConfig, TrainerConfig
from threedgen.systems.draw.options import check_ring

Variant = Literal["panorama", "outpaint", "depth"]


class SingleViewConfig(Config):
    """How a 2D model learns such views one by one, and to be told their depth, or a mask and what is around it."""

    max_steps: int = Field(2000, ge=1)
    batch: int = Field(32, ge=1, description="pictures in a step")
    rank: int | None = Field(
        32, ge=1, le=1024, description="of the additions to its layers (LoRA); null: all of its weights learn"
    )
    layers: Literal["attention", "all"] = Field(
        "attention", description="that get additions; all: the convolutions of its residual blocks too"
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "2%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    weight_decay: float = Field(0.01, ge=0)


class ViewsConfig(LearningConfig):
    """How the attention between views learns (arXiv 2307.01097, section 5)."""

    batch: int = Field(4, ge=1, description="scenes in a step")
    fresh: int = Field(1, ge=0, description="scenes of a step that no step saw before; the rest is seen again")
    first: int = Field(64, ge=1, description="scenes to begin with, also in the first stage, which grows as fast")
    scenes: int = Field(4000, ge=1, description="scenes at most; from then on all are seen again")
    half: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps, of both stages, that see views of half the size, for models that draw in both "
        "(prior.draft)",
    )
    encoding: Literal["reference", "capped"] = Field(
        "capped", description="of displacements; reference: released weights', whose highest frequencies are noise"
    )
    slim: bool = Field(
        False,
        description="depth: no convolution behind the attention and no branch for given pictures, which are held "
        "instead (prior.hold): a third of the weights",
    )
    timestep_power: float = Field(1.0, gt=0, le=2, description="t = T u^this, one for all views of a scene")
    learning_rate: Scheduled = Field(2e-4)
    sheet_scenes: int = Field(2, ge=0, le=16, description="scenes on the sample sheet")
    sheet_steps: int = Field(30, ge=1, le=1000, description="DDIM steps of the sample sheet")
    guidance_scale: float = Field(9.0, ge=0, description="of the sample sheet")


class TrainMVDiffusionConfig(RunConfig):
    """Train the attention between views around a frozen 2D model; before that, where needed, what the model is told."""

    variant: Variant = Field(
        "panorama",
        description="views of a panorama; outpaint: the first view is given; depth: posed views with depth, some given",
    )
    start: str = Field(min_length=1, description="the 2D model: a diffusers-format folder, or an id on the hub")
    scenes: Annotated[Any, Component("scene-source")] = Field({}, description="what it learns from")
    neighbours: Literal["ring", "all"] = Field("ring", description="views of a panorama that a view looks at")
    k: int = Field(3, ge=1, le=9, description="places around a corresponding pixel, k x k; odd")
    overlap: float = Field(0.3, ge=0, lt=1, description="depth: share of common pixels from which views look at others")
    mask: Literal["code", "paper"] = Field("code", description="outpaint: where the mask has ones; see docs")
    single_view: SingleViewConfig | None = Field(
        SingleViewConfig(),
        description="the first stage; null: the 2D model knows such views, and is told what it needs",
    )
    blocks: str | None = Field(
        None,
        min_length=1,
        description="the attention between views begins with that of this file, of another run around the same 2D "
        "model: outpaint and depth with what panorama left; so does the first stage if that run was of the same "
        "variant, and single_view=null leaves the 2D model as it is there",
    )
    training: ViewsConfig = ViewsConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=4000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _fit(self) -> TrainMVDiffusionConfig:
        if self.k % 2 == 0:
            raise ValueError(f"k {self.k} should be odd; try {self.k + 1}")
        wanted = "posed views with depth" if self.variant == "depth" else "panoramas"
        if self.scenes.has_depth != (self.variant == "depth"):
            raise ValueError(
                f"variant {self.variant} learns from {wanted}, which scenes={self.scenes.name} does not have"
            )
        if self.variant != "depth":
            check_ring(self.scenes.views, self.scenes.fov, "scenes.views")
        return self

    def check(self) -> None:
        from threedgen.guidance.weights import loading, plugins

        with called("start"):
            loading.check(self.start)
        plugins.check("blocks", self.blocks)
        super().check()
