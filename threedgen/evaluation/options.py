"""Config models that several evaluations share. This module does not import torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import key_prefix
from threedgen.config.optional import require
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.data.assets.options import AssetsConfig
from threedgen.run.folder import existing_folder

FRONT_THRESHOLD = 0.4
"""Threshold of the Janus meter, which counts fronts. A view shows a front if the front probability, smoothed over the
ring of views, is at least this number. Measured on 500 fresh toybox objects: 2.4 % false alarms on objects with one
front, 97.2 % recall with two fronts."""
CLIP_WEIGHTS = "openai/clip-vit-large-patch14"

Features = Annotated[Any, Component("features", default="probe")]
MultiviewPrior = Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))]


ExistingViews = Annotated[str | None, Field(min_length=1, description="folder of existing views to measure instead")]


class InceptionFeaturesConfig(Config):
    """Features of the Inception-v3 of published FIDs (torchmetrics), which suits photos.

    Config of the feature network "inception", which evaluations use for FID, KID and Inception score. It has no
    options.
    """

    name: Literal["inception"] = "inception"

    def check(self) -> None:
        require("torch_fidelity", "name: inception", "choose features.name=probe")


class SamplingConfig(RunConfig):
    """Base class of the options of evaluations that sample a diffusion model (prior).

    The options are DDIM steps, guidance scale, negative prompt, batch size, and a folder of existing views to measure
    instead of samples.
    """

    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0, description="scale of classifier-free guidance")
    negative_prompt: str = Field("", description="negative prompt of the guidance")
    batch: int = Field(8, ge=1, le=1024, description="objects per batch; each batch is kept in one file")
    existing: ExistingViews = None

    def check(self) -> None:
        if self.existing is not None:
            existing_folder(self.existing, "existing")
        RunConfig.check(self.without_unused_sections())
        prior: Any = getattr(self, "prior", None)
        if self.existing is None and prior is not None:
            with key_prefix("prior"):
                prior.check_sampling()

    def without_unused_sections(self) -> Self:
        return self if self.existing is None else self.model_copy(update={"prior": None})


class EvaluateOwnPriorConfig(AssetsConfig, SamplingConfig):
    """Comparison of a prior's samples for the captions of user assets with renders of the assets.

    Options of the task "evaluate-own-prior": the prior, the assets (meshes with captions), number of assets and views,
    sampling, and the network whose features are compared. With the same `data` and `held_out` as a training of the task
    "train-own-prior", the assets are those that it was not trained on.
    """

    prior: MultiviewPrior = Field({}, description="multi-view prior to evaluate")
    count: int = Field(200, ge=2, le=100_000, description="maximum number of assets, in their order")
    held_out: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="only the assets that train-own-prior leaves out with this held_out; null: all",
    )
    n_view: int = Field(4, ge=2, le=16, description="views per asset, sampled together")
    steps: int = Field(30, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(4.0, ge=0, description="scale of classifier-free guidance")
    features: Features = Field({}, description="network whose features are compared")
