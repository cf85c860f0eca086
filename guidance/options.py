"""Config models of priors; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import called
from threedgen.config.optional import require
from threedgen.guidance.choices import Control, Layout, Shift, Timestep
from threedgen.guidance.weights.shipped import choice

if TYPE_CHECKING:
    from .weights.loading import Identity
    from .weights.vocabulary import Vocabulary

PARTS = ("unet", "vae", "text_encoder")
"""Folders with tensors that a latent prior in diffusers format has."""
COARSE, SECOND = "coarse", "text_encoder_2"
"""And those that some have: a coarse predictor, and SDXL's other text encoder."""


def embedded_as(name: str) -> AfterValidator:
    """Lets the word "embedded" mean the weights of this ``name`` that come with threedgen."""
    return AfterValidator(lambda weights: name if weights == "embedded" else weights)


BaseWeights = Annotated[str, embedded_as("toybox-base")]
MultiviewWeights = Annotated[str, embedded_as("toybox-prior")]
GuideViews = Annotated[
    bool,
    Field(
        description="guidance of samples is towards what views see of each other as well as towards the text: what is "
        "guided away from draws each view by itself (in the papers it sees the others too)"
    ),
]


class PriorConfig(Config):
    """A diffusion prior: which weights, and how they run.

    parts: folders of a diffusers folder that it needs.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS

    name: str = Field(description="which prior")
    weights: str = Field(min_length=1, description="which weights")
    tokenizer: str | None = Field(
        None,
        description="folder or hub id of the tokenizer, for checkpoints that hold none (the original .pt "
        "files); default: the one their text encoder was trained with, from the hub or its cache",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of the UNet; auto: bf16 on GPUs and on CPUs with bf16 instructions, else fp32; fp16 "
        "on a CPU is auto too",
    )
    attention: Literal["sdpa", "xformers"] = Field(
        "sdpa", description="who computes the UNet's attention: torch itself, or xformers where it is installed"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="pixels per side that the prior sees; default: what it was trained at",
    )

    @property
    def multiview(self) -> bool:
        """Does it look at several views together, and know their cameras?"""
        return False

    def check(self) -> None:
        from .weights.loading import check

        if self.attention == "xformers":
            require("xformers", "attention: xformers", "choose attention=sdpa")
        check(self.weights, self.tokenizer, self.parts)

    def vocabulary(self) -> Vocabulary | None:
        """The words that it knows, if these are all; None if it reads any, or its files are not here yet. Raises
        ConfigError."""
        from .weights.loading import local
        from .weights.vocabulary import read

        place = local(self.weights)
        return None if place is None or self.tokenizer is not None else read(place, self.subjects())

    def subjects(self) -> list[str]:
        """Words that stand for something which it was tuned to. Raises ConfigError."""
        return []

    def describe(self) -> list[str]:
        """Lines that say which files these are: key, place, size and SHA-256. Raises ConfigError.

        Released checkpoints that are only on the hub are not fetched, but named.
        """
        from .weights.loading import describe

        named = {"weights": describe(self.weights, self.parts)} | self.plugged()
        return [f"{key}: {found}" for key, found in named.items()]

    def identify(self) -> dict[str, Identity]:
        """The same by the keys that name them; what is only on the hub is fetched. Raises ConfigError."""
        from .weights.loading import identify

        return {"weights": identify(self.weights, self.parts)} | self.plugged()

    def plugged(self) -> dict[str, Identity]:
        """Those that are added to the weights. Raises ConfigError."""
        return {}


class DraftedConfig(PriorConfig):
    """A model in latent space, which may draw in two sizes."""

    draft: float | None = Field(
        None,
        gt=0,
        le=1,
        description="samples are drawn at half the size first, then enlarged and drawn again with so much of all "
        "noise, for weights that know both sizes; null: at once",
    )


class MVDreamConfig(DraftedConfig):
    """Several views of an object drawn together, each told its camera (MVDream)."""

    name: Literal["mvdream"] = Field("mvdream", description="multi-view diffusion (arXiv 2308.16512)")
    weights: MultiviewWeights = Field(
        "toybox-prior",
        min_length=1,
        description="toybox-prior (comes with threedgen; also 'embedded'), a diffusers-format folder, an "
        "id on the Hugging Face hub, or an original checkpoint (sd-v2.1-base-4view.pt, sd-v1.5-4view.pt: a "
        "path, or only the name)",
    )
    personalisation: str | None = Field(
        None,
        description="the file of an mvdreambooth run with these weights: its subject can then be asked for",
    )
    personalisation_strength: float = Field(
        1.0,
        ge=0,
        le=2,
        description="share of it that is added: less looks less like the subject, and obeys the prompt better",
    )

    @model_validator(mode="after")
    def _of_something(self) -> MVDreamConfig:
        if self.personalisation is None and self.personalisation_strength != 1:
            strength = f"personalisation_strength={self.personalisation_strength:g}"
            raise ValueError(f"{strength} has no effect without personalisation=FILE")
        return self

    @property
    def multiview(self) -> bool:
        return True

    def check(self) -> None:
        from .weights.loading import subject_card

        super().check()
        if self.personalisation is not None:
            subject_card(self.personalisation)

    def plugged(self) -> dict[str, Identity]:
        from .weights.loading import Identity

        file = self.personalisation
        return {} if file is None else {"personalisation": Identity.of(Path(file).expanduser())}

    def subjects(self) -> list[str]:
        from .weights.loading import subject_card

        return [] if self.personalisation is None else [subject_card(self.personalisation).get("identifier", "[v]")]


class StableDiffusionConfig(DraftedConfig):
    """A 2D diffusion prior in latent space: each picture by itself, without a camera."""

    renamed: ClassVar[dict[str, str | None]] = {"front": None}

    name: Literal["stable-diffusion"] = Field("stable-diffusion", description="2D diffusion (arXiv 2112.10752)")
    weights: BaseWeights = Field(
        "toybox-base",
        min_length=1,
        description="toybox-base (comes with threedgen; also 'embedded'), a diffusers-format folder, an id on the "
        "Hugging Face hub (stabilityai/stable-diffusion-2-1-base), or a single-file checkpoint",
    )


class MVDiffusionConfig(DraftedConfig):
    """A 2D model that draws the views of a scene together, by attention between pixels that correspond."""

    name: Literal["mvdiffusion"] = Field("mvdiffusion", description="correspondence-aware diffusion (arXiv 2307.01097)")
    weights: BaseWeights = Field(
        "stabilityai/stable-diffusion-2-base",
        min_length=1,
        description="the 2D model: toybox-base, a diffusers-format folder, an id on the Hugging Face hub, a single "
        "file; for released blocks the one that they were trained on, inpainting and depth models included",
    )
    blocks: str | None = Field(
        None,
        min_length=1,
        description=f"the attention between views: {choice('blocks', 'a released file')}, or what train-mvdiffusion "
        "leaves; null: each view by itself, the base",
    )
    neighbours: Literal["ring", "all"] = Field(
        "ring", description="which views of a panorama a view looks at: those beside it (released weights), or all"
    )
    k: int = Field(3, ge=1, le=9, description="places around a corresponding pixel that it looks at, k x k; odd")
    overlap: float = Field(
        0.3, ge=0, lt=1, description="posed views look at each other from this share of common pixels on"
    )
    hold: bool = Field(
        False,
        description="what is given of a panorama or of frames stays so in each step, instead of being drawn again with "
        "the rest (as the released weights do)",
    )
    guide_views: GuideViews = False

    @model_validator(mode="after")
    def _odd(self) -> MVDiffusionConfig:
        if self.k % 2 == 0:
            raise ValueError(f"k {self.k} should be odd; try {self.k + 1}")
        return self

    def check(self) -> None:
        from .weights import plugins

        super().check()
        plugins.check("blocks", self.blocks)

    def plugged(self) -> dict[str, Identity]:
        from .weights import plugins

        return plugins.identify("blocks", self.blocks)


class MVAdapterConfig(DraftedConfig):
    """A frozen 2D model that draws several views of an object by plug-in attention."""

    name: Literal["mvadapter"] = Field("mvadapter", description="multi-view adapter of a 2D model (arXiv 2412.03632)")
    weights: BaseWeights = Field(
        "stabilityai/stable-diffusion-2-1-base",
        min_length=1,
        description="the 2D model: toybox-base, a diffusers-format folder, an id on the Hugging Face hub, a single "
        "file; the one that the adapter was trained on, or any that was tuned from it",
    )
    adapter: str | None = Field(
        None,
        min_length=1,
        description=f"{choice('adapter', 'a released adapter')}, or one of your own, one safetensors; null: each view "
        "by itself, the 2D model",
    )
    layout: Layout | None = Field(
        None,
        description="which tokens of the views attend to each other: those in a row (views at one height), in rows and "
        "columns (six views around a mesh), or all; null: as the adapter says of itself, else row",
    )
    control: Control | None = Field(
        None,
        description="what it is told of the views: rays of the cameras, or the geometry of a mesh; null: as the "
        "adapter says of itself, else rays",
    )
    shift: float | None = Field(
        None, ge=1, le=1000, description="so many times less signal to noise than the 2D model; null: as trained, or 8"
    )
    shift_mode: Shift | None = Field(
        None, description="at all timesteps alike, or growing with them; null: as trained, or interpolated"
    )
    timestep: Timestep | None = Field(
        None, description="told to the 2D model: the same, or matched to its noise; null: as trained, or the same"
    )
    guess: str | None = Field(
        None,
        min_length=1,
        description="a multi-view prior with the same text encoder and autoencoder, as toybox-prior is of toybox-base: "
        "samples from words begin with what its coarse predictor expects; null: as noise",
    )
    image: str | None = Field(
        None,
        min_length=1,
        description="picture of the thing that is judged, cut out (PNG with transparency) or before one colour: for "
        "text to 3D; tasks that draw views have image= for it",
    )
    image_scale: float | None = Field(
        None, ge=0, description="guidance towards that picture, apart from that of the text; null: both as one"
    )
    mv_scale: float = Field(1.0, ge=0, le=10, description="times what attention between the views adds")
    ref_scale: float = Field(1.0, ge=0, le=10, description="times what attention to the given picture adds")
    guide_views: GuideViews = False

    @model_validator(mode="after")
    def _seen(self) -> MVAdapterConfig:
        if self.image is not None and self.adapter is None:
            raise ValueError("the 2D model alone cannot look at image; give adapter=FILE of one that was trained to")
        if self.image is None and self.image_scale is not None:
            raise ValueError(f"image_scale {self.image_scale:g} has no effect without image=FILE")
        return self

    @property
    def multiview(self) -> bool:
        return self.adapter is not None  # else it is the 2D model

    def check(self) -> None:
        from threedgen.geometry.foreground import read_cut_out

        from .weights import loading, plugins

        super().check()
        plugins.check("adapter", self.adapter)
        if self.guess is not None:
            with called("guess"):
                loading.check(self.guess, None, (COARSE,))
        if self.image is not None:
            read_cut_out(self.image)

    def plugged(self) -> dict[str, Identity]:
        from .weights import loading, plugins

        guess = {} if self.guess is None else {"guess": loading.identify(self.guess, (COARSE,))}
        return plugins.identify("adapter", self.adapter) | guess


class DeepFloydConfig(PriorConfig):
    """A 2D diffusion prior on pixels: DeepFloyd IF's first stage, which sees pictures of 64 pixels."""

    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")

    name: Literal["deepfloyd"] = Field("deepfloyd", description="2D diffusion on pixels (DeepFloyd IF, first stage)")
    weights: str = Field(
        "DeepFloyd/IF-I-XL-v1.0",
        min_length=1,
        description="a diffusers-format folder with unet and T5 text encoder, or an id on the Hugging Face hub",
    )
    tokenizer: str | None = Field(None, description="a folder with T5's tokenizer; default: that of the weights")

    def check(self) -> None:
        from .weights.loading import t5_tokenizer

        super().check()
        if self.tokenizer is not None and not Path(self.tokenizer).expanduser().is_dir():
            raise ConfigError(f"there is no folder {self.tokenizer!r}", "tokenizer")
        t5_tokenizer(Path(self.tokenizer or self.weights).expanduser())
