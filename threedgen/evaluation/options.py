"""Config models of the probe and of the evaluations (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from threedgen.config import Config, Schedule
from threedgen.options import CheckpointConfig, Elevations, RunConfig, TrainerConfig
from threedgen.registry import Component


class ProbeNetworkConfig(Config):
    """Size of the probe: a small residual network of four levels."""

    image_size: int = Field(64, ge=32, le=256, multiple_of=16, description="pixels it looks at; others are resized")
    channels: tuple[int, int, int, int] = Field((32, 64, 96, 112), description="width of each level")


class ProbeTrainingConfig(Config):
    """How the probe learns: from toybox renders of both splits, for it is a measuring instrument."""

    n_view: int = Field(2, ge=1, le=16, description="pictures of an object, from all around")
    block: int = Field(8, ge=1, description="objects rendered together, one block each step")
    blocks: int = Field(4, ge=1, description="blocks in a batch: the new one and earlier ones, newly augmented")
    window: int = Field(256, ge=1, description="how many steps back those earlier ones come from")
    augment: float = Field(1.0, ge=0, le=2, description="strength of blur, noise, colour shifts and moves; 0: none")
    learning_rate: Schedule = Field({"0%": 1e-4, "4%": 3e-3, "30%": 3e-3, "100%": 1e-5}, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast")


class TrainProbeConfig(RunConfig):
    """Train the probe that all evaluations look through."""

    start: str | None = Field(None, description="probe to go on from ('embedded', a file); null: from nothing")
    network: ProbeNetworkConfig = ProbeNetworkConfig()
    training: ProbeTrainingConfig = ProbeTrainingConfig()
    calibrated: int = Field(500, ge=20, description="fresh objects that say from when on an accessory counts as seen")
    measured: int = Field(1000, ge=1, description="other fresh objects, on which its accuracy is measured at the end")
    trainer: TrainerConfig = TrainerConfig(max_steps=5000, gradient_clip_val=5.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)


class ProbeConfig(Config):
    """The probe that looks."""

    weights: str = Field(
        "embedded", min_length=1, description="'embedded', or the .safetensors file of a train-probe run"
    )


class EvaluationConfig(RunConfig):
    """What every evaluation has."""

    probe: ProbeConfig = ProbeConfig()
    first: int = Field(0, ge=0, description="index of the first held-out asset that is tried")
    sheet: int = Field(24, ge=0, le=1000, description="objects on the contact sheet")
    worst: int = Field(20, ge=0, description="objects in the list of the worst")


class EvaluatePriorConfig(EvaluationConfig):
    """Sample held-out combinations from a prior and measure what it drew."""

    prior: Annotated[Any, Component("prior", default="mvdream")] = Field({}, description="who draws")
    samples: int = Field(200, ge=1, le=100_000, description="held-out combinations, one object each")
    n_view: int = Field(4, ge=2, le=64, description="views of each object")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0)
    negative_prompt: str = ""
    elevation_range: Elevations = Field((0.0, 30.0), description="degrees, one elevation for each object")
    batch: int = Field(8, ge=1, le=1024, description="objects denoised together; one file for each batch")


class Evaluate3DConfig(EvaluationConfig):
    """Make 3D objects of held-out prompts and measure their turntables."""

    config: str = Field("mvdream-toybox", min_length=1, description="the generate config that is measured")
    overrides: tuple[str, ...] = Field((), description="key=value changes of that config")
    prompts: int = Field(30, ge=1, le=1000, description="held-out prompts, as many different nouns as there are")
    calibration: int = Field(4, ge=0, le=100, description="ground-truth objects of each prompt, measured alike")
    sheet: int = Field(30, ge=0, le=1000, description="objects on the contact sheet")
    sheet_views: int = Field(4, ge=1, le=8, description="of the eight views, so many on the sheet")
