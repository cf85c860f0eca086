"""Options that several diffusion priors have in common, and base classes of their config models; imports no torch."""

from contextlib import suppress
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from threedgen.config import Config, ConfigError
from threedgen.config.errors import key_prefix
from threedgen.config.optional import require
from threedgen.guidance.weights import hub, loading, other_models, tokens
from threedgen.guidance.weights.addition_files import check_weight_file, embedding_word, weight_file
from threedgen.guidance.weights.loading import PARTS, Identity
from threedgen.guidance.weights.tokens import Vocabulary, read_vocabulary
from threedgen.run.folder import user_path

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

    def check_sampling(self) -> None:
        """Raise ConfigError if the prior cannot sample with its weights, only be trained from them."""

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
                check_weight_file(name)

    def added_files(self) -> dict[str, Identity]:
        return {key: Identity.of(weight_file(name)) for key, name in self._weight_files()}

    def subjects(self) -> list[str]:
        return [entry.token or embedding_word(weight_file(entry.file)) for entry in self.embeddings]

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
            other_models.check_image(user_path(self.image, "image"), self.matte)
        super().check()
