"""Config model of the task that trains a prior on users' own assets (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from threedgen.config import Scheduled
from threedgen.config.errors import ConfigError
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, TrainerConfig
from threedgen.data.assets.options import AssetsConfig
from threedgen.run.folder import user_path
from threedgen.systems.train_prior.options import MultiviewDiffusionConfig


class OwnTrainingConfig(MultiviewDiffusionConfig):
    """How the UNet learns users' own assets."""

    first: int = Field(2048, ge=1, description="pictures to begin with")
    pictures: int = Field(100_000, ge=1, description="pictures at most; from then on all are seen again")
    learning_rate: Scheduled = Field({"0%": 0.0, "2%": 1e-4, "60%": 1e-4, "100%": 1e-5})
    gradient_checkpointing: bool = Field(
        False, description="less memory, a third more time: what a step computed is computed again for its gradient"
    )
    sheet_prompts: tuple[str, ...] = Field(
        (), description="of the sample sheet; none: held-out assets, beside their renders, and their FID is logged"
    )


class TrainOwnPriorConfig(AssetsConfig):
    """Train a multi-view prior, or a 2D model, on with your own meshes and captions."""

    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field(
        {}, description="what to begin with: the embedded prior, MVDream's weights, or a 2D model such as SD 2.1"
    )
    pictures: str | None = Field(
        None, description="folder of pictures with a captions.csv, for the 2D share; null: single views of the assets"
    )
    held_out: int = Field(
        8, ge=0, le=100_000, description="assets that are not learnt from, but drawn on the sample sheet"
    )
    features: Annotated[Any, Component("features", default="probe")] = Field(
        {}, description="whose distance the FID of the sample sheet is; for photos and the like: inception"
    )
    training: OwnTrainingConfig = OwnTrainingConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=4000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _whole(self) -> TrainOwnPriorConfig:
        if self.prior.personalisation is not None:
            raise ValueError("prior.personalisation belongs to the weights it was made with; leave it out here")
        return self

    def check(self) -> None:
        super().check()
        if self.pictures is not None and not user_path(self.pictures, "pictures").is_dir():
            raise ConfigError("should be a folder with pictures and a captions.csv", "pictures", self.pictures)
