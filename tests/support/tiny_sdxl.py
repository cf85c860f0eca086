"""A small SDXL, as diffusers writes it, with random weights and the real structure."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.support.tiny_prior import TEXT_WIDTH, letter_tokenizer, tiny_text_encoder, tiny_vae

SECOND_WIDTH, SUMMARY, TIME = 16, 20, 8
WORDS = 82  # of the letters' tokenizer


def tiny_sdxl(folder: Path, released: bool = False) -> StableDiffusionXLPipeline:
    """Write a pipeline to `folder` and return it: two pixels per latent, 8 latents per side.

    `released`: heads are 64 wide and activations are SDXL's, as a single file implies.
    """
    torch.manual_seed(1)
    widths, heads = ((64, 64), 1) if released else ((TEXT_WIDTH, SECOND_WIDTH), 2)
    config: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (64, 64, 128) if released else (32, 32, 64), "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2), "attention_head_dim": (1, 1, 2) if released else (2, 2, 4),
        "cross_attention_dim": sum(widths), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME, "projection_class_embeddings_input_dim": SUMMARY + 6 * TIME,
    }  # fmt: skip
    unet = UNet2DConditionModel(**config)
    small: dict[str, Any] = {"intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": heads}
    small |= {
        "hidden_size": widths[1],
        "hidden_act": "gelu" if released else "quick_gelu",
        "max_position_embeddings": 16,
        "projection_dim": SUMMARY,
    }
    ends = {"bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, "pad_token_id": 0}
    second = CLIPTextModelWithProjection(CLIPTextConfig(vocab_size=WORDS, **small, **ends))
    tokenizer, other = letter_tokenizer(), letter_tokenizer()
    other.pad_token = "!"
    pipe = StableDiffusionXLPipeline(
        vae=tiny_vae(force_upcast=False),
        text_encoder=tiny_text_encoder(WORDS, hidden_size=widths[0], num_attention_heads=heads, **ends),
        text_encoder_2=second.eval(), tokenizer=tokenizer, tokenizer_2=other, unet=unet.eval(),
        scheduler=DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear"), add_watermarker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return pipe
