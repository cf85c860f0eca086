"""Config models of train-threedim and image-to-3d. The module does not import torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import errors_name_key
from threedgen.config.registry import Component
from threedgen.config.sections import OrbitCameraConfig, RunConfig, TrainerConfig
from threedgen.export.options import ExportSection
from threedgen.geometry.image_file import load_image
from threedgen.guidance.novel_view.options import SamplingConfig, ThreeDiMSamplerConfig, XUNetConfig
from threedgen.guidance.options import MatteName, MultiviewWeights
from threedgen.guidance.weights.loading import check
from threedgen.guidance.weights.other_models import check_matte, novel_view_model
from threedgen.representations.volume.options import Protocol, SubsampledProtocolConfig
from threedgen.run.folder import user_path
from threedgen.systems.generate.sections import ResultConfig
from threedgen.systems.train.options import Count, Guidance, Share, TrainConfig, default_trainer


class PixelsConfig(Config):
    """Options of X-UNet, the novel-view network of 3DiM, which denoises pixels.

    Section `model` of the task "train-threedim" with name=pixels.
    """

    name: Literal["pixels"] = "pixels"
    start: str | None = Field(None, min_length=1, description="weights to start from; null: a new network")
    network: XUNetConfig = XUNetConfig()

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        height, width = self.network.size
        if height != width:
            raise ValueError(f"network.image_size: training images are square (got {height} x {width})")
        return self

    def check(self) -> None:
        if self.start is not None:
            with errors_name_key("start"):
                novel_view_model(self.start)


class LatentsConfig(Config):
    """Options of a novel-view network that denoises latents: the UNet of a multi-view prior such as MVDream.

    Section `model` of the task "train-threedim" with name=latents.
    """

    name: Literal["latents"] = "latents"
    start: MultiviewWeights = Field("toybox-prior", min_length=1, description="multi-view prior to start from")

    def check(self) -> None:
        with errors_name_key("start"):
            check(self.start)


class PairTrainingConfig(Config):
    """Options of the training of 3DiM (arXiv 2210.04628, section 7.2). The defaults are those of the paper.

    Section `training` of the task "train-threedim": batch size, learning rate, weight average and noise levels.
    """

    batch: Count = Field(128, description="pairs per step and device")
    learning_rate: float = Field(1e-4, gt=0, description="learning rate after the warm-up")
    warmup: int = Field(10_000_000, ge=0, description="examples over which the learning rate rises linearly")
    decay: Share = Field(0.0, description="last share of the steps, over which the learning rate falls to 0")
    ema_half_life: Count = Field(500_000, description="half-life of the weight average, examples")
    time_power: float = Field(1.0, gt=0, le=2, description="t = u^time_power, u uniform; below 1 favours high noise")
    guidance_scale: Guidance = 2.0


class TrainThreeDiMConfig(TrainConfig):
    """Training of a novel-view model on pairs of views.

    Options of the task "train-threedim".
    """

    data: Annotated[Any, Component("pair-source", default="toybox")] = Field({}, description="training pairs")
    model: Annotated[PixelsConfig | LatentsConfig, Field(discriminator="name")] = PixelsConfig()
    training: PairTrainingConfig = PairTrainingConfig()
    trainer: TrainerConfig = default_trainer(100_000, val_check_interval=1000)


class ImageTo3DConfig(RunConfig):
    """Creation of a 3D object from an image: views are sampled, and a field is fitted to them.

    Options of the task "image-to-3d".
    """

    image: str = Field("", description="image file of an object on white or with a transparent background")
    matte: MatteName = None
    weights: str = Field("embedded", min_length=1, description="embedded (toybox cars and chairs) or a trained folder")
    elevation: float = Field(20.0, gt=-90, lt=90, description="elevation of the image's camera, degrees")
    azimuth: float = Field(0.0, ge=-360, le=360, description="azimuth of the image's camera, degrees; 0: front")
    distance: float | None = Field(None, gt=0, description="distance of all cameras; null: as in training")
    fov: float | None = Field(None, gt=0, lt=180, description="field of view, degrees; null: as in training")
    rings: tuple[Annotated[float, Field(gt=-90, lt=90)], ...] = Field(
        (20.0, 50.0, 0.0), min_length=1, description="elevations of the rings of sampled views in order, degrees"
    )
    views: int = Field(16, ge=2, le=1000, description="views per ring, evenly spaced")
    sampler: SamplingConfig = Field(SamplingConfig(steps=64), description="sampler of the views")
    protocol: Protocol = Field(SubsampledProtocolConfig(), description="fit of the field, as in consistency")
    result: ResultConfig = Field(
        ResultConfig(turntable=OrbitCameraConfig(n_view=60, distance=2.0, height=256, width=256)),
        description="outputs; distances in radii of the field, 2 at the sampled views",
    )
    export: ExportSection = ExportSection()

    @property
    def prompt(self) -> str:
        """File name of the image without suffix; it becomes the name of the run folder."""
        return Path(self.image).stem

    @property
    def threedim(self) -> ThreeDiMSamplerConfig:
        """Options of the sampler of views (3DiM, a diffusion model): the section `sampler` and the option `weights`."""
        return ThreeDiMSamplerConfig(**self.sampler.model_dump(), weights=self.weights)

    def check(self) -> None:
        if self.result.exporters:
            raise ConfigError("only the task generate has exporters. Set []", "result.exporters")
        if not self.image:
            raise ConfigError("there is none: give the file of a picture, image=car.png", "image")
        load_image(user_path(self.image, "image"), self.image, "image")
        if self.matte is not None:
            check_matte(self.matte)
        self.threedim.check()
        super().check()
