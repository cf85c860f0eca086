"""Config models of the task `generate`. The module does not import torch."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field, create_model, model_validator

from threedgen.config import Config, ConfigError, Layer, Scheduled, merge, plain, registry, sections, validate
from threedgen.config.errors import key_prefix, short
from threedgen.config.registry import SECTION, Component
from threedgen.export.options import ExportSection
from threedgen.guidance.losses.options import DistillationConfig, ViewPromptsConfig
from threedgen.guidance.options import MatteName, PriorConfig
from threedgen.guidance.weights import other_models
from threedgen.representations.options import FieldConfig, MaterialConfig
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.run.disk import Tree
from threedgen.run.folder import run_folder, stored_config, user_path
from threedgen.run.prompts import normalise_prompt
from threedgen.systems.prompted import PromptedConfig
from threedgen.viewer.options import ViewConfig

MULTIVIEW = "Set camera.n_view=2 or more and a multi-view prior, such as prior.name=mvdream"


class SystemConfig(Config):
    """Config section of the default system, which trains in the phases warm start, distillation and refinement.

    A system is the LightningModule with the training step of the task "generate". The default one has no options; a
    plug-in system adds its own in a subclass.
    """

    name: str = "generate"


class OptimizerConfig(Config):
    """Options of the optimizer, with one learning rate for each group of parameters.

    Section `optimizer` of the task "generate".
    """

    name: str = Field(description="optimizer")
    encoding: Scheduled = Field(0.01, ge=0, description="learning rate of the field's encoding")
    networks: Scheduled = Field(0.001, ge=0, description="learning rate of the field's networks")
    geometry: Scheduled | None = Field(
        None, ge=0, description="learning rate of a mesh's shape, 0: fixed shape; null: same as networks"
    )
    background: Scheduled = Field(0.001, ge=0, description="learning rate of the background")
    distillation: Scheduled = Field(1e-4, ge=0, description="learning rate of the parameters of the loss (vsd)")


class LossConfig(Config):
    """Weights of the loss terms, as numbers or as schedules over the steps.

    Section `loss` of the task "generate". In its distillation phase, the loss is the weighted sum of these terms.
    """

    distillation: Scheduled = Field(1.0, ge=0, description="weight of the distillation loss")
    orientation: Scheduled = Field(0.0, ge=0, description="weight of the orientation loss (Ref-NeRF); needs normals")
    sparsity: Scheduled = Field(
        0.0, ge=0, description="weight of the sparsity loss on the opacity, against semi-transparent density"
    )
    opaque: Scheduled = Field(0.0, ge=0, description="weight of the entropy of the opacity, against half-transparency")
    z_variance: Scheduled = Field(
        0.0, ge=0, description="weight of the depth variance along rays, against semi-transparent density"
    )

    def __reduce__(self) -> "tuple[Callable[[Tree], LossConfig], tuple[Tree]]":
        return _loss_config, (self.model_dump(),)  # pickle does not find the classes that `_loss_model` makes


@dataclass(frozen=True)
class LossWeights(Component):
    """Annotation of the config section `loss` that makes pydantic validate it with a subclass of `LossConfig`.

    The subclass is created when a config is validated. It has one weight for each loss term: those of `LossConfig`, one
    for each registered component of the kind "regulariser", and those that registered representations add, such as
    "eikonal".
    """

    kind: str = "regulariser"

    def model(self, value: object) -> type[LossConfig]:
        weights = {name: f"weight of the regulariser {name}" for name in registry.names("regulariser")}
        for losses in representation_losses().values():
            weights |= losses
        return _loss_model(tuple((name, text) for name, text in weights.items() if name not in LossConfig.model_fields))

    def _validate(self, value: object) -> LossConfig:
        return self.model(value).model_validate(value.model_dump() if isinstance(value, BaseModel) else value)


def representation_losses() -> dict[str, dict[str, str]]:
    """Return the loss terms of each registered representation: {representation: {term: help text}}."""
    found = {}
    for name in registry.names("representation"):
        with suppress(Exception):  # a broken plug-in fails only if a config names it
            found[name] = getattr(registry.config_model("representation", name), "losses", {})
    return found


def _loss_config(values: Tree) -> LossConfig:
    return LossWeights()._validate(values)


@cache
def _loss_model(weights: tuple[tuple[str, str], ...]) -> type[LossConfig]:
    fields = {name: (Scheduled, Field(0.0, ge=0, description=text)) for name, text in weights}
    return create_model("LossConfig", __base__=LossConfig, __doc__=LossConfig.__doc__, **fields)  # type: ignore[call-overload]


class FitConfig(Config):
    """Options of the fit of the object to images, in the warm start and in refinement.

    Section `fit` of the task "generate".
    """

    rays: int = Field(4096, ge=1, description="random pixels per step; meshes: about as many, in whole images")
    distortion: Scheduled = Field(
        0.0, ge=0, description="weight of the distortion loss (Mip-NeRF 360); volumes rendered in one chunk only"
    )
    matte: str | None = Field(
        None,
        min_length=1,
        description="foreground network: toybox-matte, or RUN/matte of train-toybox-matte; null: by border colour",
    )


Sharpen = Annotated[
    float, Field(ge=0, le=4, description="amount of the unsharp mask on the views; its blur is 1/64 of their side")
]


class WarmStartConfig(Config):
    """Options of the warm start: before distillation, the field is fitted to views that the prior samples.

    Section `warm_start` of the task "generate". The field is the representation of the object.
    """

    share: float = Field(0.0, ge=0, le=1, description="fraction of trainer.max_steps; 0: none; multi-view priors only")
    groups: int = Field(
        1, ge=1, le=64, description="groups of camera.n_view views; all but the first are conditioned on its views"
    )
    guidance_scale: float = Field(2.0, ge=0, description="classifier-free guidance scale of the completed groups")
    sharpen: Sharpen = 0.0


DEFAULT_DISTILLATION = "reconstruction"


class RefineConfig(Config):
    """Options of the final rounds in which the prior resamples views by img2img and the object is fitted to them.

    Section `refine` of the task "generate".
    """

    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="img2img noise strength of each round; []: no refinement"
    )
    share: float = Field(0.2, gt=0, le=1, description="fraction of trainer.max_steps per round")
    groups: int = Field(6, ge=1, le=64, description="groups of camera.n_view views")
    steps: int = Field(25, ge=1, le=1000, description="DDIM steps at strength 1; fewer in proportion below")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance scale")
    sharpen: Sharpen = 0.0


Azimuth = Annotated[float, Field(ge=-360, le=360)]


class PreviewConfig(Config):
    """Options of the views that the prior samples from the prompt at the beginning of a run.

    Section `preview` of the task "generate".
    """

    enabled: bool = Field(True, description="sample them; a warm start always does")
    steps: int = Field(30, ge=1, le=1000, description="DDIM steps from noise; fewer from a coarse prediction")
    guidance_scale: float = Field(5.0, ge=0, description="classifier-free guidance scale")
    elevation: float = Field(15.0, ge=-90, le=90, description="camera elevation, degrees")
    azimuth: Azimuth | Annotated[tuple[Azimuth, ...], Field(min_length=2, max_length=64)] = Field(
        0.0, description="azimuth of the first view, or a list of that of each; degrees, 0 is the front"
    )


def registered(kind: str) -> AfterValidator:
    """Return a pydantic validator for a tuple of names: each must be a registered component of the kind `kind`."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                registry.entry(kind, name)
            except ConfigError as error:
                raise ValueError(error.problem) from None
        return names

    return AfterValidator(check)


