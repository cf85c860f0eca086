"""Networks of a prior on torch's meta device, with shapes but no data, for estimates of memory."""

from typing import Any, NamedTuple

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import nn

from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.guidance.attention.image_tokens import IMAGE_TOKENS

from . import components, ldm, loading, single_file
from .files import Json
from .loading import COARSE, IMAGE_ENCODER

META_PARTS = "unet", "vae", IMAGE_ENCODER
"""Networks on the meta device; of text encoders and coarse predictor, only parameters are counted."""
_UNET: Json = {
    "sample_size": ldm.LATENT_SIZE[True],
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 16,
}
_SD21 = _UNET | {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "cross_attention_dim": 1024}
_IMAGEDREAM = _SD21 | {IMAGE_TOKENS: {"image_width": 1280, "tokens": 16, "heads": 12}}
RELEASED_UNETS: dict[str, Json] = {
    "sd-v2.1-base-4view.pt": _SD21,
    "sd-v1.5-4view.pt": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
    "sd-v2.1-base-4view-ipmv.pt": _IMAGEDREAM,
    "sd-v2.1-base-4view-ipmv-local.pt": _IMAGEDREAM,
}
"""Arguments of UNet2DConditionModel for original MVDream and ImageDream checkpoints, known before their download."""
RELEASED_IMAGE_ENCODER: Json = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
}
"""Arguments of CLIPVisionConfig for the image encoder in ImageDream's files, OpenCLIP's ViT-H."""
RELEASED_VAE: Json = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""Arguments of AutoencoderKL for all original checkpoints."""
RELEASED_TEXT = dict.fromkeys(RELEASED_UNETS, 340_387_840) | {"sd-v1.5-4view.pt": 123_060_480}
"""Parameter counts of the text encoders of original checkpoints: OpenCLIP ViT-H without its last layer, CLIP ViT-L."""


class MetaNetworks(NamedTuple):
    """UNet and VAE of a prior on the meta device, and parameter counts.

    Attributes:
        vae: VAE; None for a prior on pixels.
        parameters: number of parameters of all networks, including the text encoder.
        kept: number of parameters that stay in memory during a run: all but those of text encoders and VAE decoder.
        image_encoder: CLIP's image encoder of ImageDream; None for other priors.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL | None
    parameters: int
    kept: int
    image_encoder: nn.Module | None = None

    @property
    def factor(self) -> int:
        """Image pixels per latent pixel along each axis."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config["block_out_channels"]) - 1)


def meta_networks(weights: str, required_parts: tuple[str, ...] = loading.PARTS) -> MetaNetworks:
    """Build UNet and VAE of `weights` (name, path or hub id) on the meta device, and count parameters.

    `required_parts` are the required sub-folders of a diffusers folder. Weights on the hub are downloaded if needed,
    except original MVDream and ImageDream checkpoints, whose configs and parameter counts this module contains. Raises
    ConfigError if weights are missing or damaged.
    """
    if loading.is_missing_original(weights):  # an original checkpoint, not downloaded for this
        configs = {"unet": RELEASED_UNETS[weights], "vae": RELEASED_VAE}
        if IMAGE_TOKENS in configs["unet"]:
            configs[IMAGE_ENCODER] = RELEASED_IMAGE_ENCODER
        counts = {"text_encoder": RELEASED_TEXT[weights]}
    else:
        path = loading.locate(weights, required_parts)
        if path.is_dir():
            parts = loading.network_folders(path, required_parts)
            # not the class of the text encoder, which may be T5
            converted = {part: components.read_network(path / part, part in META_PARTS) for part in parts}
        else:
            converted = single_file.convert_file(path).networks
        configs = {part: network.config for part, network in converted.items()}
        counts = {
            part: sum(tensor.numel() for tensor in network.tensors.values())
            for part, network in converted.items()
            if part not in META_PARTS
        }
    networks: dict[str, Any] = {}
    try:
        with torch.device("meta"):
            networks |= {part: components.NETWORKS[part].build(configs[part]) for part in META_PARTS if part in configs}
    except Exception as error:  # any kind, for a config from outside
        problem = f"its config describes no known network ({type(error).__name__})"
        raise ConfigError(f"{short(weights, 300)}: {problem}") from None
    unet, vae, image = networks["unet"], networks.get("vae"), networks.get(IMAGE_ENCODER)
    kept = _parameters(unet, image, vae and vae.encoder, vae and vae.quant_conv) + counts.get(COARSE, 0)
    return MetaNetworks(unet, vae, _parameters(unet, vae, image) + sum(counts.values()), kept, image)


def _parameters(*networks: nn.Module | None) -> int:
    return sum(tensor.numel() for network in networks if network is not None for tensor in network.parameters())
