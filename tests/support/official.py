"""Checkpoints in the exact form of the released MVDream files, but for the widths."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from tests.support.ldm_names import to_ldm, unet_prefixes
from tests.support.tiny_pipelines import single_file
from tests.support.tiny_prior import letter_tokenizer, tiny_text_encoder, tiny_unet, tiny_vae

Kind = Literal["sd21", "sd15"]
NAMES: dict[Kind, str] = {"sd21": "sd-v2.1-base-4view.pt", "sd15": "sd-v1.5-4view.pt"}

TOPOLOGY: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
}
RELEASED = {"block_out_channels": (320, 640, 1280, 1280)}
WIDTHS: dict[Kind, dict[str, Any]] = {
    "sd21": RELEASED
    | {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "cross_attention_dim": 1024},
    "sd15": RELEASED | {"attention_head_dim": 8, "use_linear_projection": False, "cross_attention_dim": 768},
}
TINY_WIDTHS: dict[Kind, dict[str, Any]] = {
    "sd21": {
        "block_out_channels": (64, 128, 192, 192), "attention_head_dim": (1, 2, 3, 3), "use_linear_projection": True,
        "cross_attention_dim": 64,
    },
    "sd15": WIDTHS["sd15"] | {"block_out_channels": (32, 64, 96, 96), "cross_attention_dim": 64},
}  # fmt: skip
BUFFERS = (
    "betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod sqrt_one_minus_alphas_cumprod "
    "log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod sqrt_recipm1_alphas_cumprod posterior_variance "
    "posterior_log_variance_clipped posterior_mean_coef1 posterior_mean_coef2"
)
"""What ldm registers beside the networks; no reader needs the values."""


def ldm_unet(kind: Kind, widths: dict[Kind, dict[str, Any]]) -> dict[str, Tensor]:
    """Return a UNet of this kind under the names of the released files."""
    unet = tiny_unet(**TOPOLOGY, **widths[kind])
    return to_ldm(unet.state_dict(), unet_prefixes(unet.config))


def official_checkpoint(folder: Path, kind: Kind) -> Path:
    """Write the file under its own name, and CLIP's tokenizer to `folder`/clip, as on the hub."""
    vae = tiny_vae(
        block_out_channels=(32,) * 4,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    act = "gelu" if kind == "sd21" else "quick_gelu"
    encoder = tiny_text_encoder(100, hidden_size=64, num_attention_heads=1, hidden_act=act)
    unet = tiny_unet(**TOPOLOGY, **TINY_WIDTHS[kind])
    tensors = single_file(kind, SimpleNamespace(unet=unet, vae=vae, text_encoder=encoder))
    for name, tensor in tensors.items():  # attention weights are the 1 x 1 convolutions of ldm
        if ".attn_1." in name and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None]
    tensors |= dict.fromkeys(BUFFERS.split(), torch.zeros(1000))
    if kind == "sd15":
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / NAMES[kind])
    letter_tokenizer().save_pretrained(folder / "clip")
    return folder / NAMES[kind]
