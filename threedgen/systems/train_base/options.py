"""Config models of the task that trains the 2D model of the toybox (no torch here)."""

from __future__ import annotations

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.sections import CheckpointConfig, RunConfig, TrainerConfig
from threedgen.systems.train_prior.options import AutoencoderConfig, NetworkConfig


class WordsConfig(Config):
    """How the text encoder learns what captions mean before the UNet begins: it tells pictures apart, as CLIP does."""

    max_steps: int = Field(800, ge=1)
    batch: int = Field(256, ge=2, description="pictures in a step, told apart by their captions")
    pictures: int = Field(16_384, ge=2, description="pictures at most")
    fresh: int = Field(16, ge=0, description="pictures that a step adds to those of the step before")
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    weight_decay: float = Field(0.05, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class DiffusionConfig(Config):
    """How the UNet learns from single pictures."""

    batch: int = Field(64, ge=1, description="pictures in a step")
    fresh: int = Field(8, ge=0, description="pictures of a step that no step saw before; the rest is seen again")
    first: int = Field(8192, ge=1, description="pictures to begin with")
    pictures: int = Field(600_000, ge=1, description="pictures at most; from then on all are seen again")
    no_text: float = Field(0.1, ge=0, le=1, description="share of pictures whose caption is left out, for guidance")
    timestep_power: float = Field(
        0.9, gt=0, le=2, description="t = T u^this: below 1 favours noise, where shape and colour are decided"
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 1e-3, "70%": 1e-3, "100%": 2e-5})
    weight_decay: float = Field(0.01, ge=0)
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the average of the weights, which is what ships")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")
    sheet_prompts: tuple[str, ...] = Field(
        (
            "a blue dog wearing a red hat",
            "a yellow car with black wheels",
            "a white house with a red roof",
            "a green robot wearing a purple scarf",
            "a pink teapot",
            "a brown chair",
            "a red penguin",
            "a grey wizard",
            "a blue room with a red sofa and a window",
            "a yellow room with a green bed, a brown door and a purple lamp",
            "the corner of a green room",
            "a pink room with a blue floor and a black table",
        ),
        description="prompts of the sample sheet",
    )

    @model_validator(mode="after")
    def _room(self) -> DiffusionConfig:
        if self.fresh > self.batch:
            raise ValueError(f"fresh {self.fresh} should not exceed batch {self.batch}")
        return self


class TrainBaseConfig(RunConfig):
    """Train the 2D model of the toybox from nothing: an autoencoder, a text encoder, then the UNet."""

    image_size: int = Field(128, ge=32, le=1024, description="pixels of a picture")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    network: NetworkConfig = NetworkConfig(draft=False, max_tokens=32)
    words: WordsConfig = WordsConfig()
    training: DiffusionConfig = DiffusionConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=24_000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _fit(self) -> TrainBaseConfig:
        unit = self.autoencoder.factor
        if self.image_size % unit:
            near = max(unit, round(self.image_size / unit) * unit)
            raise ValueError(f"image_size {self.image_size} should be a multiple of {unit}; try {near}")
        return self
