"""Config sections that many tasks share: cameras, trainer, checkpoints, loggers, and the base of all tasks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.optional import require

Pair = tuple[float, float]
BETAS = (0.9, 0.98)
"""Decay rates (beta1, beta2) of AdamW's moments. The default beta2 of torch is 0.999."""


def _within(low: float, high: float, open_ends: bool = False) -> Callable[[Pair], Pair]:
    def check(value: Pair) -> Pair:
        first, last = value
        if first > last:
            raise ValueError(f"should be [low, high] with low <= high: [{last:g}, {first:g}]?")
        if first < low or last > high or (open_ends and (first == low or last == high)):
            raise ValueError(f"should lie {'strictly ' if open_ends else ''}between {low:g} and {high:g}")
        return value

    return check


Elevations = Annotated[Pair, AfterValidator(_within(-90, 90))]
Shares = Annotated[Pair, AfterValidator(_within(0, 1))]
Fovs = Annotated[Pair, AfterValidator(_within(0, 180, open_ends=True))]
Positives = Annotated[Pair, AfterValidator(_within(0, 1000, open_ends=True))]


class MultiviewCameraConfig(Config):
    """Random training cameras around the object in groups of `n_view`, as in MVDream.

    Options of these cameras. The cameras of a group have the same random elevation, distance, field of view, and
    perturbations of position, look-at point and up vector. Their azimuths are evenly spaced over the full turn,
    starting at a random azimuth. Until the step `progressive_until`, they cover only a part of the turn, which grows.
    """

    name: Literal["multiview"] = "multiview"
    n_view: int = Field(4, ge=1, le=64, description="views per group; 1: independent cameras")
    elevation_range: Elevations = Field((0.0, 30.0), description="degrees above the horizon")
    fov_range: Fovs = Field((15.0, 60.0), description="vertical field of view, degrees")
    distance_range: Positives = Field(
        (0.8, 1.0), description="distance to the centre, in the unit of relative_distance"
    )
    relative_distance: bool = Field(
        True, description="distances in units of 1 / tan(fov / 2): the same object size at any fov"
    )
    zoom_range: Positives = Field((1.0, 1.0), description="factor on the fov that does not change the distance")
    camera_perturb: float = Field(0.0, ge=0, description="maximum shift of the camera along each axis")
    center_perturb: float = Field(0.0, ge=0, description="standard deviation of the look-at point")
    up_perturb: float = Field(0.0, ge=0, description="standard deviation of the up vector")
    light_sample_strategy: Literal["dreamfusion", "magic3d"] = Field(
        "dreamfusion", description="point light near the camera, or on a cap around its direction"
    )
    elevation_reference: bool = Field(
        False, description="sample elevations like MVDream-threestudio, half of them in a smaller range"
    )
    light_reference: bool = Field(False, description="magic3d light as in threestudio, only from below the camera")
    progressive_until: int = Field(0, ge=0, description="step until which elevation and azimuth ranges widen; 0: off")
    progressive_elevation: float = Field(
        15.0, ge=-90, le=90, description="elevation in degrees from which the range widens"
    )

    @model_validator(mode="after")
    def _check_zoom(self) -> Self:
        if self.fov_range[1] * self.zoom_range[1] >= 180:
            problem = (
                f"the fov can reach {self.fov_range[1] * self.zoom_range[1]:g} degrees: fov_range={self.fov_range}"
            )
            raise ValueError(f"{problem}, zoom_range={self.zoom_range}. Keep the product of their upper ends below 180")
        return self


class OrbitCameraConfig(Config):
    """Options of a ring of cameras for validation images and turntables.

    They are the number of images, elevation, distance and field of view of the cameras, and the image size.
    """

    n_view: int = Field(120, ge=1, le=10_000, description="images per turn")
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees above the horizon")
    distance: float = Field(3.0, gt=0, description="distance to the centre")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view, degrees")
    height: int = Field(512, ge=1, le=8192, description="pixels")
    width: int = Field(512, ge=1, le=8192, description="pixels")


