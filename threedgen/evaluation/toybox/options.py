"""Config models of the probe and of the evaluations (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError, Scheduled, load, task_of
from threedgen.config.command import command
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, Elevations, RunConfig, TrainerConfig
from threedgen.places import folder
from threedgen.run.folder import user_path

MatteName = Annotated[str, Field(min_length=1, description="network that finds the foreground of an image")]
PROBE, IDENTITY = "toybox-probe", "toybox-identity"
"""Names of files."""
FRONT_THRESHOLD = 0.4
"""Chosen on 500 fresh toybox objects, each as it is and with two fronts: 2.4 % false alarms, 97.2 % recall."""
TRAIN_PROBE = f"train one with `{command('--config', 'train-toybox-probe')}`, which leaves it in RUN/probe"
TRAIN_IDENTITY = f"train one with `{command('--config', 'train-toybox-identity')}`, which leaves it in RUN/identity"


def network_file(weights: str, name: str, key: str, train: str) -> Path:
    """Finds a .safetensors file, NAME.safetensors in a folder, or the "embedded" one. Raises ConfigError for ``key`` if
    there is none; ``train`` says what to do."""
    path = folder("weights") if weights == "embedded" else user_path(weights, key)
    path = path / f"{name}.safetensors" if path.is_dir() or weights == "embedded" else path
    if not path.is_file():
        lost = f"this installation lacks {name}" if weights == "embedded" else f"there is no file {weights[:120]!r}"
        raise ConfigError(f"{lost}; {train}", key)
    return path


def probe_file(weights: str, key: str, embedded: str = PROBE) -> Path:
    """Finds the file of a probe, which ``key`` names. Raises ConfigError if there is none."""
    return network_file(weights, embedded if weights == "embedded" else PROBE, key, TRAIN_PROBE)


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
    spoiled: float = Field(
        0.0, ge=0, le=1, description="share of objects made rough, half of those with a front with two glued fronts"
    )
    learning_rate: Scheduled = Field({"0%": 1e-4, "4%": 3e-3, "30%": 3e-3, "100%": 1e-5}, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class TrainProbeConfig(RunConfig):
    """Train the probe that all evaluations look through."""

    start: str | None = Field(None, description="probe to go on from ('embedded', a file); null: from nothing")
    network: ProbeNetworkConfig = ProbeNetworkConfig()
    training: ProbeTrainingConfig = ProbeTrainingConfig()
    calibrated: int = Field(500, ge=20, description="fresh objects that say from when on an accessory counts as seen")
    measured: int = Field(1000, ge=1, description="other fresh objects, on which its accuracy is measured at the end")
    trainer: TrainerConfig = TrainerConfig(max_steps=5000, gradient_clip_val=5.0)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)


class ProbeConfig(Config):
    """The probe that looks."""

    embedded: ClassVar[str] = PROBE
    """The file that is meant by "embedded"."""

    weights: str = Field("embedded", min_length=1, description="'embedded', or a train-probe run's .safetensors file")

    def check(self) -> None:
        probe_file(self.weights, "weights", self.embedded)


class EvaluationConfig(RunConfig):
    """What every evaluation has."""

    probe: ProbeConfig = ProbeConfig()
    sheet: int = Field(24, ge=0, le=1000, description="objects on the contact sheet")


def load_task(key: str, task: str, name: str, overrides: Sequence[str], values: dict[str, Any]) -> Any:
    """Loads the config ``name``, which ``key`` names, with changes. Raises ConfigError for one of another task."""
    if (found := task_of(name)) != task:
        raise ConfigError(f"should be a config of the task {task} (got {name!r}, {found})", key)
    return load(name, list(overrides), values)


class EvaluatePriorConfig(EvaluationConfig):
    """Sample held-out combinations from a prior and measure what it drew."""

    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream", "mvadapter"))] = Field(
        {}, description="who draws"
    )
    samples: int = Field(200, ge=1, le=100_000, description="held-out combinations, one object each")
    n_view: int = Field(4, ge=2, le=64, description="views of each object")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0)
    from_noise: bool = Field(False, description="samples start from noise, not from the coarse prediction")
    negative_prompt: str = ""
    elevation_range: Elevations = Field((0.0, 30.0), description="degrees, one elevation for each object")
    fov: float = Field(40.0, gt=0, lt=180, description="degrees, of the true renders that samples are compared with")
    relative_distance: float = Field(0.95, gt=0, le=100, description="of those, in 1 / tan(fov / 2)")
    batch: int = Field(8, ge=1, le=1024, description="objects denoised together; one file for each batch")
    view_use: int = Field(
        64, ge=0, le=10_000, description="objects on which the use of other views is measured; 0: off"
    )
    open_nouns: int = Field(
        24, ge=0, le=76, description="prompts without colours, and as many with an accessory; 0: off"
    )
    seeds: int = Field(12, ge=2, le=1000, description="seeds of a prompt without colours, for the variety")
    matte: MatteName = "toybox-matte"


class Evaluate3DConfig(EvaluationConfig):
    """Make 3D objects of held-out prompts and measure their turntables."""

    config: str = Field("mvdream-toybox", min_length=1, description="the generate config that is measured")
    overrides: tuple[str, ...] = Field((), description="key=value changes of that config")
    matte: MatteName = "toybox-matte"
    prompts: int = Field(30, ge=1, le=1000, description="held-out prompts, as many different nouns as there are")
    calibration: int = Field(4, ge=0, le=100, description="ground-truth objects of each prompt, measured alike")
    assets: bool = Field(
        False, description="make their game-ready assets too, and a sheet of truth, sample, object, asset"
    )
    sheet: int = Field(30, ge=0, le=1000, description="objects on the contact sheet")
    sheet_views: int = Field(4, ge=1, le=8, description="of the eight views, so many on the sheet")

    def amount(self) -> str:
        return f"{self.prompts} objects by {self.config}"

    def check(self) -> None:
        load_task("config", "generate", self.config, self.overrides, {"prompt": "a dog"})
        super().check()


class IdentityNetworkConfig(ProbeNetworkConfig):
    """Size of the network that tells subjects apart."""

    channels: tuple[int, int, int, int] = Field((32, 64, 96, 128), description="width of each level")
    width: int = Field(64, ge=2, le=1024, description="numbers of an answer")


class IdentityTrainingConfig(Config):
    """How it learns: from subjects of ground truth, of which it sees two sides each."""

    kinds: int = Field(6, ge=1, description="kinds of things in a step")
    alike: int = Field(4, ge=2, description="subjects of each kind, to be told from one another")
    temperature: float = Field(0.1, gt=0, description="of the contrastive loss")
    augment: float = Field(1.0, ge=0, le=2, description="strength of blur, noise, colour shifts and moves; 0: none")
    learning_rate: Scheduled = Field({"0%": 1e-4, "5%": 2e-3, "40%": 2e-3, "100%": 1e-5}, ge=0)
    weight_decay: float = Field(0.02, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class TrainIdentityConfig(RunConfig):
    """Train the network that says whether two pictures show the same toybox subject."""

    network: IdentityNetworkConfig = IdentityNetworkConfig()
    training: IdentityTrainingConfig = IdentityTrainingConfig()
    measured: int = Field(40, ge=1, description="kinds of which `alike` fresh subjects each make its own ROC")
    trainer: TrainerConfig = TrainerConfig(max_steps=3000, gradient_clip_val=5.0)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)


class ToyboxIdentityConfig(Config):
    """The network that a train-toybox-identity run made."""

    name: Literal["toybox"] = Field("toybox", description="for subjects of the toybox")
    weights: str = Field("embedded", min_length=1, description="embedded, or the file or folder of a RUN/identity")

    def file(self) -> Path:
        """Raises ConfigError if there is none."""
        return network_file(self.weights, IDENTITY, "weights", TRAIN_IDENTITY)

    def check(self) -> None:
        self.file()


class HubIdentityConfig(Config):
    """An image encoder of the Hugging Face hub: for photos."""

    name: Literal["hub"] = Field("hub", description="any image encoder that transformers knows")
    weights: str = Field("facebook/dinov2-small", min_length=1, description="a folder, or an id on the hub")
    size: int = Field(224, ge=14, le=1024, description="pixels a side that it looks at")
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="of the colours that it was trained on")
    std: tuple[float, float, float] = Field((0.229, 0.224, 0.225), description="their spread")


class EvaluateSubjectsConfig(RunConfig):
    """Tune a prior on toybox subjects, and measure how much of them its samples show and what it forgot for it."""

    probe: ProbeConfig = ProbeConfig()
    identity: Annotated[Any, Component("identity", default="toybox")] = Field(
        {}, description="who says whether it is the same subject"
    )
    config: str = Field("mvdreambooth-toybox", min_length=1, description="the mvdreambooth config that is measured")
    overrides: tuple[str, ...] = Field((), description="key=value changes of that config")
    preservation: tuple[Literal["l1", "l2", "images", "lora", "none"], ...] = Field(
        ("l1", "l2", "images", "lora", "none"), min_length=1, description="what is compared; the first is on the sheet"
    )
    strengths: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        (1.0,), min_length=1, description="prior.personalisation_strength: the first for all, others for the first way"
    )
    subjects: int = Field(10, ge=1, le=1000, description="how many, of different kinds as far as there are")
    photos: int = Field(5, ge=2, le=100, description="pictures that each is learnt from")
    settings: tuple[str, ...] = Field(
        ("", "red hat", "blue scarf", "green glasses"), min_length=1, description="COLOUR ACCESSORY; empty: nothing"
    )
    held_out: int = Field(20, ge=1, le=10_000, description="held-out prompts that show what was forgotten")
    steps: int = Field(25, ge=1, le=1000, description="DDIM steps of the samples")
    guidance_scale: float = Field(3.0, ge=0)
    objects: str | None = Field(
        None, description="the generate config, such as quick-toybox, that makes 3D objects too; null: none are made"
    )

    @model_validator(mode="after")
    def _lists(self) -> EvaluateSubjectsConfig:
        for setting in self.settings:
            if setting and len(setting.split()) != 2:
                raise ValueError(f"settings should be COLOUR ACCESSORY, such as 'red hat' (got {setting!r})")
        for name, values, what in (("preservation", self.preservation, "way"), ("strengths", self.strengths, "value")):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} should name each {what} once")
        return self

    @property
    def rows(self) -> list[tuple[str, float]]:
        """Way and strength of each row of the table."""
        first, strength = self.preservation[0], self.strengths[0]
        further: list[tuple[str, float]] = [(first, other) for other in self.strengths[1:]]
        return [(first, strength), *further, *((other, strength) for other in self.preservation[1:])]
