"""Config models of train-base, train-prior, train-own-prior and train-matte. The module does not import torch."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import ConfigError
from threedgen.config.registry import SECTION, Component
from threedgen.config.sections import CheckpointConfig, Fovs, Positives, TrainerConfig
from threedgen.data.assets.options import AssetsConfig
from threedgen.run.folder import user_path
from threedgen.systems.train import options as base

Images = Annotated[int, Field(ge=1, description="number of distinct images; afterwards only these are sampled")]
Widths = Annotated[tuple[base.Count, ...], Field(min_length=1, description="channels of each level")]
GROUPS = 16
"""Number of groups of the group norms of a UNet."""


class AutoencoderConfig(Config):
    """Options of the autoencoder (VAE) in train-base: its channels, training steps and images per step."""

    channels: Widths = (24, 48, 96, 160)
    batch: base.Count = Field(16, description="images per step; a crop step takes two crops of each")
    max_steps: base.Count = 5000

    @property
    def factor(self) -> int:
        """Downsampling factor: side of an image divided by the side of its latents."""
        return 2 ** (len(self.channels) - 1)


class DecoderConfig(Config):
    """Options of the second training of the autoencoder's decoder in train-base, on noisy latents: number of steps."""

    max_steps: base.Count = 2500


class NetworkConfig(Config):
    """Options of the new UNet that train-base trains: the number of channels of each level."""

    channels: Widths = (64, 128, 224)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for width in self.channels:
            base.check_multiple("channels", width, GROUPS, "the groups of its norms")
        return self


class WordsConfig(Config):
    """Options of the contrastive training of the text encoder in train-base, as in CLIP: steps, images per step."""

    max_steps: base.Count = 800
    batch: int = Field(256, ge=2, description="images per step, each with its caption")


class DiffusionConfig(base.DenoisingConfig):
    """Options of a UNet's training in train-base, train-prior and train-own-prior: images, noise, learning rate."""

    batch: base.Batch = 64
    fresh: base.Fresh = 4
    first: base.First = 8192
    pictures: Images = 600_000
    variation: base.Share = Field(
        0.3, description="variation of what captions leave unspecified; 0: always the mean shape"
    )
    no_text: base.NoText = 0.1
    timestep_power: Scheduled = Field(2.0, gt=0, le=3, description="t = T u^timestep_power; above 1 favours low noise")
    timestep_logit_normal: tuple[float, PositiveFloat] | None = Field(
        None,
        description="mean and standard deviation of a normal logit of t / T; in place of timestep_power, which "
        "independent views keep",
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "60%": 2e-3, "100%": 2e-5})
    ema: base.Average = 0.999


class PhotographsConfig(DiffusionConfig):
    """Options of the training of the UNet in train-base, on single images of objects and rooms."""

    rooms: base.Share = Field(0.25, description="share of images inside rooms")
    clutter: base.Share = Field(1.0, description="share of the possible objects that stand in a room")
    style: Literal["plain", "blocks"] = Field("plain", description="style of the objects; blocks: each part a box")


class MultiviewDiffusionConfig(DiffusionConfig):
    """Options of the training of a multi-view prior's UNet on 2D and multi-view batches, as in MVDream (section 3).

    They belong to the tasks train-prior and train-own-prior. With the probability `two_d`, a step has a 2D batch:
    single images without cameras. Otherwise it has a multi-view batch: `n_view` views of each object. The two kinds
    have separate pools of images, for which the same options hold. A step trains on `batch` images: `fresh` new ones,
    and random ones from the pool of earlier images. The pool has `first` images at the first step. The new images of
    each step join it until it has `pictures` images; after that, no image is new. For multi-view batches, each of these
    four numbers of images is rounded up to whole objects.
    """

    n_view: int = Field(4, ge=2, le=16, description="views of an object that attend to each other")
    two_d: base.Share = Field(0.3, description="share of batches of single images without cameras")
    view_noise: base.ViewNoiseConfig = base.ViewNoiseConfig()
    object_codes: base.Share = Field(0.0, description="share of objects whose coarse prediction has their object code")


class CoarseConfig(Config):
    """Options of the training of the coarse predictor, which computes latents in one step, in the task train-prior.

    The inputs of the coarse predictor are caption, camera and object code, a vector of what the caption leaves
    unspecified. Three networks are trained one after the other, each with its own number of steps: the predictor, the
    sampler of object codes, and the view fusion, which corrects predictions with the noisy latents of all views.
    A network with 0 steps is not trained: it stays as in the weights from which the training starts (option `start` of
    the task).
    """

    max_steps: int = Field(8000, ge=0, description="steps of the coarse predictor; 0: that of start")
    sampler_steps: int = Field(4000, ge=0, description="steps of the sampler of object codes; 0: that of start")
    fusion_steps: int = Field(4000, ge=0, description="steps of the view fusion; 0: that of start, if it has one")
    objects: base.Count = Field(40_000, description="number of distinct objects")
    volume: tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...] | None = Field(
        None, description="channels of the feature volumes that are added; null: none, or those of start"
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "40%": 2e-3, "100%": 2e-5})

    @model_validator(mode="after")
    def _check_volume(self) -> Self:
        if self.volume is not None and not self.max_steps:
            raise ValueError("volume goes with max_steps of at least 1: untrained feature volumes have no effect")
        return self


