"""Config models of train-mvadapter and train-mvdiffusion, and base classes of them. The module does not import torch.

The config model of the task train-threedim also derives from one of these base classes, `TrainConfig`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import errors_name_key, key_prefix
from threedgen.config.registry import SECTION, Component
from threedgen.config.sections import BETAS, CheckpointConfig, LoggerConfig, RunConfig, TrainerConfig
from threedgen.data.options import MeshFolderConfig
from threedgen.guidance.options import Arrangement, Control, Timestep
from threedgen.guidance.weights import loading, plugins
from threedgen.guidance.weights.tokens import caption_notes, read_vocabulary
from threedgen.systems.sample.options import check_ring

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Batch = Annotated[int, Field(ge=1, description="entries (images, objects or scenes) per step")]
Fresh = Annotated[int, Field(ge=0, description="new entries per step; the rest are sampled from earlier ones")]
First = Annotated[int, Field(ge=1, description="entries available at the first step")]
NoText = Annotated[float, Field(ge=0, le=1, description="share of captions dropped, for classifier-free guidance")]
Average = Annotated[float, Field(ge=0, lt=1, description="EMA decay of the saved weights; 0: no averaging")]
Logger = Annotated[
    LoggerConfig,
    Component("logger", default="csv"),
    Field(description="further log beside metrics.jsonl and metrics.csv"),
]
Guidance = Annotated[float, Field(ge=0, description="guidance scale of the sample sheet")]
Beta = Annotated[float, Field(ge=0, lt=1)]


class DenoisingConfig(Config):
    """Base class of the options of trainings of denoising networks on data that is rendered during the run.

    They are the share of steps at half the image size, the optimizer, the averaging of weights, and the use of the
    data. The data consists of entries: images, objects or scenes. Each step trains on `batch` entries. `fresh` of them
    are new, and the others are random ones from a pool. The pool has `first` entries at step 0. After each step, the
    new entries are added to it, and none is removed. Subclasses set defaults for `batch`, `fresh`, `first` and
    `learning_rate`.
    """

    batch: Batch
    fresh: Fresh
    first: First
    half: float = Field(0.0, ge=0, lt=1, description="share of steps at half the image size, for prior.draft")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: fewer but slower steps")
    learning_rate: Scheduled
    betas: tuple[Beta, Beta] = Field(BETAS, description="betas of AdamW, also for parameters that Muon leaves to it")
    ema: Average = 0.0

    @model_validator(mode="after")
    def _check_fresh(self) -> Self:
        if self.fresh > self.batch:
            raise ValueError(f"fresh {self.fresh} should not exceed batch {self.batch}")
        return self


class ViewNoiseConfig(Config):
    """Options of the noise levels of the views of an object in the training of a multi-view prior.

    By default all views of an object have the same noise level. `independent` is the share of objects with a random
    level for each view. `companions` is the share of objects that have low noise in one or more random views (not all),
    and a common level in the others.
    """

    independent: Share = Field(0.0, description="share of objects with a noise level for each view")
    companions: Share = Field(0.0, description="share of objects with low noise in some views")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.independent + self.companions > 1:
            both = f"independent {self.independent:g} and companions {self.companions:g}"
            raise ValueError(f"{both} should not exceed 1 together; try companions={1 - self.independent:.2g}")
        return self


def default_trainer(max_steps: int, gradient_clip_val: float = 1.0, val_check_interval: int = 500) -> TrainerConfig:
    clip, interval = gradient_clip_val, val_check_interval
    return TrainerConfig(max_steps=max_steps, gradient_clip_val=clip, val_check_interval=interval)


class TrainConfig(RunConfig):
    """Base class of the config models of training tasks. Subclasses may add the option `start`, the initial weights."""

    movable_inputs: ClassVar[tuple[str, ...]] = ("start",)

    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)
    logger: Logger = SECTION

    def check(self) -> None:
        if (start := getattr(self, "start", None)) is not None:
            with errors_name_key("start"):
                loading.check(start)
        super().check()


def check_multiple(name: str, value: int, unit: int, meaning: str) -> None:
    """Raise ValueError unless `value`, the value of the option `name`, is a multiple of `unit`.

    `meaning` is a text for the error message that says what `unit` is.
    """
    if value % unit:
        near = max(unit, round(value / unit) * unit)
        raise ValueError(f"{name} {value} should be a multiple of {unit}, {meaning}; try {near}")


MAX_LEFT_OUT = 20  # largest number of notes about meshes that are not used
SIDES = 6  # number of views of a training object
DROPPED = 0.1


class AdapterTrainingConfig(DenoisingConfig):
    """Options of the training of MV-Adapter (arXiv 2412.03632, section A.2), for the task "train-mvadapter".

    They are batches and learning rate, the sets of views that are trained together, and the weights of the loss.
    """

    batch: Batch = 8
    fresh: Fresh = 1
    first: First = 64
    view_sets: tuple[tuple[int, ...], ...] = Field(
        (), description="sets of view numbers, one sampled per step, such as [[0,1,2,3,4,5],[0,3]]; empty: all six"
    )
    no_text: NoText = DROPPED
    snr_gamma: float | None = Field(5.0, gt=0, description="gamma of Min-SNR loss weights; null: equal weights")
    learning_rate: Scheduled = Field(5e-5)

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        for views in self.view_sets:
            if not views or len(set(views)) < len(views) or not set(views) <= set(range(SIDES)):
                raise ValueError(f"view_sets need different numbers from 0 to {SIDES - 1} (got {list(views)})")
        return self


class TrainMVAdapterConfig(TrainConfig):
    """Training of MV-Adapter, by which a frozen 2D model samples several views of an object.

    Options of the task "train-mvadapter".
    """

    start: str = Field(min_length=1, description="2D model: a diffusers folder or a hub id")
    image_size: int | None = Field(None, ge=8, le=2048, description="side of a view, pixels; null: the model's")
    objects: Annotated[Any, Component("object-source", default="toybox", component_for_paths="meshes")] = {}
    adapter: str | None = Field(None, min_length=1, description="adapter to start from; null: a new one")
    branches: tuple[Literal["mv", "ref"], ...] = Field(("mv", "ref"), description="attention to other views, reference")
    arrangement: Arrangement = Field("parallel", description="arrangement of the branches")
    control: Control = Field("rays", description="condition of the views: camera rays or the geometry of a mesh")
    guider_downscale: int | None = Field(
        None, ge=1, description="pixels per feature of the condition guider; null: those of a latent"
    )
    guider_fine: bool = Field(
        False, description="features of the condition guider in the first layer too, at latent resolution"
    )
    anywhere: Share = Field(0.0, description="share of objects with random azimuth and elevation up to 30 degrees")
    fov: float = Field(0.0, ge=0, le=100, description="field of view, degrees; 0: parallel rays")
    timestep: Timestep = Field("same", description="time step for the 2D model; matched: that with equal noise")
    training: AdapterTrainingConfig = AdapterTrainingConfig()
    trainer: TrainerConfig = default_trainer(12_000)

    @property
    def dropouts(self) -> tuple[float, float, float]:
        """Probabilities of three independent events that drop conditions of a training object.

        The first event drops the text, the second the reference image, and the third both. Without attention to a
        reference image ("ref" in `branches`), the second and the third probability are 0.
        """
        image = DROPPED if "ref" in self.branches else 0.0
        return self.training.no_text, image, image

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        if self.control == "geometry" and self.anywhere:
            raise ValueError("anywhere needs control=rays; with geometry the sides are always the same")
        if self.control == "geometry" and any(views != tuple(range(SIDES)) for views in self.training.view_sets):
            raise ValueError("training.view_sets needs control=rays; with geometry all six views are trained")
        return self

    def check(self) -> None:
        plugins.check("adapter", self.adapter)
        super().check()

    def notes(self) -> list[str]:
        if not isinstance(self.objects, MeshFolderConfig):
            return super().notes()
        with errors_name_key("start"):
            path = loading.local_path(self.start)
            vocabulary = None if path is None else read_vocabulary(path)
        with key_prefix("objects"):
            assets, left_out = self.objects.listing()
        reasons = [f"left out: {file} ({reason})" for file, reason in left_out.items()]
        captions = [asset.caption for asset in assets]
        return [*super().notes(), *reasons[:MAX_LEFT_OUT], *caption_notes(captions, vocabulary)]


Variant = Literal["panorama", "outpaint", "depth"]


class SingleViewConfig(Config):
    """Options of the first stage of train-mvdiffusion: the 2D model trains on single views with depth or a mask."""

    max_steps: Count = 2000
    batch: Batch = 32
    rank: int = Field(32, ge=1, le=1024, description="rank of the LoRA")
    layers: Literal["attention", "all"] = Field("attention", description="layers with LoRA; all: convolutions too")
    learning_rate: Scheduled = Field({"0%": 0.0, "2%": 1e-3, "60%": 1e-3, "100%": 2e-5})


class ViewsConfig(DenoisingConfig):
    """Options of the second stage of train-mvdiffusion: the attention between views (arXiv 2307.01097, section 5)."""

    batch: Batch = 4
    fresh: Fresh = 1
    first: First = 64
    scenes: Count = Field(4000, description="number of distinct scenes")
    encoding: Literal["reference", "capped"] = Field("capped", description="displacement encoding; reference: released")
    slim: bool = Field(False, description="depth: no convolution after attention and no condition branch")
    learning_rate: Scheduled = Field(2e-4)
    guidance_scale: Guidance = 9.0


class TrainMVDiffusionConfig(TrainConfig):
    """Training of attention between the views of a scene, added to a frozen 2D model.

    Options of the task "train-mvdiffusion".
    """

    variant: Variant = Field("panorama", description="panorama; outpaint: from a view; depth: posed views with depth")
    start: str = Field(min_length=1, description="2D model: a diffusers folder or a hub id")
    scenes: Annotated[Any, Component("scene-source")] = Field({}, description="training scenes")
    single_view: SingleViewConfig | None = Field(SingleViewConfig(), description="first stage; null: without it")
    blocks: str | None = Field(None, min_length=1, description="blocks of another run to start from")
    training: ViewsConfig = ViewsConfig()
    trainer: TrainerConfig = default_trainer(4000)

    @model_validator(mode="after")
    def _check_scenes(self) -> Self:
        if self.scenes.has_depth != (self.variant == "depth"):
            needed = "posed views with depth" if self.variant == "depth" else "panoramas"
            raise ValueError(f"variant {self.variant} needs {needed}, and scenes={self.scenes.name} has none")
        if self.variant != "depth":
            check_ring(self.scenes.views, self.scenes.fov, "scenes.views")
        return self

    def check(self) -> None:
        plugins.check("blocks", self.blocks)
        super().check()
