"""Config model of the task "evaluate-views", which samples views by MVDiffusion. This module imports no torch."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from threedgen.config import ConfigError
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.evaluation.options import ExistingViews, Features
from threedgen.run.folder import existing_folder

Scenes = Annotated[Any, Component("scene-source", default="toy-panoramas")]
SceneModel = Annotated[Any, Component("prior", default="mvdiffusion", only=("mvdiffusion",))]


class EvaluateViewsConfig(RunConfig):
    """Views of held-out scenes, sampled with and without attention between views, compared with true views.

    Options of the task "evaluate-views": scenes, model, sampling, or a folder of existing views, and the network whose
    features are compared.
    """

    changeable_on_resume: ClassVar[tuple[str, ...]] = ("count",)

    scenes: Scenes = Field({}, description="true views with captions")
    count: int = Field(100, ge=1, le=100_000, description="number of scenes; a run resumes with a larger one")
    prior: SceneModel = Field({}, description="model to evaluate; it gets view 0 or depth if it needs them")
    views: ExistingViews = None
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise per step: 0 none (DDIM), 1 that of DDPM")
    guidance_scale: float = Field(9.0, ge=0, description="scale of classifier-free guidance")
    features: Features = Field({}, description="network whose features are compared")

    def check(self) -> None:
        if self.views is None:
            if self.prior.blocks is None:
                raise ConfigError("is missing. Give RUN/blocks.safetensors of train-mvdiffusion", "prior.blocks")
            super().check()
        else:
            existing_folder(self.views, "views")
            RunConfig.check(self.without_unused_sections())

    def without_unused_sections(self) -> Self:
        return self if self.views is None else self.model_copy(update={"prior": None})
