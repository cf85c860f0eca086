"""DeepFloyd IF as a prior: text-to-image diffusion on 64 x 64 pixels, with T5 as text encoder, without a VAE.

DeepFloyd IF is a cascade. The prior is its first stage; the super-resolution models that follow are not used.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from threedgen.config import ConfigError
from threedgen.config.errors import one_line, short
from threedgen.guidance.cuda_graph import GraphedCalls
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.options import DeepFloydConfig
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, files, loading
from threedgen.guidance.weights.tokens import read_tokenizer
from threedgen.run.dtypes import compute_dtype
from threedgen.run.memory import GPUS

CHANNELS = 3


def build(options: DeepFloydConfig, device: torch.device | str = "cpu") -> "DeepFloyd":
    """Build the prior from its options, on a device. Raises ConfigError if its files are missing or damaged."""
    o = options
    path = loading.locate(o.weights, o.parts)
    if not path.is_dir():
        raise ConfigError(f"{path} is a single file; these weights come as a folder in diffusers format", "weights")
    loading.check_folder(path, o.parts)
    files.check_sums(path)
    place = path if o.tokenizer is None else Path(o.tokenizer).expanduser()
    words = read_tokenizer(loading.t5_tokenizer(place))
    parts = path / "unet", path / "text_encoder", words, components.read_schedule(path)
    prior = DeepFloyd(*parts, o.image_size, o.dtype, device)
    prior.cuda_graph = o.cuda_graph
    return prior


def read_config(folder: Path) -> files.Json:
    """Read the config of the UNet in `folder`. Raises ConfigError unless it denoises RGB pixels."""
    config = files.read_json(folder / "config.json")
    components.expect(config, *components.NETWORKS["unet"].class_entry, folder)
    if config.get("in_channels") != CHANNELS or config.get("class_embed_type") is not None:
        found = config.get("in_channels")
        problem = f"{folder.parent} is no first stage on pixels: {found} input channels, not {CHANNELS}"
        raise ConfigError(f"{problem}; try prior.name=stable-diffusion", "weights")
    return config


def read_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """Load the frozen T5 encoder in `folder` on the CPU, in `dtype`. Raises ConfigError if files are damaged."""
    from transformers import T5EncoderModel

    components.expect(files.read_json(folder / "config.json"), "model_type", "t5", folder)
    variant = "fp16" if ".fp16" in loading.tensor_files(folder)[0].name else None
    try:
        found: Any = T5EncoderModel.from_pretrained(
            folder, local_files_only=True, dtype=dtype, variant=variant, output_loading_info=True
        )
    except Exception as error:  # any kind, for files from outside
        raise ConfigError(f"{folder} cannot be read: {short(one_line(error), 120)}", "weights") from None
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(f"{folder} lacks {len(missing)} tensors of a T5 encoder (first {missing[0]!r})", "weights")
    return model.eval().requires_grad_(False)


class DeepFloyd(Prior):
    """Text-to-image prior on pixels, without cameras. Its "latents" are images (B, 3, h, w) in [-1, 1].

    The UNet is frozen, and its weights are cast to `dtype`. The UNet is loaded at its first use, and the larger T5
    encoder only while prompts are encoded, so only one of the two is in memory if prompts are encoded first.
    """

    max_tokens = 77  # as in diffusers' own pipeline for these weights

    def __init__(
        self,
        unet: Path,
        text_encoder: Path,
        tokenizer: PreTrainedTokenizerBase,
        schedule: Schedule,
        image_size: int | None = None,
        dtype: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the prior from its networks. Raises ConfigError if the image size does not fit the UNet.

        Args:
            unet: folder of the UNet, which is loaded at its first use.
            text_encoder: folder of T5's weights, which are loaded only to encode a prompt.
            image_size: pixels per side; None: the size that the UNet was trained on.
            dtype: precision of the networks, "fp32", "bf16", "fp16" or "auto" (bf16 if the device supports it, else
                fp32).
        """
        self.unet_folder, self.text_folder, self.tokenizer, self.schedule = unet, text_encoder, tokenizer, schedule
        self._unet: torch.nn.Module | None = None
        self.unet_config = read_config(unet)
        self.image_size = image_size or int(self.unet_config["sample_size"])
        self.factor = 1
        if self.image_size % (unit := 2 ** (len(self.unet_config["block_out_channels"]) - 1)):
            raise ConfigError(f"{self.image_size} is not a multiple of {unit}", "image_size")
        self.precision = dtype
        self.to(device)

    @property
    def unet(self) -> torch.nn.Module:
        if self._unet is None:
            unet = components.build_network("unet", *components.read_network(self.unet_folder), self.dtype)
            self._unet = torch.nn.Module.to(unet, self.device, self.dtype)
        return self._unet

    @unet.setter
    def unet(self, network: torch.nn.Module) -> None:
        self._unet = network

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return {"unet": self.unet}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return CHANNELS, self.image_size, self.image_size

    def to(self, device: torch.device | str) -> Self:
        if self.graph is not None:
            self.graph.clear()
        self.device = torch.device(device)
        self.schedule = self.schedule.to(self.device)
        self.dtype = compute_dtype(self.precision, self.device)
        if self._unet is not None:
            torch.nn.Module.to(self._unet, self.device, self.dtype)
        self.half_weights = self.device.type in GPUS
        return self

    @property
    def text_shape(self) -> tuple[int, int]:
        return self.max_tokens, self.unet_config.get("encoder_hid_dim") or self.unet_config["cross_attention_dim"]

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Return T5's last hidden states of n prompts, (n, 77, D) float32; prompts are lower-cased, as in training."""
        prompts = [prompt.lower().strip() for prompt in prompts]
        self.note_cuts(prompts)
        # never float16, in which T5's activations overflow
        dtype = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        encoder = read_text_encoder(self.text_folder, dtype).to(self.device)
        options = {"padding": "max_length", "truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        tokens = self.tokenizer(prompts, **options).to(self.device)
        text = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].float()
        if text.shape[-1] != (width := self.text_shape[1]):
            raise ConfigError(f"the parts of the prior do not fit: T5 gives {text.shape[-1]} features, not {width}")
        return text

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.to_network_images(rgb)

    def decode_latents(self, z: Tensor) -> Tensor:
        return (z / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def cast_networks(self, lora: bool = False) -> None:
        self.unet.requires_grad_(False)  # also loads it
        self.graph = GraphedCalls() if self.half_weights and self.cuda_graph and not lora else None

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        inputs = x.to(self.dtype), t, text.to(self.dtype)
        with self.autocast():
            return self.replayed(self._network, *inputs)

    def _network(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, t, text, return_dict=False)[0][:, : x.shape[1]].float()  # without the predicted variance
