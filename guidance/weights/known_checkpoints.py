"""The networks of the checkpoints that MVDream's authors released, as configs: known before the files are here."""

from __future__ import annotations

from typing import Any

LATENT_SIZE = 32
"""Latents per side: pictures of 256 pixels, 8 per latent."""

_UNET: dict[str, Any] = {
    "sample_size": LATENT_SIZE,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 16,
}
_TEXT: dict[str, Any] = {"vocab_size": 49408, "max_position_embeddings": 77}

UNETS: dict[str, dict[str, Any]] = {
    "sd-v2.1-base-4view.pt": _UNET
    | {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True, "cross_attention_dim": 1024},
    "sd-v1.5-4view.pt": _UNET | {"attention_head_dim": 8, "cross_attention_dim": 768},
}
"""For UNet2DConditionModel, by the name of the file."""
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""For AutoencoderKL; both files hold the same one."""
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "sd-v2.1-base-4view.pt": _TEXT
    | {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096},
    "sd-v1.5-4view.pt": _TEXT
    | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
"""For CLIPTextConfig: as many layers as are asked."""