class TrainerConfig(Config):
    """Arguments of Lightning's Trainer, under the same names.

    Four options differ from Lightning's:

    - `accelerator` "auto" and "gpu" never select MPS, which must be named.
    - `precision` is 32-true or bf16-mixed, in the task "generate" also 16-mixed: weights stay in float32. Whatever the
      value, the networks of training tasks compute in bfloat16 by default on every device that has it.
    - `val_check_interval` is not passed on, because the callback `Validation` writes the validation images.
    - `deterministic` "warn" becomes False on a CUDA device. Some sums in the hash grid's Triton kernels have no fixed
      order there, so the run is not reproducible anyway, and other deterministic algorithms would only cost time. On a
      CPU, "warn" uses deterministic algorithms, with a warning where none exists. True and False are unchanged.
    """

    max_steps: int = Field(1000, ge=1, le=1_000_000_000, description="optimisation steps")
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = Field(
        "auto", description="device type; auto: CUDA if there is a device, else the CPU; gpu: CUDA"
    )
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="number of devices; auto: all GPUs (one in a notebook), or one CPU process"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="number format of the training step")
    gradient_clip_val: float | None = Field(None, gt=0, description="maximum gradient norm; null: no clipping")
    accumulate_grad_batches: int = Field(1, ge=1, description="batches per optimisation step")
    log_every_n_steps: int = Field(10, ge=1, description="steps between two lines of metrics")
    val_check_interval: int = Field(0, ge=0, description="steps between two validation images; 0: only at the end")
    deterministic: bool | Literal["warn"] = Field(
        "warn", description="deterministic algorithms; warn: on a CPU where one exists, off on a GPU"
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _no_list(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            chosen = ",".join(map(str, value))
            raise ValueError(
                f"is a number, not a list. Set trainer.devices={len(value)}, and choose the GPUs by the environment "
                f"variable CUDA_VISIBLE_DEVICES={chosen}"
            )
        return value

    def check(self) -> None:
        if self.accelerator not in ("auto", "cpu"):
            import torch

            kind = torch.backends.mps if self.accelerator == "mps" else torch.cuda
            if not kind.is_available():
                raise ConfigError("is no device for torch; choose auto or cpu", "accelerator", self.accelerator)
        if self.devices not in ("auto", 1) and is_interactive():
            problem = "several devices cannot train in a notebook or another interactive session. Set trainer.devices=1"
            raise ConfigError(problem, "devices", str(self.devices))
        self._check_slurm()

    def _check_slurm(self) -> None:
        if (tasks := srun_tasks()) == 1:
            return
        import torch

        gpus = torch.cuda.device_count() if self.accelerator in ("auto", "gpu", "cuda") else 0
        devices = (gpus or 1) if self.devices == "auto" else self.devices
        per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE", 0))
        if not (tasks == per_node == devices) or 0 < gpus < devices:
            problem = f"srun started {tasks} processes, the run has {devices} devices, each process sees {gpus} GPUs"
            advice = f"Use srun --ntasks=1 --gres=gpu:{tasks} (the run then starts the other processes)"
            raise ConfigError(f"{problem}. {advice} or srun --ntasks-per-node={tasks} --gres=gpu:{tasks}", "devices")


def srun_tasks() -> int:
    """Return the number of processes that Slurm's `srun` has started for this command; 1 without it."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def is_interactive() -> bool:
    """Return whether this process is a notebook or another interactive Python session."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


class CheckpointConfig(Config):
    """Options of the checkpoints of a run.

    They are the seconds between two checkpoints, the seconds of training after which an extra one is saved and never
    overwritten, and whether the run trains no further and only writes the results of its last checkpoint.
    """

    seconds: float = Field(30.0, ge=0, description="seconds between two checkpoints")
    keep: float | None = Field(None, gt=0, description="seconds of training after which one is kept as kept.ckpt")
    finish: bool = Field(False, exclude=True, description="write the results of the last checkpoint, same as --finish")


class LoggerConfig(Config):
    """Additional log beside metrics.csv and metrics.jsonl: none, TensorBoard in RUN/tensorboard, or Weights & Biases.

    The option `name` selects it: "csv" (none), "tensorboard" or "wandb". Weights & Biases needs the command
    `wandb login`, WANDB_API_KEY, or WANDB_MODE=offline.
    """

    name: str = Field(description="logger")

    def check(self) -> None:
        if self.name in ("tensorboard", "wandb"):
            require(self.name, f"name: {self.name}", "set logger=csv")
        online = self.name == "wandb" and os.environ.get("WANDB_MODE", "online") == "online"
        netrc = os.environ.get("NETRC"), "~/.netrc", "~/_netrc"  # `wandb login` writes it
        files = [*(Path(place).expanduser() for place in netrc if place), Path("wandb/settings")]  # `wandb offline`
        logged_in = os.environ.get("WANDB_API_KEY") or any(file.exists() for file in files)
        if online and not logged_in and not sys.stdin.isatty():
            advice = "Set WANDB_MODE=offline, and use `wandb sync` later, or set WANDB_API_KEY"
            raise ConfigError(f"is not logged in. {advice}, or run `wandb login`", "name", self.name)


class TaskConfig(Config):
    """Base class of the config models of tasks.

    A task is what the program does in a run, such as a training; the config key `task` names it.

    `common` lists the keys that --help without an argument shows. If it is empty, --help shows the options at the top
    level, the `name` of each selectable component, such as prior.name, and the keys in `help.COMMON`, such as
    trainer.max_steps.
    """

    common: ClassVar[tuple[str, ...]] = ()

    task: str = Field(description="task; decides the keys of the config (see --list)")
    about: str = Field("", description="description for --list")
    needs: str = Field("", description="requirements for --list")

    def destination(self) -> Path | None:
        """Return the output folder of the run, which is printed at its start. None: there is no such folder."""
        return None

    def notes(self) -> list[str]:
        """Return notes for the user that are printed before a run, one sentence each."""
        return []

    def without_unused_sections(self) -> Self:
        """Return the config with None for each section that the run does not use, such as `prior`.

        --dry-run and the checks of some tasks use the result, so that they do not ask for weights that the run does not
        need. The base class returns the config unchanged; a task that has such sections overrides this method.
        """
        return self


class RunConfig(TaskConfig):
    """Base class of the config models of tasks that write to a run folder.

    The config of a run must not change when the run is resumed. Exceptions are keys that may change in every task, such
    as trainer.max_steps, and the keys in the first two attributes.

    Attributes:
        changeable_on_resume: keys that may change, such as the number of evaluated scenes.
        movable_inputs: keys of input paths, which only --resume may change. Checkpoints have the hashes of the inputs.
        shares_default_folder: whether, without `out`, runs that differ only in `changeable_on_resume` share a folder.
    """

    changeable_on_resume: ClassVar[tuple[str, ...]] = ()
    movable_inputs: ClassVar[tuple[str, ...]] = ()
    shares_default_folder: ClassVar[bool] = False

    seed: int = Field(
        0, ge=0, lt=2**63, description="random seed; same seed, machine and package versions: identical result files"
    )
    out: str | None = Field(
        None, description="run folder; null: outputs/CONFIG/PROMPT-HASH, such as a-red-penguin-22d56f64"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads; null: one per core, shared by trainer.devices"
    )

    def destination(self) -> Path | None:
        return None if self.out is None else Path(self.out)
