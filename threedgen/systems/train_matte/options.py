"""Config model of the task that trains a matte (no torch here)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import called
from threedgen.config.sections import CheckpointConfig, RunConfig, TrainerConfig


class MatteNetworkConfig(Config):
    """Size of the network."""

    size: int = Field(128, ge=8, le=1024, description="pixels per side of its pictures")
    channels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (32, 64, 96, 128), min_length=1, max_length=8, description="width of each level; each halves the picture"
    )

    @model_validator(mode="after")
    def _fit(self) -> MatteNetworkConfig:
        if self.size % (unit := 2 ** len(self.channels)):
            near = max(unit, round(self.size / unit) * unit)
            raise ValueError(f"size {self.size} should be a multiple of {unit}, 2 ** levels; try {near}")
        return self


class MatteTrainingConfig(Config):
    """How it learns."""

    batch: int = Field(16, ge=1, description="pictures in a step")
    fresh: int = Field(3, ge=0, description="pictures of a step that no step saw before; the rest is seen again")
    first: int = Field(1024, ge=1, description="pictures to begin with")
    pictures: int = Field(20_000, ge=1, description="pictures at most; from then on all are seen again")
    jumbles: float = Field(0.1, ge=0, le=1, description="share of the pictures that show heaps of random solids")
    latent_noise: float = Field(0.25, ge=0, le=2, description="most noise on the latents that are decoded")
    learning_rate: Scheduled = Field({"0%": 0.0, "3%": 2e-3, "40%": 2e-3, "100%": 1e-5})
    weight_decay: float = Field(0.001, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class TrainMatteConfig(RunConfig):
    """Train the network that tells the things in pictures of the toybox from the grey behind them."""

    autoencoder: str = Field(
        "toybox-base", min_length=1, description="whose decoder paints the pictures: a folder in diffusers format"
    )
    network: MatteNetworkConfig = MatteNetworkConfig()
    training: MatteTrainingConfig = MatteTrainingConfig()
    measured: int = Field(256, ge=1, description="fresh pictures of held-out things that it is measured on")
    trainer: TrainerConfig = TrainerConfig(max_steps=1200, gradient_clip_val=5.0)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    def check(self) -> None:
        from threedgen.guidance.weights.loading import check

        with called("autoencoder"):
            check(self.autoencoder)
        super().check()
