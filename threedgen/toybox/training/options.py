"""Config models of train-base, train-prior and train-own-prior. The module does not import torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import ConfigError, called
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, Fovs, Positives, TrainerConfig
from threedgen.data.assets.options import AssetsConfig
from threedgen.guidance.weights import loading
from threedgen.run.folder import user_path
from threedgen.systems.train.options import (
    Average,
    Batch,
    Bf16,
    Count,
    DenoisingConfig,
    First,
    Fresh,
    NoText,
    Share,
    TrainConfig,
    ViewNoiseConfig,
    check_multiple,
    default_trainer,
)

Images = Annotated[int, Field(ge=1, description="number of distinct images; afterwards only these are sampled")]
Widths = Annotated[tuple[int, ...], Field(description="channels of each level")]


def _check_parts(name: str, values: tuple[int, ...], parts_name: str, parts: int) -> None:
    """Raise ValueError unless all `values` are positive multiples of `parts`."""
    wrong = [value for value in values if value < 1 or parts < 1 or value % parts]
    if wrong or not values:
        raise ValueError(f"{name} {list(values)} should be multiples of {parts_name} {parts}")


class AutoencoderConfig(Config):
    """The autoencoder and its training."""

    channels: Widths = (24, 48, 96, 160)
    latent_channels: int = Field(8, ge=1, le=64)
    groups: int = Field(1, ge=1, description="groups of the group norms; 1 keeps colours comparable")
    image_size: int = Field(128, ge=32, le=1024, description="side of the training images, pixels")
    crop: int = Field(64, ge=16, description="side of the crops in the first steps, pixels")
    batch: Count = Field(16, description="images per step; a crop step takes two crops of each")
    shrunk: float = Field(0.25, ge=0, description="loss weight of half-size latents and images (arXiv 2502.14831)")
    max_steps: Count = 5000
    learning_rate: Scheduled = Field({"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5})

    @property
    def factor(self) -> int:
        """Image side divided by latent side."""
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        _check_parts("channels", self.channels, "groups", self.groups)
        check_multiple("image_size", self.image_size, self.factor, "2 ** (levels - 1)")
        check_multiple("crop", self.crop, self.factor, "2 ** (levels - 1)")
        if self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} should not exceed image_size {self.image_size}")
        return self


class DecoderConfig(Config):
    """Training of the decoder on noisy latents."""

    max_steps: Count = 2500
    latent_noise: float = Field(0.5, ge=0, le=2, description="largest standard deviation of the noise on latents")
    learning_rate: Scheduled = Field({"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5})


class NetworkConfig(Config):
    """Sizes of the UNet and of the text encoder."""

    channels: Widths = (64, 128, 224)
    attention: tuple[bool, ...] = Field((False, True, True), description="levels with attention")
    heads: tuple[int, ...] = Field((1, 2, 4), description="attention heads of each level")
    groups: int = Field(16, ge=1, description="groups of the group norms")
    text_width: int = Field(128, ge=16, description="width of a text token")
    text_layers: int = Field(3, ge=1, le=48, description="layers of the text encoder")
    text_heads: int = Field(4, ge=1, description="attention heads of the text encoder")
    max_tokens: int = Field(32, ge=4, description="tokens of a prompt, start and end included")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        levels = {"channels": len(self.channels), "attention": len(self.attention), "heads": len(self.heads)}
        if len(set(levels.values())) > 1 or not self.channels:
            counts = ", ".join(f"{name} has {count}" for name, count in levels.items())
            raise ValueError(f"channels, attention and heads should have one value for each level ({counts})")
        _check_parts("channels", self.channels, "groups", self.groups)
        for channels, heads, attention in zip(self.channels, self.heads, self.attention, strict=True):
            if attention:
                _check_parts("channels", (channels,), "heads", heads)
        _check_parts("text_width", (self.text_width,), "text_heads", self.text_heads)
        return self


class WordsConfig(Config):
    """Contrastive training of the text encoder with latents, as CLIP."""

    max_steps: Count = 800
    batch: int = Field(256, ge=2, description="images per step, each with its caption")
    pictures: int = Field(16_384, ge=2, description="number of distinct images")
    fresh: Fresh = 16
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-3, "60%": 1e-3, "100%": 2e-5})


class DiffusionConfig(DenoisingConfig):
    """Training of the UNet."""

    batch: Batch = 64
    fresh: Fresh = 4
    first: First = 8192
    pictures: Images = 600_000
    luck: Share = Field(0.3, description="variation of what captions leave unspecified; 0: always the mean shape")
    no_text: NoText = 0.1
    timestep_power: Scheduled = Field(2.0, gt=0, le=3, description="t = T u^timestep_power; above 1 favours low noise")
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "60%": 2e-3, "100%": 2e-5})
    ema: Average = 0.999
    bf16: Bf16 = True
    sheet_prompts: tuple[str, ...] = Field(
        (
            "a blue dog wearing a red hat",
            "a yellow car with black wheels",
            "a white house with a red roof",
            "a green robot wearing a purple scarf",
            "a pink teapot",
            "a brown chair",
            "a red penguin",
            "a grey wizard",
            "a blue room with a red sofa and a window",
            "a yellow room with a green bed, a brown door and a purple lamp",
            "the corner of a green room",
            "a pink room with a blue floor and a black table",
        ),
        description="prompts of the sample sheet",
    )


class PhotographsConfig(DiffusionConfig):
    """Training of the UNet of the 2D model on images of objects and rooms."""

    rooms: Share = Field(0.25, description="share of images inside rooms")
    clutter: Share = Field(1.0, description="share of the possible objects that stand in a room")
    style: Literal["plain", "blocks"] = Field("plain", description="style of the objects; blocks: each part a box")


class MultiviewDiffusionConfig(DiffusionConfig):
    """Training of the UNet on 2D and multi-view batches (MVDream, section 3).

    `fresh`, `first` and `pictures` are rounded up to whole objects of `n_view` images.
    """

    n_view: int = Field(4, ge=2, le=16, description="views of an object that attend to each other")
    two_d: Share = Field(0.3, description="share of batches of single images without cameras")
    view_noise: ViewNoiseConfig = ViewNoiseConfig()
    sheet_prompts: tuple[str, ...] = Field(
        DiffusionConfig().sheet_prompts[:8], description="prompts of the sample sheet"
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        check_multiple("batch", self.batch, self.n_view, "n_view")
        return self


class CoarseConfig(Config):
    """Training of the coarse predictor: latents from caption and camera alone."""

    max_steps: Count = 20_000
    batch: Batch = 128
    fresh: Fresh = 8
    first: First = 8192
    pictures: Images = 200_000
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "40%": 2e-3, "100%": 2e-5})


class TrainBaseConfig(TrainConfig):
    """Train the 2D model of the toybox: autoencoder, decoder, text encoder and UNet, or only the UNet of `start`."""

    image_size: int = Field(128, ge=32, le=1024, description="side of an image, pixels")
    start: str | None = Field(None, min_length=1, description="2D model whose UNet is trained further")
    widen: tuple[int, ...] | None = Field(None, description="channels of each level, multiples of those of start")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    network: NetworkConfig = NetworkConfig()
    words: WordsConfig = WordsConfig()
    training: PhotographsConfig = PhotographsConfig()
    trainer: TrainerConfig = default_trainer(24_000)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_multiple("image_size", self.image_size, self.autoencoder.factor, "2 ** (levels of the autoencoder - 1)")
        if self.widen is not None and self.start is None:
            raise ValueError("widen goes with start; the width of a new UNet is network.channels")
        if self.training.half:
            check_multiple("image_size", self.image_size, 2 * self.autoencoder.factor, "twice that, for training.half")
        return self


class TrainPriorConfig(TrainConfig):
    """Train the multi-view prior of the toybox from its 2D model, or a prior further."""

    start: str = Field(min_length=1, description="2D model or multi-view prior to start from")
    coarse: CoarseConfig | None = Field(CoarseConfig(), description="coarse predictor; null: as in start")
    widen: tuple[int, ...] | None = Field(None, description="channels of each level, multiples of those of start")
    attention: bool = Field(False, description="attention added at the levels without it")
    rotary: bool = Field(False, description="rotary embedding of world positions in self-attention")
    open_captions: bool = Field(False, description="captions with some colours or none and up to two parts")
    scattered: Share = Field(0.0, description="share of objects with independent cameras; open captions only")
    fov_range: Fovs = Field((35.0, 45.0), description="range of fields of view, degrees")
    distance_range: Positives = Field((0.9, 1.0), description="range of camera distances, in 1 / tan(fov / 2)")
    training: MultiviewDiffusionConfig = MultiviewDiffusionConfig()
    trainer: TrainerConfig = default_trainer(24_000)

    @model_validator(mode="after")
    def _check_half(self) -> Self:
        if self.training.half and self.coarse is not None:
            raise ValueError("training.half needs samples that start from noise; set coarse to null")
        return self


class OwnTrainingConfig(MultiviewDiffusionConfig):
    """Training of the UNet on user assets."""

    first: First = 2048
    pictures: Images = 100_000
    learning_rate: Scheduled = Field({"0%": 0.0, "2%": 1e-4, "60%": 1e-4, "100%": 1e-5})
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    sheet_prompts: tuple[str, ...] = Field(
        (), description="prompts of the sample sheet; empty: held-out assets, and their FID"
    )


class TrainOwnPriorConfig(AssetsConfig):
    """Train a multi-view prior, or a 2D model, further on your own meshes and captions."""

    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field(
        {}, description="weights to start from: toybox-prior, MVDream's, or a 2D model"
    )
    pictures: str | None = Field(
        None, description="folder of images with captions.csv for 2D batches; null: views of the assets"
    )
    held_out: int = Field(8, ge=0, le=100_000, description="assets for the sample sheet, not trained on")
    features: Annotated[Any, Component("features", default="probe")] = Field(
        {}, description="features of the FID; inception for photos"
    )
    training: OwnTrainingConfig = OwnTrainingConfig()
    trainer: TrainerConfig = default_trainer(4000)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.prior.personalisation is not None:
            raise ValueError("prior.personalisation belongs to the weights it was made with; remove it here")
        return self

    def check(self) -> None:
        super().check()
        if self.pictures is not None and not user_path(self.pictures, "pictures").is_dir():
            raise ConfigError("should be a folder with images and a captions.csv", "pictures", self.pictures)


# --- train-matte -------------------------------------------------------------------------------------------------


class MatteNetworkConfig(Config):
    """Size of the network."""

    size: int = Field(128, ge=8, le=1024, description="side of the images, pixels")
    channels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (32, 64, 96, 128), min_length=1, max_length=8, description="channels of each level"
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        check_multiple("size", self.size, 2 ** len(self.channels), "2 ** levels")
        return self


class MatteTrainingConfig(Config):
    """Training of the matte."""

    batch: Batch = 16
    fresh: Fresh = 3
    first: First = 1024
    pictures: Count = Field(20_000, description="number of distinct images")
    jumbles: Share = Field(0.1, description="share of images of random solids")
    learning_rate: Scheduled = Field({"0%": 0.0, "3%": 2e-3, "40%": 2e-3, "100%": 1e-5})
    bf16: Bf16 = True


class TrainMatteConfig(TrainConfig):
    """Train the network that separates objects of toybox images from their grey background."""

    autoencoder: str = Field("toybox-base", min_length=1, description="model whose decoder makes the images")
    network: MatteNetworkConfig = MatteNetworkConfig()
    training: MatteTrainingConfig = MatteTrainingConfig()
    measured: Count = Field(256, description="held-out images for the evaluation")
    trainer: TrainerConfig = default_trainer(1200, gradient_clip_val=5.0, val_check_interval=0)

    def check(self) -> None:
        with called("autoencoder"):
            loading.check(self.autoencoder)
        super().check()