class TrainBaseConfig(base.TrainConfig):
    """Training of a 2D model, which generates single images, on toybox renders: from the autoencoder to the UNet.

    Options of the task "train-base". The networks are trained one after the other: autoencoder, its decoder again on
    noisy latents, text encoder, UNet. If `start` names a 2D model, only its UNet is trained.
    """

    movable_inputs: ClassVar[tuple[str, ...]] = ()  # without `start`, other networks are trained

    image_size: int = Field(128, ge=32, le=1024, description="side of an image, pixels")
    start: str | None = Field(None, min_length=1, description="2D model whose UNet is trained further")
    widen: tuple[int, ...] | None = Field(None, description="channels of each level, multiples of those of start")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    network: NetworkConfig = NetworkConfig()
    words: WordsConfig = WordsConfig()
    training: PhotographsConfig = PhotographsConfig()
    trainer: TrainerConfig = base.default_trainer(24_000)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        halved = 1 if self.start else 2  # the autoencoder trains on crops of half the size, and halves their latents
        unit = 2 * halved * self.autoencoder.factor
        base.check_multiple("image_size", self.image_size, unit, f"{2 * halved} pixels of latents")
        if self.widen is not None and self.start is None:
            raise ValueError("widen goes with start; the width of a new UNet is network.channels")
        return self


class TrainPriorConfig(base.TrainConfig):
    """Training of a multi-view prior on toybox renders, from a 2D model or from a multi-view prior.

    Options of the task "train-prior". A 2D model generates single images, a multi-view prior consistent views of one
    object.
    """

    start: str = Field(min_length=1, description="2D model or multi-view prior to start from")
    coarse: CoarseConfig | None = Field(CoarseConfig(), description="coarse predictor; null: as in start")
    open_captions: bool = Field(False, description="captions with some colours or none and up to two parts")
    scattered: base.Share = Field(0.0, description="share of objects with independent cameras; open captions only")
    accessories: base.Share = Field(0.0, description="share of objects that must wear one; open captions only")
    fov_range: Fovs = Field((35.0, 45.0), description="range of fields of view, degrees")
    distance_range: Positives = Field((0.9, 1.0), description="range of camera distances, in 1 / tan(fov / 2)")
    training: MultiviewDiffusionConfig = MultiviewDiffusionConfig()
    trainer: TrainerConfig = base.default_trainer(24_000)

    @model_validator(mode="after")
    def _check_half(self) -> Self:
        if self.training.half and self.coarse is not None:
            raise ValueError("training.half needs samples that start from noise; set coarse to null")
        return self


class OwnTrainingConfig(MultiviewDiffusionConfig):
    """Options of the training of the UNet in train-own-prior, on renders of user assets (meshes with captions)."""

    first: base.First = 2048
    pictures: Images = 100_000
    learning_rate: Scheduled = Field({"0%": 0.0, "2%": 1e-4, "60%": 1e-4, "100%": 1e-5})
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")


class TrainOwnPriorConfig(AssetsConfig):
    """Further training of a multi-view prior, or of a 2D model, on your own meshes and captions.

    Options of the task "train-own-prior". A 2D model generates single images. It becomes a multi-view prior, which
    generates views of an object.
    """

    movable_inputs: ClassVar[tuple[str, ...]] = ("data", "prior.weights")  # of assets, the names have a hash

    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = {}
    pictures: str | None = Field(
        None, description="folder of images with captions.csv for 2D batches; null: views of the assets"
    )
    held_out: int = Field(8, ge=0, le=100_000, description="assets for the sample sheet, not trained on")
    features: Annotated[Any, Component("features", default="probe")] = Field(
        {}, description="features of the FID; inception for photos"
    )
    training: OwnTrainingConfig = OwnTrainingConfig()
    trainer: TrainerConfig = base.default_trainer(4000)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)
    logger: base.Logger = SECTION

    @model_validator(mode="after")
    def _check_prior(self) -> Self:
        if self.prior.personalisation is not None:
            raise ValueError("prior.personalisation belongs to the weights it was made with; remove it here")
        if self.prior.loras or self.prior.embeddings:
            raise ValueError("prior.loras and prior.embeddings are not used by this training; remove them here")
        if self.training.half:
            raise ValueError(f"training.half {self.training.half:g} should be 0: all steps have the full image size")
        return self

    def check(self) -> None:
        super().check()
        if self.pictures is not None and not user_path(self.pictures, "pictures").is_dir():
            raise ConfigError("should be a folder with images and a captions.csv", "pictures", self.pictures)


# --- train-matte -------------------------------------------------------------------------------------------------


class MatteNetworkConfig(Config):
    """Options of the network in train-matte that predicts an object's opacity at each pixel: image size, channels."""

    size: int = Field(128, ge=8, le=1024, description="side of the images, pixels")
    channels: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(
        (32, 64, 96, 128), min_length=1, max_length=8, description="channels of each level"
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        base.check_multiple("size", self.size, 2 ** len(self.channels), "2 ** levels")
        return self


class MatteTrainingConfig(Config):
    """Training options of the opacity network in train-matte: images per step, and number of distinct images.

    A step trains on `batch` images: up to three new ones, and random ones from the pool of earlier images. The pool has
    `first` images at the first step. The new images of each step join it until it has `pictures` images; after that, no
    image is new.
    """

    batch: base.Batch = 16
    first: base.First = 1024
    pictures: base.Count = Field(20_000, description="number of distinct images")


class TrainMatteConfig(base.TrainConfig):
    """Options of the task "train-matte", which trains a network that separates objects from the background."""

    network: MatteNetworkConfig = MatteNetworkConfig()
    training: MatteTrainingConfig = MatteTrainingConfig()
    trainer: TrainerConfig = base.default_trainer(1200, gradient_clip_val=5.0, val_check_interval=0)
