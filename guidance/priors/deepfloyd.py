"""DeepFloyd IF's first stage as a prior: diffusion on pictures of 64 pixels, without a VAE, with a T5 text encoder.

It stands for Imagen, with which DreamFusion and Magic3D were made. The UNet is diffusers' own, under its own names; it
gives a variance beside the noise, which is left out here. The text encoder has more parameters than the UNet and is
needed once, so it is loaded when a prompt is encoded and forgotten afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.guidance.options import DeepFloydConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, files, loading, tokens
from threedgen.run.dtypes import compute_dtype

CHANNELS = 3


def build(options: DeepFloydConfig, device: torch.device | str = "cpu") -> DeepFloyd:
    """The prior that a config describes. Raises ConfigError."""
    o = options
    if o.attention != "sdpa":
        raise ConfigError("these weights compute it with torch itself; choose attention=sdpa", "attention")
    path = loading.locate(o.weights, o.parts)
    if not path.is_dir():
        raise ConfigError(f"{path} is a single file; these weights come as a folder in diffusers format", "weights")
    loading.check_folder(path, o.parts)
    files.check_sums(path)
    place = path if o.tokenizer is None else Path(o.tokenizer).expanduser()
    words = tokens.read_tokenizer(loading.t5_tokenizer(place))
    parts = read_unet(path), path / "text_encoder", words, components.read_schedule(path)
    return DeepFloyd(*parts, o.image_size, o.dtype, device)


def read_unet(path: Path) -> UNet2DConditionModel:
    """The UNet of a diffusers folder, in float32. Raises ConfigError if it is not one of a first stage on pixels."""
    config, tensors = components.read_part(path / "unet")
    components.expect(config, *components.NETWORKS["unet"].named, path / "unet")
    if config.get("in_channels") != CHANNELS or config.get("class_embed_type") is not None:
        raise ConfigError(
            f"{path} is no first stage on pixels: its UNet takes {config.get('in_channels')} channels, not "
            f"{CHANNELS} alone; Stable Diffusion's weights go with prior.name=stable-diffusion",
            "weights",
        )
    return components.make("unet", config, tensors)


def read_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """T5's encoder, frozen. Raises ConfigError if it is not whole."""
    from transformers import T5EncoderModel
    from transformers.utils import logging as their_logging

    components.expect(files.read_json(folder / "config.json"), "model_type", "t5", folder)
    noise = their_logging.get_verbosity()
    their_logging.set_verbosity_error()  # what it would print is said in one sentence below
    try:
        found: Any = T5EncoderModel.from_pretrained(
            folder, local_files_only=True, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the files come from outside: any kind
        reason = str(error).split("\n")[0][:120]
        raise ConfigError(f"{folder} cannot be read ({type(error).__name__}: {reason})", "weights") from None
    finally:
        their_logging.set_verbosity(noise)
    model, told = found
    if missing := sorted(told["missing_keys"]):
        raise ConfigError(f"{folder} lacks {len(missing)} tensors of a T5 encoder (first {missing[0]!r})", "weights")
    return model.eval().requires_grad_(False)


class DeepFloyd(Prior):
    """A prior on pixels: its "latents" are the pictures themselves, (B,3,h,w) in [-1,1]; cameras mean nothing to it.

    The UNet is frozen and kept in the number format in which it computes, ``dtype``.
    """

    unet: UNet2DConditionModel
    max_tokens = 77  # as in diffusers' own pipeline for these weights

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: Path,
        tokenizer: Any,
        schedule: Schedule,
        image_size: int | None = None,
        dtype: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        """``text_encoder``: the folder that it is loaded from when it is needed."""
        self.unet, self.text_folder, self.tokenizer, self.schedule = unet, text_encoder, tokenizer, schedule
        self.image_size = image_size or int(unet.config["sample_size"])
        self.factor = 1
        if self.image_size % (unit := 2 ** (len(unet.config["block_out_channels"]) - 1)):
            raise ConfigError(f"{self.image_size} is not a multiple of {unit}", "image_size")
        self.precision = dtype
        self.to(device)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return CHANNELS, self.image_size, self.image_size

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        self.dtype = compute_dtype(self.precision, self.device)
        network: Any = self.unet
        network.to(self.device, self.dtype)
        return self

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.max_tokens, self.unet.config["encoder_hid_dim"] or self.unet.config["cross_attention_dim"]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """n prompts -> (n,77,D) float32: T5's last hidden state; in small letters, as the weights were trained."""
        prompts = [prompt.lower().strip() for prompt in prompts]
        self.note_cuts(prompts)
        # never float16, in which T5's activations overflow
        dtype = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        encoder = read_text_encoder(self.text_folder, dtype).to(self.device)
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        given = self.tokenizer(prompts, **options).to(self.device)
        text = encoder(given.input_ids, attention_mask=given.attention_mask)[0].float()
        if text.shape[-1] != (width := self.text_shape[1]):
            raise ConfigError(f"the parts of the prior do not fit: T5 gives {text.shape[-1]} features, not {width}")
        return text

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """As ``resized``; nothing is random."""
        return self.resized(rgb)

    def decode_latents(self, z: Tensor) -> Tensor:
        """(B,3,s,s) in [-1,1] -> (B,s,s,3) in [0,1]."""
        return (z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        """The noise in ``x`` (B,3,s,s), less the variance; camera and views are left out."""
        with self.autocast():
            out = self.unet(x.to(self.dtype), t, text.to(self.dtype), return_dict=False)[0]
        return out[:, : x.shape[1]].float()
