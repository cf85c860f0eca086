"""Config models of the probe, the identity network and the toybox evaluations. This module does not import torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError, Scheduled, load, task_of
from threedgen.config.command import command
from threedgen.config.errors import short
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, RunConfig, TrainerConfig
from threedgen.evaluation.options import ExistingViews, SamplingConfig
from threedgen.guidance.weights.loading import embedded
from threedgen.run.disk import Tree
from threedgen.run.folder import existing_folder, user_path
from threedgen.run.options import Names, WorkersConfig
from threedgen.systems.batch.jobs import Job, job, object_config, words_of

PROBE, IDENTITY = "toybox-probe", "toybox-identity"  # names of the files of the embedded networks, without suffix
TRAIN_PROBE = f"Train one with `{command('--config', 'train-toybox-probe')}`; it is in RUN/probe."
TRAIN_IDENTITY = f"Train one with `{command('--config', 'train-toybox-identity')}`; it is in RUN/identity."
ObjectPrior = Annotated[Any, Component("prior", default="mvdream", only=("mvdream", "mvadapter"))]
Preservation = Literal["l1", "l2", "images", "lora", "none"]


def network_file(weights: str, name: str, key: str, remedy: str) -> Path:
    """Return the path of the .safetensors file of a network. Raises ConfigError if the file is missing.

    Args:
        weights: a .safetensors file, a folder with <name>.safetensors, or "embedded" for the <name>.safetensors that is
            installed with threedgen.
        name: name of the file, without suffix.
        key: config key of ``weights``, for the error message.
        remedy: last sentence of the error message.
    """
    if weights == "embedded":
        return embedded(f"{name}.safetensors", key)
    path = user_path(weights, key)
    path = path / f"{name}.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"there is no file {short(weights, 300)}. {remedy}", key)
    return path


def probe_file(weights: str, key: str, embedded: str = PROBE) -> Path:
    return network_file(weights, embedded if weights == "embedded" else PROBE, key, TRAIN_PROBE)


def load_task(key: str, task: str, name: str, overrides: Sequence[str], values: Tree) -> Any:
    """Load a config of the task ``task``, override options in it, and return the config model.

    Args:
        key: option of the caller's config that has ``name`` as its value, for error messages.
        task: task that the config must have.
        name: name or file of the config.
        overrides: "key=value" strings.
        values: dict from config key, such as "trainer.max_steps", to value; ``overrides`` win if both have a key.

    Raises:
        ConfigError: the config is of another task (the error names ``key``), or it has mistakes.
    """
    if (found := task_of(name)) != task:
        raise ConfigError(f"should be a config of the task {task} (got {short(name)}, {found})", key)
    return load(name, list(overrides), values)


# --- networks that measure ---------------------------------------------------------------------------------------


class ProbeNetworkConfig(Config):
    """Options of the size of the probe, a residual network that classifies toybox images."""

    image_size: int = Field(64, ge=32, le=256, multiple_of=16, description="side of the input, pixels")
    channels: tuple[int, int, int, int] = Field((32, 64, 96, 112), description="width of each level")


class ProbeTrainingConfig(Config):
    """Options of the training of the probe: learning rate, and share of objects that are rendered as noisy meshes.

    The probe is a classifier of toybox images. Its training objects include those that are held out of the training of
    priors (image generators).
    """

    learning_rate: Scheduled = Field({"0%": 1e-4, "4%": 3e-3, "30%": 3e-3, "100%": 1e-5}, ge=0)
    spoiled: float = Field(0.0, ge=0, le=1, description="share of objects made rough; half of these with two fronts")


class TrainProbeConfig(RunConfig):
    """Options of the training of the probe, which toybox evaluations use.

    The probe is a classifier of toybox images: noun, colours, parts and viewing side.
    """

    start: str | None = Field(None, description="initial probe, 'embedded' or a file; null: random weights")
    network: ProbeNetworkConfig = ProbeNetworkConfig()
    training: ProbeTrainingConfig = ProbeTrainingConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=5000, gradient_clip_val=5.0)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)


class IdentityNetworkConfig(ProbeNetworkConfig):
    """Options of the size of the network that encodes an image of a subject as a vector, to recognise the subject.

    A subject is an unusual toybox object. Evaluations tune priors (image generators) on its photos.
    """

    channels: tuple[int, int, int, int] = Field((32, 64, 96, 128), description="width of each level")
    width: int = Field(64, ge=2, le=1024, description="dimension of the output vector")


class TrainIdentityConfig(RunConfig):
    """Options of the training of the network that recognises whether two images show the same toybox subject.

    A subject is an unusual toybox object.
    """

    network: IdentityNetworkConfig = IdentityNetworkConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=3000, gradient_clip_val=5.0)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)


class ProbeConfig(Config):
    """Options of the probe, a classifier of toybox images: the location of its weights."""

    embedded: ClassVar[str] = PROBE  # name, without suffix, of the installed file that weights "embedded" stand for

    weights: str = Field("embedded", min_length=1, description="'embedded', or a train-probe run's .safetensors file")

    def check(self) -> None:
        probe_file(self.weights, "weights", self.embedded)


class ProbeSidesConfig(ProbeConfig):
    """Probe (classifier of toybox images) that tells which side a view shows: front, left, back or right.

    Its training images include typical faults of 3D objects: noisy meshes, and a second front on the back. Options: the
    location of its weights.
    """

    embedded: ClassVar[str] = "toybox-sides"

    name: Literal["probe"] = Field("probe", description="for objects of the toybox")


class ProbeFeaturesConfig(ProbeConfig):
    """Probe (classifier of toybox images) as the network of the metrics FID, KID and Inception score.

    The classes of the Inception score are the nouns of toybox objects.

    Options: the location of its weights.
    """

    name: Literal["probe"] = "probe"


class ToyboxIdentityConfig(Config):
    """Options of the identity network, which recognises toybox subjects in images: the location of its weights.

    A subject is an unusual toybox object.
    """

    weights: str = Field("embedded", min_length=1, description="'embedded', or the file or folder of a RUN/identity")

    def file(self) -> Path:
        return network_file(self.weights, IDENTITY, "weights", TRAIN_IDENTITY)

    def check(self) -> None:
        self.file()


# --- evaluations -------------------------------------------------------------------------------------------------


class ToyboxScenesConfig(Config):
    """Scenes of held-out toybox captions, each with true views of an object from a ring of cameras.

    Held-out captions have combinations of noun, colour and part that training excludes. True views are renders of an
    object that the caption describes. Options: number of captions, cameras and size of the true views.
    """

    name: Literal["toybox"] = "toybox"
    count: int = Field(40, ge=1, le=10_000, description="number of captions")
    views: int = Field(60, ge=4, le=10_000, description="evenly spaced views of the object")
    elevation: float = Field(15.0, gt=-90, lt=90, description="elevation of the cameras, degrees")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view, degrees")
    relative_distance: float = Field(0.95, gt=0, le=100, description="camera distance in units of 1 / tan(fov / 2)")
    size: int = Field(64, ge=8, le=2048, description="side of a view, pixels")


class EvaluatePriorConfig(SamplingConfig):
    """Options of the evaluation that samples held-out captions from a prior and judges the samples with the probe.

    A prior is an image generator, and the probe a classifier of toybox images. Held-out captions have combinations of
    noun, colour and part that training excludes.
    """

    probe: ProbeConfig = ProbeConfig()
    prior: ObjectPrior = Field({}, description="prior to evaluate")
    samples: int = Field(200, ge=1, le=100_000, description="held-out combinations, one object each")
    n_view: int = Field(4, ge=2, le=64, description="views per object")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view of the true renders, degrees")
    relative_distance: float = Field(
        0.95, gt=0, le=100, description="camera distance of the true renders, in units of 1 / tan(fov / 2)"
    )
    view_use: int = Field(64, ge=0, le=10_000, description="objects that measure the use of the other views; 0: off")
    open_nouns: int = Field(24, ge=0, le=76, description="prompts without colour; as many with an accessory; 0: off")

    @model_validator(mode="after")
    def _check_view_use(self) -> Self:
        if self.view_use == 1:
            raise ValueError(
                "view_use 1 should be 0 or at least 2: views of an object are replaced by another object's"
            )
        return self


class Evaluate3DConfig(RunConfig):
    """Options of the evaluation that makes 3D objects of held-out prompts and judges turntable views with the probe.

    Turntable views are from a ring of cameras around the object, and the probe is a classifier of toybox images.
    Held-out prompts have combinations of noun, colour and part that training excludes.
    """

    probe: ProbeConfig = ProbeConfig()
    config: str = Field("mvdream-toybox", min_length=1, description="generate config to evaluate")
    overrides: tuple[str, ...] = Field((), description="key=value overrides of that config")
    prompts: int = Field(30, ge=1, le=1000, description="held-out prompts, of different nouns as far as possible")
    existing: ExistingViews = None

    def check(self) -> None:
        if self.existing is not None:
            existing_folder(self.existing, "existing")
        load_task("config", "generate", self.config, self.overrides, {"prompt": "a dog"})
        super().check()


class Compare3DConfig(WorkersConfig):
    """Options of the comparison of several variants of a config for 3D objects, such as mvdream-toybox.

    A variant is the config with some options changed. Each variant makes an object of each held-out prompt; these have
    combinations of noun, colour and part that no training of the prior has seen. The objects are compared after equally
    many steps. With the option `seconds`, they are also compared in the state after that training time.
    """

    probe: ProbeConfig = ProbeConfig()
    config: str = Field("mvdream-toybox", min_length=1, description="generate config of all variants")
    overrides: tuple[str, ...] = Field((), description="key=value overrides of all variants")
    variants: Names = Field(min_length=1, description="key=value words of each variant; the first is the reference")
    prompts: int = Field(12, ge=1, le=1000, description="held-out prompts, of different nouns as far as possible")
    steps: int = Field(300, ge=1, description="training steps of each run")
    seconds: float | None = Field(None, gt=0, description="training seconds of the second comparison; null: none")

    def methods(self) -> dict[str, str]:
        """Return a dict from the label of each variant to its method, such as "mvdream-toybox field.name=ngp".

        A variant is an entry of the option `variants`, such as "field.name=ngp". Its method is the name of the config,
        then key=value overrides that all variants have, then this entry. Its label has only the values in the entry,
        such as "ngp". If two labels would be equal, the labels are the entries instead.
        """
        fixed = ["export.enabled=false", "preview.enabled=false", "result.turntable.n_view=8"]
        fixed += [f"trainer.max_steps={self.steps}", "trainer.val_check_interval=0"]
        fixed += [f"checkpoint.keep={self.seconds:g}"] if self.seconds else []
        labels = [" ".join(word.partition("=")[2] for word in words_of(text)) for text in self.variants]
        labels = labels if len({*labels}) == len(labels) else list(self.variants)
        methods = (" ".join([self.config, *fixed, *self.overrides, text]) for text in self.variants)
        return dict(zip(labels, methods, strict=True))

    def labelled_jobs(self) -> list[tuple[str, Job]]:
        """Return a pair (label of the variant, job) for each prompt and variant. A job makes one object in a run.

        Raises ConfigError if a variant is not a valid config, or if there are too few held-out prompts.
        """
        from .held_out import held_out_cases

        captions = [case.caption for case in held_out_cases(self.prompts, self.seed, spread=True)]
        bases = {
            label: (method, object_config(method, (), captions[0], "variants", "the comparison"))
            for label, method in self.methods().items()
        }
        return [(label, job(*base, text, self.seed)) for text in captions for label, base in bases.items()]

    def check(self) -> None:
        load_task("config", "generate", self.config, self.overrides, {"prompt": "a dog"})
        if self.seconds is not None and (self.engine != "here" or self.workers > 1):
            raise ConfigError("compares times, which need one run at a time. Set engine=here", "seconds", self.seconds)
        for made in {label: made for label, made in self.labelled_jobs()}.values():
            made.config.check()
        super().check()


class EvaluateSubjectsConfig(RunConfig):
    """Options of the evaluation that tunes a prior on toybox subjects, and measures identity and forgetting.

    A prior is an image generator. It is tuned on photos of a subject, an unusual toybox object. Identity is the
    similarity of samples to true views of the subject. Forgetting is the decrease of the correct answers of the probe,
    a classifier of toybox images, for samples of other objects.
    """

    probe: ProbeConfig = ProbeConfig()
    identity: ToyboxIdentityConfig = ToyboxIdentityConfig()
    config: str = Field("mvdreambooth-toybox", min_length=1, description="mvdreambooth config to evaluate")
    overrides: tuple[str, ...] = Field((), description="key=value overrides of that config")
    preservation: tuple[Preservation, ...] = Field(
        get_args(Preservation), min_length=1, description="methods to compare; the first is on the sheet"
    )
    strengths: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        (1.0,), min_length=1, description="prior.personalisation_strength: first for all methods, others for the first"
    )
    subjects: int = Field(10, ge=1, le=1000, description="number of subjects, of different nouns as far as possible")
    steps: int = Field(25, ge=1, le=1000, description="DDIM steps of the samples")
    guidance_scale: float = Field(3.0, ge=0, description="scale of classifier-free guidance")

    @property
    def rows(self) -> list[tuple[str, float]]:
        """Tuned priors that are compared, one per row of the report's table, as pairs (preservation, strength).

        The preservation (option `preservation`), such as "l1", is a method by which the tuning keeps the prior from
        forgetting other objects. The strength (option `strengths`) is a factor on the change of the weights by the
        tuning. The first preservation is paired with every strength, each other one only with the first strength.
        """
        first, strength = self.preservation[0], self.strengths[0]
        further: list[tuple[str, float]] = [(first, other) for other in self.strengths[1:]]
        return [(first, strength), *further, *((other, strength) for other in self.preservation[1:])]

    def check(self) -> None:
        values = {"prompt": "a [v] dog", "identifier": "[v]", "photos": ["photos"]}
        load_task("config", "mvdreambooth", self.config, self.overrides, values)
        super().check()
