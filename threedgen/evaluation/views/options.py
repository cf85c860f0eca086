"""Config models of the evaluation of views that are drawn together (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from threedgen.config import Config, ConfigError
from threedgen.config.optional import require
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.evaluation.toybox.options import ProbeConfig
from threedgen.run.folder import existing_folder


class ProbeFeaturesConfig(ProbeConfig):
    """What the probe of the toybox sees last, and its nouns for the Inception score: for toy rooms."""

    name: Literal["probe"] = "probe"


class InceptionFeaturesConfig(Config):
    """The Inception network of published figures, as torchmetrics has it: for photos."""

    name: Literal["inception"] = "inception"

    def check(self) -> None:
        require("torch_fidelity", "name: inception", "choose features.name=probe")


class EvaluateViewsConfig(RunConfig):
    """Draw the views of held-out scenes together and each by itself, and compare them with the true ones."""

    extends: ClassVar[tuple[str, ...]] = ("count",)

    scenes: Annotated[Any, Component("scene-source", default="toy-panoramas")] = Field(
        {}, description="the true views, and the captions that are drawn"
    )
    count: int = Field(100, ge=1, le=100_000, description="scenes, the first ones; more of them later go on from these")
    prior: Annotated[Any, Component("prior", default="mvdiffusion", only=("mvdiffusion",))] = Field(
        {}, description="who draws; a model that is told a mask is given view 0, one that is told depth the true depth"
    )
    views: str | None = Field(
        None,
        min_length=1,
        description="a folder of views that somebody has drawn, which are measured instead: SCENE/cameras.json and "
        "pictures, such as runs of the tasks panorama and texture",
    )
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise of a step: 0 none, 1 as much as DDPM's")
    guidance_scale: float = Field(9.0, ge=0)
    negative_prompt: str = ""
    mask: Literal["code", "paper"] = Field("code", description="how the given view is told; see the task panorama")
    overlap_size: int | None = Field(
        None, ge=8, le=4096, description="pixels a side to which views of panoramas are brought before they are warped "
        "into each other, in the paper 1024; null: as they are",
    )  # fmt: skip
    depth_error: float = Field(
        0.5, gt=0, description="metres by which the depth of a point may miss that of the other view"
    )
    features: Annotated[Any, Component("features", default="probe")] = Field({}, description="what compares views")
    clip: str | None = Field(
        None,
        min_length=1,
        description="CLIP of the hub, such as openai/clip-vit-large-patch14, or a folder, for the CLIP score",
    )
    sheet: int = Field(8, ge=0, le=1000, description="scenes on the sheet of pictures")

    def check(self) -> None:
        if self.views is None:
            if self.prior.blocks is None:
                raise ConfigError(
                    "there is no attention between views, so there is nothing to compare; name it, such as "
                    "prior.blocks=RUN/blocks.safetensors of train-mvdiffusion",
                    "prior.blocks",
                )
            super().check()
        else:
            existing_folder(self.views, "views")
            RunConfig.check(self.used())

    def used(self) -> Self:
        return self if self.views is None else self.model_copy(update={"prior": None})
