"""Config models of the tasks that train the models of the toybox (no torch here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import called
from threedgen.config.sections import (
    Average,
    CheckpointConfig,
    Fovs,
    LearningConfig,
    Positives,
    RunConfig,
    TrainerConfig,
)


def _divisible(name: str, values: tuple[int, ...], parts_name: str, parts: int) -> None:
    """Each of `values` should be at least 1 and fall into `parts` equal parts. Raises ValueError."""
    wrong = [value for value in values if value < 1 or parts < 1 or value % parts]
    if wrong or not values:
        raise ValueError(f"{name} {list(values)} should be multiples of {parts_name} {parts}")


def _multiple(name: str, value: int, unit: int, what: str) -> None:
    if value % unit:
        near = max(unit, round(value / unit) * unit)
        raise ValueError(f"{name} {value} should be a multiple of {unit}, {what}; try {near}")


class AutoencoderConfig(Config):
    """The autoencoder and how it is trained."""

    channels: tuple[int, ...] = Field((24, 48, 96, 160), description="width of each level; each halves the picture")
    layers_per_block: int = Field(1, ge=1, le=4, description="residual blocks of a level")
    latent_channels: int = Field(8, ge=1, le=64)
    groups: int = Field(1, ge=1, description="groups of the group norms; one keeps colours comparable")
    image_size: int = Field(128, ge=32, le=1024, description="pictures it is trained on, in pixels")
    crop: int = Field(64, ge=16, description="size of the crops that most steps train on, in pixels")
    whole: float = Field(0.25, ge=0, le=1, description="last share of the steps, which sees whole pictures")
    batch: int = Field(16, ge=1, description="assets in a step; a crop step takes two crops of each")
    jumbles: float = Field(0.25, ge=0, le=1, description="share of the pictures that show heaps of random solids")
    rooms: float = Field(0.2, ge=0, le=1, description="share of the pictures taken inside toy rooms")
    shrunk: float = Field(
        0.25, ge=0, description="weight of half-size latents decoded as half-size pictures (arXiv 2502.14831)"
    )
    max_steps: int = Field(5000, ge=1)
    learning_rate: Scheduled = Field({"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    kl: float = Field(1e-5, ge=0, description="weight of the KL divergence per latent number")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")

    @property
    def factor(self) -> int:
        """Pixels per latent, along each axis."""
        return 2 ** (len(self.channels) - 1)

    @model_validator(mode="after")
    def _fit(self) -> AutoencoderConfig:
        _divisible("channels", self.channels, "groups", self.groups)
        _multiple("image_size", self.image_size, self.factor, "2 ** (levels - 1)")
        _multiple("crop", self.crop, self.factor, "2 ** (levels - 1)")
        if self.crop > self.image_size:
            raise ValueError(f"crop {self.crop} should not exceed image_size {self.image_size}")
        return self


class DecoderConfig(Config):
    """How the decoder learns to decode latents that are a little wrong, as samples are."""

    max_steps: int = Field(2500, ge=1)
    latent_noise: float = Field(0.5, ge=0, le=2, description="most noise on the latents, whose deviation is 1")
    learning_rate: Scheduled = Field({"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5})


class NetworkConfig(Config):
    """Sizes of the UNet on the latents and of the text encoder."""

    channels: tuple[int, ...] = Field((64, 128, 224), description="width of each level of the UNet")
    attention: tuple[bool, ...] = Field((False, True, True), description="which levels have attention")
    layers_per_block: int = Field(1, ge=1, le=4)
    heads: tuple[int, ...] = Field((1, 2, 4), description="attention heads of each level")
    groups: int = Field(16, ge=1, description="groups of the group norms")
    text_width: int = Field(128, ge=16, description="width of a text token")
    text_layers: int = Field(3, ge=1, le=48)
    text_heads: int = Field(4, ge=1)
    max_tokens: int = Field(32, ge=4, description="length of a prompt in tokens, start and end included")
    pooled_text: bool = Field(True, description="the pooled caption in the time embedding too: shapes come sooner")
    scale_shift: bool = Field(True, description="the time embedding scales and shifts features (else only shifts)")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction",
        description="of the UNet; v weighs all noise levels alike, also the high ones, where words matter",
    )
    schedule: Literal["linear", "scaled_linear"] = Field(
        "linear",
        description="of the noise (SD's is scaled_linear): small latents show through the noise in which SD's ends, so "
        "that samples would take the shape of their noise instead of that of the noun",
    )

    @model_validator(mode="after")
    def _fit(self) -> NetworkConfig:
        levels = {"channels": len(self.channels), "attention": len(self.attention), "heads": len(self.heads)}
        if len(set(levels.values())) > 1 or not self.channels:
            counts = ", ".join(f"{name} has {count}" for name, count in levels.items())
            raise ValueError(f"channels, attention and heads should have one value for each level ({counts})")
        _divisible("channels", self.channels, "groups", self.groups)
        for channels, heads, attention in zip(self.channels, self.heads, self.attention, strict=True):
            if attention:
                _divisible("channels", (channels,), "heads", heads)
        _divisible("text_width", (self.text_width,), "text_heads", self.text_heads)
        return self


class WordsConfig(Config):
    """How the text encoder learns what captions mean before the UNet begins: it tells pictures apart, as CLIP does."""

    max_steps: int = Field(800, ge=1)
    batch: int = Field(256, ge=2, description="pictures in a step, told apart by their captions")
    pictures: int = Field(16_384, ge=2, description="pictures at most")
    fresh: int = Field(16, ge=0, description="pictures that a step adds to those of the step before")
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    weight_decay: float = Field(0.05, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class DiffusionConfig(LearningConfig):
    """How the UNet learns from single pictures."""

    batch: int = Field(64, ge=1, description="pictures in a step")
    fresh: int = Field(4, ge=0, description="pictures of a step that no step saw before; the rest is seen again")
    first: int = Field(8192, ge=1, description="pictures to begin with")
    pictures: int = Field(600_000, ge=1, description="pictures at most; from then on all are seen again")
    luck: float = Field(
        0.3,
        ge=0,
        le=1,
        description="of what captions leave open about objects, so much is drawn; 0: always the same shape",
    )
    half: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps that see pictures of half the size, at a fourth of the cost: where things are "
        "is learnt from those (prior.draft draws in both sizes)",
    )
    no_text: float = Field(0.1, ge=0, le=1, description="share of captions that are left out, for guidance")
    timestep_power: Scheduled = Field(
        2.0, gt=0, le=3, description="t = T u^this: above 1 favours little noise, where details are decided"
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "60%": 2e-3, "100%": 2e-5})
    ema: Average = 0.999
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")
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
    """How the UNet of the 2D model learns: from objects, and from views inside rooms."""

    rooms: float = Field(0.25, ge=0, le=1, description="share of the pictures that are taken inside rooms")
    clutter: float = Field(1.0, ge=0, le=1, description="of the things that may stand in a room, so many do")
    style: Literal["plain", "blocks"] = Field("plain", description="of the objects: as they are, or each part a block")


class ViewNoiseConfig(Config):
    """Noise levels of the views of an object in training; all equal in the remaining objects."""

    independent: float = Field(0.0, ge=0, le=1, description="share of objects with a noise level for each view")
    companions: float = Field(0.0, ge=0, le=1, description="share of objects with little noise in some views")

    @model_validator(mode="after")
    def _shares(self) -> ViewNoiseConfig:
        if self.independent + self.companions > 1:
            both = f"independent {self.independent:g} and companions {self.companions:g}"
            raise ValueError(f"{both} should not exceed 1 together; try companions={1 - self.independent:.2g}")
        return self


class MultiviewDiffusionConfig(DiffusionConfig):
    """How the UNet learns to draw several views at once (MVDream section 3: one network, 2D and multi-view batches).

    ``fresh``, ``first`` and ``pictures`` are rounded up to whole objects, of ``n_view`` pictures each.
    """

    n_view: int = Field(4, ge=2, le=16, description="views of an object that see each other")
    two_d: float = Field(0.3, ge=0, le=1, description="share of 2D batches: attention by view, no camera")
    view_noise: ViewNoiseConfig = ViewNoiseConfig()
    sheet_prompts: tuple[str, ...] = Field(DiffusionConfig().sheet_prompts[:8], description="of the sample sheet")

    @model_validator(mode="after")
    def _whole_objects(self) -> MultiviewDiffusionConfig:
        _multiple("batch", self.batch, self.n_view, "n_view")
        return self


class CoarseConfig(Config):
    """How the coarse predictor learns pictures from words and camera alone, before the UNet begins."""

    max_steps: int = Field(20_000, ge=1)
    batch: int = Field(128, ge=1, description="pictures in a step, each of another object")
    fresh: int = Field(8, ge=0, description="pictures that a step adds to those of the step before")
    first: int = Field(8192, ge=1, description="pictures to begin with")
    pictures: int = Field(200_000, ge=1, description="pictures at most")
    two_d: float = Field(0.15, ge=0, le=1, description="share of the steps that leave the camera out")
    no_text: float = Field(0.1, ge=0, le=1, description="share of captions that are left out, for guidance")
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "40%": 2e-3, "100%": 2e-5})
    weight_decay: float = Field(0.05, ge=0)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the average of the weights, which is kept")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class TrainBaseConfig(RunConfig):
    """Train the 2D model of the toybox from nothing: an autoencoder, twice its decoder, a text encoder, the UNet."""

    image_size: int = Field(128, ge=32, le=1024, description="pixels of a picture")
    start: str | None = Field(
        None, min_length=1, description="a 2D model of which only the UNet learns on: a folder in diffusers format"
    )
    widen: tuple[int, ...] | None = Field(
        None, description="with start: make the levels of its UNet so wide, multiples of what they are; null: as it is"
    )
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    network: NetworkConfig = NetworkConfig()
    words: WordsConfig = WordsConfig()
    training: PhotographsConfig = PhotographsConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=24_000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _fit(self) -> TrainBaseConfig:
        _multiple("image_size", self.image_size, self.autoencoder.factor, "2 ** (levels of the autoencoder - 1)")
        if self.widen is not None and self.start is None:
            raise ValueError("widen goes with start; the width of a new UNet is network.channels")
        if self.training.half:
            _multiple("image_size", self.image_size, 2 * self.autoencoder.factor, "twice that, as training.half is")
        return self

    def check(self) -> None:
        if self.start is not None:
            check_start(self.start)
        super().check()


class TrainPriorConfig(RunConfig):
    """Train the multi-view prior of the toybox on from its 2D model, which learns cameras and joined attention."""

    start: str = Field(
        min_length=1,
        description="what to begin with, a folder in diffusers format: a 2D model or such a prior",
    )
    coarse: CoarseConfig | None = Field(
        CoarseConfig(), description="the coarse predictor; null: none, as MVDream has none, or that of `start` as it is"
    )
    widen: tuple[int, ...] | None = Field(
        None, description="channels of each level of the UNet, multiples of those of `start`; null: the same"
    )
    attention: bool = Field(False, description="add attention at the levels of the UNet that have none")
    rotary: bool = Field(
        False,
        description="self-attention takes the world positions of pixels (rotary embedding, in the plane of the object)",
    )
    open_captions: bool = Field(False, description="captions state some colours or none, and up to two parts")
    scattered: float = Field(
        0.0, ge=0, le=1, description="share of objects with independent cameras; open captions only"
    )
    fov_range: Fovs = Field((35.0, 45.0), description="of the cameras, degrees")
    distance_range: Positives = Field((0.9, 1.0), description="of the cameras, in 1 / tan(fov / 2)")
    training: MultiviewDiffusionConfig = MultiviewDiffusionConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=24_000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _fit(self) -> TrainPriorConfig:
        if self.training.half and self.coarse is not None:
            raise ValueError("training.half is of samples that begin as noise; with it, coarse should be null")
        return self

    def check(self) -> None:
        check_start(self.start)
        super().check()


def check_start(weights: str) -> None:
    """Raises ConfigError, of the key ``start``, if there plainly is no such model."""
    from threedgen.guidance.weights.loading import check

    with called("start"):
        check(weights)
