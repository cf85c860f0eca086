"""Config model of the task `generate`, with its checks. The module does not import torch."""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, ConfigError, Layer, Scheduled, merge, plain, sections, validate
from threedgen.config.errors import key_prefix, short
from threedgen.config.registry import SECTION, Component
from threedgen.export.asset_folder import FOLDER, read_manifest
from threedgen.export.options import PRESETS, ExportSection
from threedgen.guidance.losses.options import DistillationConfig, ViewPromptsConfig
from threedgen.guidance.options import MatteName, PriorConfig
from threedgen.guidance.weights import other_models
from threedgen.guidance.weights.loading import EMBEDDED
from threedgen.representations.options import FieldConfig, MaterialConfig
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.run.disk import Tree
from threedgen.run.folder import differences, run_folder, stored_config, user_path
from threedgen.run.prompts import normalise_prompt
from threedgen.systems.prompted import PromptedConfig
from threedgen.viewer.options import ViewConfig

from .sections import (
    FitConfig,
    LossConfig,
    LossWeights,
    OptimizerConfig,
    PreviewConfig,
    RefineConfig,
    ResultConfig,
    SystemConfig,
    WarmStartConfig,
    registered,
)

MULTIVIEW = "Set camera.n_view=2 or more and a multi-view prior, such as prior.name=mvdream"
DEFAULT_DISTILLATION = "reconstruction"
IMAGE_SHARE = 0.4
"""Value of `warm_start.share` (fraction of steps that fit sampled views) in runs from an image, if the config has 0."""


class GenerateTrainerConfig(sections.TrainerConfig):
    """Arguments of Lightning's Trainer for the task "generate", whose steps can also compute in float16."""

    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(  # type: ignore[assignment]  # one value more
        "32-true", description="number format of the training step"
    )


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
    trainer: GenerateTrainerConfig = GenerateTrainerConfig(val_check_interval=100)
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

    @field_validator("preset", mode="before")
    @classmethod
    def _no_asset_preset(cls, value: object) -> object:
        if isinstance(value, str) and value in PRESETS:
            raise ValueError(f"{value} is a preset of the asset. Set export.preset={value}")
        return value

    @model_validator(mode="after")
    def _reference_image(self) -> "GenerateConfig":
        if self.image is not None and self.prior.takes_image:
            self.__dict__["matte"] = self.matte or getattr(self.prior, "matte", None)
            image = {"image": self.image, "matte": self.matte}
            self.__dict__["prior"] = self.prior.model_copy(update=image)
        elif self.image is not None and self.views_per_scene > 1 and not self.warm_start.share:
            rounds = max(1, len(self.refine.strengths))
            left = min(self.refine.share, (1 - IMAGE_SHARE) / rounds)  # the object is fitted to views of the image
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
                problem = f"invalid name of a stage: stages={short(name)}"
                raise ValueError(f"{problem}. Use 1 to 40 letters, digits, '_' and '-'")
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
        if not self.prompt.strip():
            if self.image is not None or getattr(self.prior, "image", None) is not None:
                return ""
            if self.prior.takes_image:
                problem = 'is missing. Give an image of the object, image=car.png, or a prompt="a car"'
                raise ConfigError(problem, "image")
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
        """Number of distillation steps, between the warm start and the refinement.

        0 if the shares of warm start and refinement add up to 1: steps that rounding leaves over are part of the last
        refinement round.
        """
        rounds = len(self.refine.strengths) if self.round_steps else 0
        warm = self.warm_start.share if self.views_per_scene > 1 else 0
        left = self.trainer.max_steps - self.warm_steps - rounds * self.round_steps
        return 0 if rounds and round(warm + rounds * self.refine.share, 9) == 1 else left

    def prompt_notes(self) -> list[str]:
        notes = super().prompt_notes()
        if self.distilled_steps < 1 and self.distillation.name != DEFAULT_DISTILLATION:
            unused = f"distillation.name={self.distillation.name} has no effect"
            notes.append(f"{unused}: warm_start.share and refine.share leave no steps for distillation")
        if self.warm_start.share and self.views_per_scene < 2:
            single = f"prior.name={self.prior.name} samples single views, which are not consistent"
            notes.append(f"warm_start.share={self.warm_start.share:g} has no effect: {single}")
        if self.edit is not None and self.export.enabled:
            folder = run_folder(self.edit, "edit")
            before = read_manifest(folder / FOLDER).get("options") or (stored_config(folder) or {}).get("export") or {}
            now = {key: value for key, value in plain(self.export).items() if key in before}
            if changed := differences(before, now):
                notes.append(
                    f"edit: the asset has other options: {'; '.join(changed)}. Set them in export to keep them"
                )
        if "weights" in self.needs:
            parts = {"prior": self, **{f"stages.{name}.prior": self.stage(name) for name in self.stages}}
            for key, part in parts.items():
                if (weights := getattr(part.prior, "weights", None)) in EMBEDDED:
                    default = f"{key}.weights={weights}, the default of {key}.name={part.prior.name}"
                    notes.append(f"{default}, knows toybox objects only. Set {key}.weights")
        return notes

    @model_validator(mode="after")
    def _consistent(self) -> "GenerateConfig":
        self._check_representation()
        azimuth, n_view = self.preview.azimuth, self.camera.n_view
        if isinstance(azimuth, tuple) and len(azimuth) != n_view:
            problem = f"{len(azimuth)} azimuths for {n_view} views: preview.azimuth={list(azimuth)}"
            raise ValueError(f"{problem}. Set camera.n_view={len(azimuth)} or give one azimuth")
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
            key = "field.radius" if field.volume is field else "field.paint.radius"
            raise ValueError(f"{key}={radius:g} differs from march.radius={self.march.radius:g}. Set them equal")
        self.loss.check_representation(field.name)
        if "splats" in self.result.exporters and not field.splats:
            problem = f"result.exporters=[splats] needs 3D Gaussians: field.name={field.name}"
            raise ValueError(f"{problem}. Set result.exporters=[] or field.name=gaussians")
        field.check_precision(self.trainer.precision)
        needs = {
            "guidance_input=normal": self.guidance_input == "normal",
            "loss.orientation": self.loss.orientation != 0,
            f"material.name={self.material.name}": self.material.name != "none",
        }
        for key, needed in needs.items():
            if needed and not field.has_normals:
                raise ValueError(f"{key} needs normals: field.name={field.name}. Change one of the two")

    def check(self) -> None:
        self.check_part(from_nothing=not self.stages and self.start is None and self.edit is None)
        for k, name in enumerate(self.stages):
            with key_prefix(f"stages.{name}"):
                part = self.stage(name)
                part.check_part(from_nothing=k == 0 and part.start is None and part.edit is None)

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
        `from_nothing` is True if neither a stage nor another run or file initialises the object.
        """
        prompt = self.object_text()
        single = f"prior.name={self.prior.name} samples single views here"
        if from_nothing and self.distilled_steps < 1 and self.views_per_scene < 2:
            problem = f"all steps fit the object to views, but {single}, which are not consistent"
            raise ConfigError(f"{problem}. Set refine.strengths=[]. Or: {MULTIVIEW}", "refine.share")
        if self.distillation.needs_views and self.views_per_scene < 2:
            problem = f"couples the views of an object, but {single}. {MULTIVIEW}"
            raise ConfigError(problem, "distillation.name", self.distillation.name)
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
