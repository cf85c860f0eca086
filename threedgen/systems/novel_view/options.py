"""Config models of the training of novel-view models, and of what they are used for (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import called
from threedgen.config.sections import CheckpointConfig, OrbitCameraConfig, RunConfig, TrainerConfig
from threedgen.data.srn.options import SRNPairsConfig, ToyboxPairsConfig
from threedgen.export.options import ExportSection
from threedgen.geometry.picture_file import load_image
from threedgen.guidance.options import MultiviewWeights
from threedgen.guidance.threedim.options import SamplingConfig, ThreeDiMSamplerConfig, XUNetConfig
from threedgen.guidance.weights.loading import check, novel_view_model
from threedgen.representations.options import PaperProtocolConfig, SubsampledProtocolConfig
from threedgen.run.folder import user_path
from threedgen.systems.generate.options import ResultConfig


class PixelsConfig(Config):
    """The paper's form: a network on the pixels."""

    name: Literal["pixels"] = "pixels"
    start: str | None = Field(None, min_length=1, description="weights to go on from (embedded, a folder); null: none")
    network: XUNetConfig = XUNetConfig()

    @model_validator(mode="after")
    def _pictures(self) -> PixelsConfig:
        height, width = self.network.size
        if height != width:
            raise ValueError("network: pictures to train on are square")
        return self

    def check(self) -> None:
        if self.start is not None:
            with called("start"):
                novel_view_model(self.start)


class LatentsConfig(Config):
    """The quick form: the UNet of a multi-view prior, trained on in its latents."""

    name: Literal["latents"] = "latents"
    start: MultiviewWeights = Field(
        "toybox-prior", min_length=1, description="the prior: toybox-prior, a folder, an id on the hub"
    )
    poses: Literal["absolute", "relative"] = Field(
        "absolute", description="relative: the network is told the cameras as seen from that of the condition"
    )

    def check(self) -> None:
        with called("start"):
            check(self.start)


class PairTrainingConfig(Config):
    """How it learns (3DiM, section 7.2); the defaults are the paper's, but for bf16."""

    batch: int = Field(128, ge=1, description="pairs that a device sees at once")
    dropped: float = Field(0.1, ge=0, le=1, description="share of the pairs whose condition is dropped, for guidance")
    learning_rate: float = Field(1e-4, gt=0, description="of Adam, after the warm-up")
    warmup: int = Field(10_000_000, ge=0, description="examples over which the rate rises from 0, linearly")
    decay: float = Field(0.0, ge=0, le=1, description="last share of the steps, over which it falls to 0; paper: none")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    ema_half_life: int = Field(500_000, ge=1, description="examples after which a weight counts half in the average")
    time_power: float = Field(
        1.0, gt=0, le=2, description="t = u^this, u uniform: below 1 favours noise, where unseen colours are decided"
    )
    near: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of pairs of neighbouring cameras, which teach to repeat what is shown; paper: none",
    )
    regression: bool = Field(False, description="the paper's ablation: pure noise, and one step predicts the view")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")
    gap_levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.05, 0.006), min_length=1, description="alpha_bar (share of signal) at which the gap test is done"
    )
    sheet_scenes: int = Field(3, ge=0, le=100, description="held-out scenes on the sheet of samples")
    sheet_views: int = Field(6, ge=1, le=100, description="views that are sampled of each")
    sheet_steps: int = Field(32, ge=1, le=1000, description="denoising steps of a view")
    guidance_scale: float = Field(2.0, ge=0, description="of the sample sheet")


class TrainThreeDiMConfig(RunConfig):
    """Train a novel-view model on pairs of views."""

    data: Annotated[ToyboxPairsConfig | SRNPairsConfig, Field(discriminator="name")] = ToyboxPairsConfig()
    model: Annotated[PixelsConfig | LatentsConfig, Field(discriminator="name")] = PixelsConfig()
    training: PairTrainingConfig = PairTrainingConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=100_000, gradient_clip_val=1.0, val_check_interval=1000)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _agree(self) -> TrainThreeDiMConfig:
        prediction = self.model.network.prediction if isinstance(self.model, PixelsConfig) else "that of the prior"
        if self.training.regression != (prediction == "sample"):
            raise ValueError(
                "training.regression and model.network.prediction=sample belong together: one step from pure noise "
                f"predicts the view itself (got regression {self.training.regression}, prediction {prediction})"
            )
        return self


class ImageTo3DConfig(RunConfig):
    """A picture becomes a 3D object: views around it are sampled, and a field is fitted to them."""

    image: str = Field("", description="file with a picture of an object on white, or cut out (transparent around it)")
    weights: str = Field(
        "embedded",
        min_length=1,
        description="embedded (toybox cars and chairs), or a trained folder",
    )
    elevation: float = Field(20.0, gt=-90, lt=90, description="of the camera that took the picture, degrees")
    azimuth: float = Field(0.0, ge=-360, le=360, description="of this camera, degrees; 0: it sees the front")
    distance: float | None = Field(None, gt=0, description="of all cameras, to the origin; null: as in the training")
    fov: float | None = Field(None, gt=0, lt=180, description="degrees, of all cameras; null: as in the training")
    rings: tuple[Annotated[float, Field(gt=-90, lt=90)], ...] = Field(
        (20.0, 50.0, 0.0), min_length=1, description="elevations of the rings of sampled views, degrees, in this order"
    )
    views: int = Field(16, ge=2, le=1000, description="views of a ring, evenly around the object")
    sampler: SamplingConfig = Field(SamplingConfig(steps=64), description="how the views are sampled")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="precision of the network")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    protocol: Annotated[PaperProtocolConfig | SubsampledProtocolConfig, Field(discriminator="name")] = Field(
        SubsampledProtocolConfig(), description="how the field is fitted, as in the task consistency"
    )
    result: ResultConfig = Field(
        ResultConfig(turntable=OrbitCameraConfig(n_view=60, distance=2.0, height=256, width=256)),
        description="distances are in radii of the field: at 2 are the cameras of the sampled views",
    )
    export: ExportSection = ExportSection()

    @property
    def prompt(self) -> str:
        """Names the folder of the run."""
        return Path(self.image).stem

    @property
    def threedim(self) -> ThreeDiMSamplerConfig:
        """The model, as the task consistency is told of it."""
        own = {"weights": self.weights, "dtype": self.dtype, "device": self.device}
        return ThreeDiMSamplerConfig(**self.sampler.model_dump(), **own)

    def check(self) -> None:
        if not self.image:
            raise ConfigError("there is none: give the file of a picture, image=car.png", "image")
        load_image(user_path(self.image, "image"), self.image, "image")
        self.threedim.check()
        super().check()