class ResultConfig(Config):
    """Options of the files that are written at the end of a run.

    Section `result` of the tasks "generate" and "image-to-3d".
    """

    turntable: sections.OrbitCameraConfig = Field(
        sections.OrbitCameraConfig(n_view=60, distance=2.6, height=256, width=256),
        description="cameras of turntable.mp4",
    )
    fps: int = Field(20, ge=1, le=120, description="frames per second of turntable.mp4")
    mesh_resolution: int = Field(128, ge=16, le=512, description="grid points per axis of marching cubes")
    exporters: Annotated[tuple[str, ...], registered("exporter")] = Field(
        (), description="plug-ins that write further files, by name"
    )


IMAGE_SHARE = 0.4
"""Value of `warm_start.share` (fraction of steps that fit sampled views) in runs from an image, if the config has 0."""


class GenerateConfig(PromptedConfig):
    """Generation of a 3D object from a prompt, or from an image, by score distillation.

    Options of the task "generate".
    """

    common: ClassVar[tuple[str, ...]] = (
        "prompt", "image", "matte", "negative_prompt", "prompt_check", "seed", "out", "threads",
        "prior.name", "prior.weights", "distillation.name", "distillation.guidance_scale", "field.name",
        "material.name", "background.name", "camera.n_view", "size", "scenes_per_step", "stages",
        "optimizer.encoding", "optimizer.networks", "warm_start.share", "refine.strengths", "refine.share",
        "march.samples", "result.mesh_resolution", "export.preset", "export.budget", "export.formats",
        "trainer.max_steps", "trainer.accelerator", "trainer.devices", "trainer.precision",
        "trainer.val_check_interval", "checkpoint.seconds", "preset",
    )  # fmt: skip

    image: str | None = Field(
        None, min_length=1, description="view from preview.azimuth (front): PNG with alpha, or on a plain background"
    )
    matte: MatteName = None
    edit: str | None = Field(None, min_length=1, description="finished run whose object changes to fit the prompt")
    negative_prompt: str = Field("", description="negative prompt of classifier-free guidance")
    view_prompts: ViewPromptsConfig = ViewPromptsConfig()
    system: Annotated[SystemConfig, Component("system", default="generate")] = Field(
        SECTION, description="training step"
    )
    prior: Annotated[PriorConfig, Component("prior", default="mvdream")] = Field(SECTION, description="diffusion prior")
    distillation: Annotated[DistillationConfig, Component("distillation", default=DEFAULT_DISTILLATION)] = Field(
        SECTION, description="loss from the prior"
    )
    field: Annotated[FieldConfig, Component("representation", default="ngp")] = Field(
        SECTION, description="representation of the object"
    )
    start: str | None = Field(
        None, min_length=1, description="run whose object this run starts from; gaussians: also a point cloud file"
    )
    background: Annotated[Config, Component("background", default="solid")] = Field(SECTION, description="background")
    material: Annotated[MaterialConfig, Component("material", default="none")] = Field(
        SECTION, description="lighting of the features"
    )
    march: MarchConfig = MarchConfig()
    occupancy: OccupancyConfig | None = Field(OccupancyConfig(), description="null: no empty-space skipping")
    camera: Annotated[sections.MultiviewCameraConfig, Component("camera", default="multiview")] = Field(
        SECTION, description="sampler of training cameras"
    )
    guidance_input: Literal["colour", "normal"] = Field(
        "colour", description="input of the prior: the colour image, or the normals as colours"
    )
    size: Scheduled = Field(
        64, ge=8, le=2048, description="height and width of training renders, pixels; piecewise constant"
    )
    scenes_per_step: Scheduled = Field(
        1, ge=1, le=64, description="groups per step, each of camera.n_view views of the object; piecewise constant"
    )
    optimizer: Annotated[OptimizerConfig, Component("optimizer", default="adam")] = Field(
        SECTION, description="optimizer and learning rates"
    )
    loss: Annotated[LossConfig, LossWeights()] = Field(SECTION, description="weights of the loss terms, by step")
    preview: PreviewConfig = PreviewConfig()
    fit: FitConfig = FitConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    refine: RefineConfig = RefineConfig()
    result: ResultConfig = ResultConfig()
    export: ExportSection = ExportSection()
    view: ViewConfig = Field(ViewConfig(), exclude=True)  # not part of the result: not in config.yaml, not hashed
    trainer: sections.TrainerConfig = sections.TrainerConfig(val_check_interval=100)
    checkpoint: sections.CheckpointConfig = sections.CheckpointConfig()
    logger: Annotated[sections.LoggerConfig, Component("logger", default="csv")] = Field(
        SECTION, description="further log beside metrics.jsonl and metrics.csv"
    )
    metrics: Annotated[tuple[str, ...], registered("metric")] = Field(
        (), description="plug-ins that measure the object at each validation, by name"
    )
    preset: Literal["auto", "memory-24gb", "memory-12gb", "memory-8gb"] | None = Field(
        "auto", description="options that save memory, configs/presets; auto: if a GPU needs it; null: none"
    )
    stages: dict[str, Tree] = Field(
        {}, description="earlier runs, name: {options that differ}; each starts from the object of the one before"
    )

    def stage(self, name: str) -> "GenerateConfig":
        """Return the config of the stage (earlier run) `name`: this config, changed by the options given for the stage.

        A stage exports no asset unless its options enable the export. Raises ConfigError if the options are invalid.
        """
        stage = self.stages[name]
        if "out" in stage:
            problem = f"a stage has no folder of its own choice. Remove it: the folder is stages/{name} in the run's"
            raise ConfigError(problem, f"stages.{name}.out", stage["out"])
        whole = {k: v for k, v in plain(self).items() if k not in ("stages", "out", "about", "needs")}
        tree = merge(merge(whole, {"export": {"enabled": False}}), stage)
        return validate(type(self), [Layer(f"stages.{name}", tree)])

    @model_validator(mode="after")
    def _reference_image(self) -> "GenerateConfig":
        if self.image is not None and self.prior.takes_image:
            image = {"image": self.image, "matte": self.matte}
            self.__dict__["prior"] = self.prior.model_copy(update=image)
        elif self.image is not None and self.views_per_scene > 1 and not self.warm_start.share:
            left = min(self.refine.share, 1 - IMAGE_SHARE)  # the object has to be fitted to the views of the image
            self.__dict__["warm_start"] = self.warm_start.model_copy(update={"share": IMAGE_SHARE})
            self.__dict__["refine"] = self.refine.model_copy(update={"share": left})
        return self

    @property
    def first_view(self) -> str | None:
        """Image file of the first view of the object; the prior samples other views of the same object.

        None if the config has no image, or if the prior takes the image as its reference image instead.
        """
        return None if self.prior.takes_image else self.image

    @model_validator(mode="after")
    def _stages(self) -> "GenerateConfig":
        for name in self.stages:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
                raise ValueError(
                    f"invalid name of a stage: stages={short(name)}. Use 1 to 40 letters, digits, '_' and '-'"
                )
            try:
                self.stage(name)
            except ConfigError as error:
                raise ValueError(str(error).split("\n")[0]) from None
        return self

    @property
    def start_path(self) -> Path | None:
        """Run folder or point cloud file that initialises the object: the option `edit` or, if it is not set, `start`.

        None if neither option is set: the run starts from a new object.

        Raises ConfigError if `edit` is not the folder of a run.
        """
        if self.edit is not None:
            return run_folder(self.edit, "edit")
        return None if self.start is None else user_path(self.start, "start")

    def used_word(self, prompt: str) -> str:
        return self.export.used_word(prompt)

    def object_text(self) -> str:
        """Return the prompt on one line; "" with an image and no prompt. Raises ConfigError if both are missing."""
        if self.prompt.strip():
            return normalise_prompt(self.prompt)
        if self.image is not None or getattr(self.prior, "image", None) is not None:
            return ""
        if self.prior.takes_image:
            raise ConfigError('is missing. Give an image of the object, image=car.png, or a prompt="a car"', "image")
        return normalise_prompt(self.prompt)

    @property
    def views_per_scene(self) -> int:
        """Number of views of one object that the prior denoises together; 1 for a single-view prior."""
        return self.camera.n_view if self.prior.multiview else 1

    @property
    def warm_steps(self) -> int:
        """Number of steps of the warm start, which fits the object to views sampled by the prior.

        0 for a single-view prior, because its samples do not show the same object.
        """
        return 0 if self.views_per_scene < 2 else int(self.warm_start.share * self.trainer.max_steps)

    @property
    def empty_prompt(self) -> bool:
        """Whether the distillation loss needs the embedding of the empty prompt in addition to the negative prompt.

        False if the negative prompt is empty itself.
        """
        return self.distillation.empty_prompt and self.negative_prompt != ""

    @property
    def round_steps(self) -> int:
        """Number of steps of a refinement round, which fits the object to img2img samples; 0 without refinement."""
        return int(self.refine.share * self.trainer.max_steps) if self.refine.strengths else 0

    @property
    def distilled_steps(self) -> int:
        """Number of distillation steps, between the warm start and the refinement."""
        return self.trainer.max_steps - self.warm_steps - len(self.refine.strengths) * self.round_steps

    def prompt_notes(self) -> list[str]:
        return [*super().prompt_notes(), *self._without_effect()]

    def _without_effect(self) -> Iterator[str]:
        if self.distilled_steps < 1 and self.distillation.name != DEFAULT_DISTILLATION:
            yield (
                f"distillation.name={self.distillation.name} has no effect: warm_start.share and refine.share leave no "
                "steps for distillation"
            )
        if self.warm_start.share and self.views_per_scene < 2:
            single = f"prior.name={self.prior.name} samples single views, which are not consistent"
            yield f"warm_start.share={self.warm_start.share:g} has no effect: {single}"

    @model_validator(mode="after")
    def _consistent(self) -> "GenerateConfig":
        self._check_representation()
        azimuth, n_view = self.preview.azimuth, self.camera.n_view
        if isinstance(azimuth, tuple) and len(azimuth) != n_view:
            raise ValueError(
                f"{len(azimuth)} azimuths for {n_view} views: preview.azimuth={list(azimuth)}. "
                f"Set camera.n_view={len(azimuth)} or give one azimuth"
            )
        warm, share, rounds = self.warm_start.share, self.refine.share, len(self.refine.strengths)
        if rounds * share > 1:
            problem = f"refine.share={share:g} in each of {rounds} rounds is more than the run"
            raise ValueError(f"{problem}. Set refine.share={0.5 / rounds:.2g} or less")
        if warm > (left := round(1 - rounds * share, 9)):  # 1 - 4 * 0.2 is a little less than 0.2
            problem = f"warm_start.share={warm:g} is more than the {left:.2g} that refine leaves of the run"
            raise ValueError(f"{problem}. Set warm_start.share={left / 2:.2g}")
        if (batches := self.trainer.accumulate_grad_batches) > 1:
            problem = f"trainer.accumulate_grad_batches={batches} is not supported"
            raise ValueError(f"{problem}. Set scenes_per_step for more views in a step")
        return self

    def _check_representation(self) -> None:
        field, radius = self.field, getattr(self.field, "radius", self.march.radius)
        if radius != self.march.radius:
            raise ValueError(f"field.radius={radius:g} differs from march.radius={self.march.radius:g}. Set them equal")
        for name in type(self.loss).model_fields:
            value = getattr(self.loss, name)
            owners = [owner for owner, losses in representation_losses().items() if name in losses]
            if value != 0 and owners and field.name not in owners:
                problem = f"loss.{name}={value} is no loss of field.name={field.name}"
                raise ValueError(f"{problem}. Set loss.{name}=0 or field.name={' or '.join(owners)}")
        if "splats" in self.result.exporters and not field.splats:
            problem = f"result.exporters=[splats] needs 3D Gaussians: field.name={field.name}"
            raise ValueError(f"{problem}. Set result.exporters=[] or field.name=gaussians")
        field.check_precision(self.trainer.precision)
        needs = {
            "guidance_input=normal": self.guidance_input == "normal",
            "loss.orientation": self.loss.orientation != 0,
            f"material.name={self.material.name}": self.material.name != "none",
        }
        if not field.has_normals and any(needs.values()):
            key = next(key for key, needed in needs.items() if needed)
            raise ValueError(f"{key} needs normals: field.name={field.name}. Change one of the two")

    def check(self) -> None:
        self.check_part(from_nothing=not self.stages)
        for k, name in enumerate(self.stages):
            with key_prefix(f"stages.{name}"):
                self.stage(name).check_part(from_nothing=k == 0)

    def check_start(self, key: str) -> None:
        """Raise ConfigError if the path in the option `key` ("start" or "edit") cannot initialise the object.

        The path must be a run of the task generate. For "start" and 3D Gaussians it may also be a point cloud file.
        """
        path = user_path(getattr(self, key), key)
        if key == "edit" or not path.is_file():
            stored = stored_config(run_folder(path, key)) or {}
            if (task := stored.get("task", "generate")) != "generate":
                raise ConfigError(f"should be a run of the task generate, but its task is {task}", key, str(path))
        elif not self.field.splats:
            problem = f"is a file, and field.name={self.field.name} starts from runs only. Set field.name=gaussians"
            raise ConfigError(problem, key, str(path))

    def check_part(self, from_nothing: bool) -> None:
        """Raise ConfigError if this run cannot start, for example if a file is missing or two options conflict.

        Its stages (earlier runs) are not checked; each stage has its own config (`stage`), which is checked separately.
        `from_nothing` is True if no stage precedes this run.
        """
        prompt = self.object_text()
        refined = len(self.refine.strengths) * self.round_steps
        if from_nothing and refined == self.trainer.max_steps and self.views_per_scene < 2:
            raise ConfigError(
                f"all steps fit the object to views, but prior.name={self.prior.name} samples single views here, which "
                f"are not consistent. Set refine.strengths=[]. Or: {MULTIVIEW}",
                "refine.share",
            )
        if self.distillation.needs_views and self.views_per_scene < 2:
            problem = f"couples the views of an object, but prior.name={self.prior.name} samples single views here"
            raise ConfigError(f"{problem}. {MULTIVIEW}", "distillation.name", self.distillation.name)
        if self.image is not None:
            other_models.check_image(user_path(self.image, "image"), self.matte)
        if self.start is not None:
            self.check_start("start")
        super().check()
        if prompt:
            self.check_prompt()
        if self.first_view is not None and not self.warm_steps:
            raise ConfigError("needs a warm start of a multi-view prior. Set warm_start.share=0.2", "image", self.image)
        if self.edit is not None:
            self.check_start("edit")
            if self.start is not None:
                raise ConfigError("starts from the run to change. Leave out start", "edit", self.edit)
            if self.warm_steps or not self.round_steps or self.stages:
                raise ConfigError("needs a run that only refines. Use --config edit-toybox", "edit", self.edit)
        if self.fit.matte is not None:
            with key_prefix("fit"):
                other_models.matte_folder(self.fit.matte)
