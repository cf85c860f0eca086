"""Options of the core: cameras, and what every run has. Typed, bounded, and free of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from threedgen.config import Config, ConfigError, Scheduled

Pair = tuple[float, float]
BETAS = (0.9, 0.98)
"""Of AdamW: it forgets the sizes of gradients faster than by its default, 0.999."""
Average = Annotated[
    float, Field(ge=0, lt=1, description="decay of the average of the weights, which is what ships; 0: as they are")
]


def _within(low: float, high: float, open_ends: bool = False) -> Callable[[Pair], Pair]:
    """A check that a range ascends and stays in [low, high], or in (low, high)."""

    def check(value: Pair) -> Pair:
        first, last = value
        if first > last:
            raise ValueError(f"should be [low, high] with low <= high: [{last:g}, {first:g}]?")
        if first < low or last > high or (open_ends and (first == low or last == high)):
            raise ValueError(f"should lie {'strictly ' if open_ends else ''}between {low:g} and {high:g}")
        return value

    return check


Elevations = Annotated[Pair, AfterValidator(_within(-90, 90))]
Azimuths = Annotated[Pair, AfterValidator(_within(-360, 360))]
Shares = Annotated[Pair, AfterValidator(_within(0, 1))]
Fovs = Annotated[Pair, AfterValidator(_within(0, 180, open_ends=True))]
Positives = Annotated[Pair, AfterValidator(_within(0, 1000, open_ends=True))]


class MultiviewCameraConfig(Config):
    """How training cameras are drawn: groups of `n_view` views around the object (MVDream's sampler).

    The views of a group share everything but the azimuth, which is spread evenly from one random offset.
    """

    n_view: int = Field(4, ge=1, le=64, description="views of one group; 1: independent cameras")
    elevation_range: Elevations = Field((0.0, 30.0), description="degrees above the horizon")
    azimuth_range: Azimuths = Field((-180.0, 180.0), description="degrees, divided evenly by a group")
    fov_range: Fovs = Field((15.0, 60.0), description="vertical field of view, degrees")
    distance_range: Positives = Field((0.8, 1.0), description="distance to the centre; see relative_distance")
    relative_distance: bool = Field(
        True, description="distances count in 1 / tan(fov / 2): the object fills the picture at any fov"
    )
    zoom_range: Positives = Field((1.0, 1.0), description="factor on the fov, after the distance is chosen")
    camera_perturb: float = Field(0.0, ge=0, description="cameras move by up to this, along each axis")
    center_perturb: float = Field(0.0, ge=0, description="standard deviation of the point looked at")
    up_perturb: float = Field(0.0, ge=0, description="standard deviation of the up vector")
    light_sample_strategy: Literal["dreamfusion", "magic3d"] = Field(
        "dreamfusion", description="point light: near the camera, or on a cap around its direction"
    )
    light_distance_range: Positives = Field((0.8, 1.5), description="distance of the light to the centre")
    light_position_perturb: float = Field(1.0, ge=0, description="spread of dreamfusion's light")
    elevation_reference: bool = Field(False, description="MVDream-threestudio's own spread: squeezes half of the draws")
    light_reference: bool = Field(False, description="threestudio's own magic3d light: from below the camera only")
    progressive_until: int = Field(0, ge=0, description="ranges widen until this step; 0: off")
    progressive_elevation: float = Field(15.0, ge=-90, le=90, description="degrees, where they widen from")


class OrbitCameraConfig(Config):
    """A ring of cameras for validation pictures and turntables."""

    n_view: int = Field(120, ge=1, le=10_000, description="pictures of one turn")
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees above the horizon")
    azimuth: float = Field(0.0, ge=-360, le=360, description="degrees, of the first picture; 0 is the front")
    distance: float = Field(3.0, gt=0, description="to the centre")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view, degrees")
    height: int = Field(512, ge=1, le=8192, description="pixels")
    width: int = Field(512, ge=1, le=8192, description="pixels")


class TrainerConfig(Config):
    """Arguments of Lightning's Trainer, under their own names."""

    max_steps: int = Field(1000, ge=1, le=1_000_000_000, description="optimisation steps")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field("auto", description="kind of device")
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", description="devices on each machine")
    num_nodes: int = Field(1, ge=1, description="number of machines")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = Field(
        "auto", description="how devices share the work"
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"] = Field(
        "32-true", description="number format of the training step"
    )
    gradient_clip_val: float | None = Field(None, gt=0, description="largest gradient norm (or value)")
    gradient_clip_algorithm: Literal["norm", "value"] = Field("norm", description="what is clipped")
    accumulate_grad_batches: int = Field(1, ge=1, description="batches summed before a step")
    log_every_n_steps: int = Field(10, ge=1, description="a line of metrics every that many steps, and at the last")
    val_check_interval: int = Field(0, ge=0, description="pictures every that many steps; 0: only at the end")
    deterministic: bool | Literal["warn"] = Field(
        "warn", description="deterministic algorithms: true, false, or warn where there is none"
    )
    benchmark: bool = Field(False, description="let cuDNN try its algorithms first")

    def check(self) -> None:
        """Is there the device that is asked for by name?  Loads torch only to look for one."""
        if self.accelerator not in ("auto", "cpu"):
            import torch

            there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
            if not there.get(self.accelerator, any(there.values())):
                raise ConfigError(
                    "there is no such device, or torch cannot use it; auto takes what there is, cpu the processor",
                    "accelerator",
                    self.accelerator,
                )


class CheckpointConfig(Config):
    """When a run saves what it needs to go on."""

    seconds: float = Field(30.0, ge=0, description="save at the next step after that many seconds")
    keep: int = Field(2, ge=1, le=100, description="checkpoints kept, the newest included")


class LearningConfig(Config):
    """How a network learns from data that is made while it does."""

    batch: int = Field(ge=1, description="entries in a step")
    fresh: int = Field(ge=0, description="of them, those that no step saw before")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon learns more in a step, and takes longer")
    learning_rate: Scheduled
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        BETAS, description="of AdamW, also of what Muon leaves to it"
    )
    weight_decay: float = Field(0.01, ge=0)
    ema: Average = 0.0

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.fresh > self.batch:
            raise ValueError(f"fresh {self.fresh} should not exceed batch {self.batch}")
        return self


class TaskConfig(Config):
    """What every config has at its top level."""

    task: str = Field(description="what is done; decides which keys there are (see --list)")
    about: str = Field("", description="one line for --list: what this config does")
    needs: str = Field("", description="one line for --list: what it needs beyond the installation")

    def destination(self) -> Path | None:
        """The folder that its first line names; None: it is done before one would read that."""
        return None

    def notes(self) -> list[str]:
        """What a user should know of it before it runs, a sentence each."""
        return []

    def used(self) -> Self:
        """The config without the sections that this run makes no use of."""
        return self

    def amount(self) -> str:
        """How many things a run makes, in words, if it makes many; else ""."""
        return ""


class RunConfig(TaskConfig):
    """What the config of a run has; a run gets a folder of its own, other tasks look after theirs.

    extends: keys that say how much of the same is done: with another value a run goes on in its folder.
    """

    extends: ClassVar[tuple[str, ...]] = ()

    seed: int = Field(0, ge=0, lt=2**63, description="same seed, machine and versions: the same bytes")
    out: str | None = Field(None, description="folder of the run; else outputs/CONFIG/words-of-the-prompt")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: as many as cores, shared by trainer.devices"
    )

    def destination(self) -> Path | None:
        return None if self.out is None else Path(self.out)
