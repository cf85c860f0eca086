"""Config models of the tasks that train an embedded prior (no torch here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled
from threedgen.config.errors import called
from threedgen.config.sections import CheckpointConfig, RunConfig, TrainerConfig


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
    """The autoencoder of an embedded prior and how it is trained."""

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
        0.25,
        ge=0,
        description="weight of decoding latents at half the size as the picture at half the size: latents "
        "without fine noise are learnt sooner by a UNet (Skorokhodov et al. 2025, arXiv 2502.14831)",
    )
    max_steps: int = Field(5000, ge=1)
    learning_rate: Scheduled = Field({"0%": 1e-4, "1%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    kl: float = Field(1e-5, ge=0, description="weight of the KL divergence per latent number")
    latent_noise: float = Field(0.0, ge=0, le=1, description="noise on the latents, beyond the posterior's")
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


class NetworkConfig(Config):
    """Sizes of an embedded prior: the UNet on the latents and the text encoder."""

    channels: tuple[int, ...] = Field((64, 128, 224), description="width of each level of the UNet")
    attention: tuple[bool, ...] = Field((False, True, True), description="which levels have attention")
    layers_per_block: int = Field(1, ge=1, le=4)
    heads: tuple[int, ...] = Field((1, 2, 4), description="attention heads of each level")
    groups: int = Field(16, ge=1, description="groups of the group norms")
    text_width: int = Field(128, ge=16, description="width of a text token")
    text_layers: int = Field(3, ge=1, le=48)
    text_heads: int = Field(4, ge=1)
    max_tokens: int = Field(24, ge=4, description="length of a prompt in tokens, start and end included")
    draft: bool = Field(True, description="a first guess from words and camera, which the UNet gets to see")
    pooled_text: bool = Field(
        True, description="add the pooled caption to the time embedding, besides cross-attention: shapes come sooner"
    )
    scale_shift: bool = Field(True, description="the time embedding scales and shifts features (else only shifts)")
    prediction: Literal["epsilon", "v_prediction"] = Field(
        "v_prediction",
        description="what the UNet predicts; v weighs all noise levels alike, so that the words are learnt, "
        "which matter where there is much noise; epsilon all but ignores those levels",
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
        if self.draft and 32 % self.text_heads:
            raise ValueError(f"text_heads should be 1, 2, 4, 8, 16 or 32 for the draft (got {self.text_heads})")
        return self


class TextTrainingConfig(Config):
    """How the text encoder learns what captions mean before the UNet begins: by telling apart scenes, as CLIP does."""

    max_steps: int = Field(600, ge=1)
    batch: int = Field(256, ge=2, description="scenes in a step, told apart by their captions")
    n_view: int = Field(2, ge=1, le=16, description="views of a scene that are looked at")
    scenes: int = Field(10_000, ge=1, description="scenes at most")
    fresh: int = Field(16, ge=0, description="scenes that a step adds to those of the step before")
    learning_rate: Scheduled = Field({"0%": 0.0, "5%": 1e-3, "60%": 1e-3, "100%": 2e-5})
    weight_decay: float = Field(0.05, ge=0)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class DraftTrainingConfig(Config):
    """How the draft learns before the UNet begins."""

    max_steps: int = Field(12_000, ge=1)
    batch: int = Field(128, ge=1, description="scenes in a step, a picture of each")
    scenes: int = Field(200_000, ge=1, description="scenes at most")
    fresh: int = Field(16, ge=0, description="scenes that a step adds to those of the step before")
    two_d: float = Field(0.15, ge=0, le=1, description="share of the steps that leave the camera out")
    no_text: float = Field(0.1, ge=0, le=1, description="share of scenes whose caption is left out, for guidance")
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 2e-3, "40%": 2e-3, "100%": 2e-5})
    weight_decay: float = Field(0.05, ge=0)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the average of the weights, which is kept")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")


class PriorTrainingConfig(Config):
    """How the UNet learns (MVDream section 3: one network, 2D and multi-view batches)."""

    batch: int = Field(16, ge=1, description="scenes in a step, of n_view pictures each")
    n_view: int = Field(4, ge=1, le=16)
    fresh: int = Field(4, ge=0, description="scenes of a step that no step saw before; the rest is seen again")
    first: int = Field(1024, ge=1, description="scenes to begin with")
    scenes: int = Field(100_000, ge=1, description="scenes at most; from then on all are seen again")
    first_scene: int = Field(0, ge=0, description="index of the first scene; another number, another part of the world")
    two_d: float = Field(0.3, ge=0, le=1, description="share of 2D batches: attention by view, no camera")
    alone: float = Field(
        0.5,
        ge=0,
        le=1,
        description="first share of the steps, in which no views are joined: each picture is of another scene, with "
        "its camera; words and cameras are learnt there, consistent views afterwards",
    )
    no_text: float = Field(0.1, ge=0, le=1, description="share of scenes whose caption is left out, for guidance")
    timestep_power: float = Field(
        0.9, gt=0, le=2, description="t = T u^this: below 1 favours noise, where shape and colour are decided"
    )
    learning_rate: Scheduled = Field({"0%": 0.0, "1%": 3e-4, "20%": 3e-4, "100%": 1e-5})
    weight_decay: float = Field(0.01, ge=0)
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the average of the weights, which is what ships")
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")
    sheet_prompts: tuple[str, ...] = Field(
        (
            "a blue dog wearing a red hat",
            "a yellow car with black wheels",
            "a white house with a red roof",
            "a green robot wearing a purple scarf",
            "a pink teapot",
            "a brown chair",
        ),
        description="prompts of the sample sheet",
    )

    @model_validator(mode="after")
    def _room(self) -> PriorTrainingConfig:
        if self.fresh > self.batch:
            raise ValueError(f"fresh {self.fresh} should not exceed batch {self.batch}")
        return self


class TrainPriorConfig(RunConfig):
    """Train the embedded prior: an autoencoder, a text encoder, a draft, then the UNet."""

    start: str | None = Field(None, description="weights to go on from (embedded, a folder); null: from nothing")
    image_size: int = Field(128, ge=32, le=1024, description="pixels of a picture")
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    network: NetworkConfig = NetworkConfig()
    text: TextTrainingConfig = TextTrainingConfig()
    draft: DraftTrainingConfig = DraftTrainingConfig()
    training: PriorTrainingConfig = PriorTrainingConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=20_000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @model_validator(mode="after")
    def _fit(self) -> TrainPriorConfig:
        if self.start is None:
            unit = self.autoencoder.factor
            _multiple("image_size", self.image_size, unit, "2 ** (levels of the autoencoder - 1)")
            if self.network.draft:
                _multiple("image_size", self.image_size, 4 * unit, "4 latents: the draft is drawn at a quarter size")
        return self

    def check(self) -> None:
        from threedgen.guidance.weights.loading import check

        if self.start is not None:
            with called("start"):
                check(self.start)
        super().check()


class RefineDecoderConfig(RunConfig):
    """Train the decoder of a prior on: sharper samples, while the latents and the UNet stay as they are."""

    start: str = Field("embedded", min_length=1, description="the prior whose decoder is trained")
    autoencoder: AutoencoderConfig = Field(
        AutoencoderConfig(
            latent_noise=0.1, learning_rate={"0%": 1e-4, "5%": 1e-3, "50%": 1e-3, "100%": 5e-5}, jumbles=0.1
        ),
        description="batches and learning rate; the sizes are those of the prior, max_steps that of the trainer",
    )
    trainer: TrainerConfig = TrainerConfig(max_steps=2000, gradient_clip_val=1.0, val_check_interval=200)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)
