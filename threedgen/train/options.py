"""Config models of the loggers (no torch here)."""

from typing import Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.optional import require


class LoggerConfig(Config):
    """Base of the loggers' configs."""

    name: str = Field(description="logger")


class CSVLoggerConfig(LoggerConfig):
    """metrics.csv and metrics.jsonl only, which every run writes."""

    name: Literal["csv"] = "csv"


class TensorBoardConfig(LoggerConfig):
    """TensorBoard files in RUN/tensorboard."""

    name: Literal["tensorboard"] = "tensorboard"

    def check(self) -> None:
        require("tensorboard", "name: tensorboard", "set logger=csv")


class WandbConfig(LoggerConfig):
    """Weights & Biases; log in with `wandb login`, or set WANDB_MODE=offline."""

    name: Literal["wandb"] = "wandb"
    project: str = Field("threedgen", description="project of the run")

    def check(self) -> None:
        require("wandb", "name: wandb", "set logger=csv")
