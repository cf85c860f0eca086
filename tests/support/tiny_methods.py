"""Checkpoints of Stable Diffusion and DeepFloyd IF as their authors' pipelines write them, with narrow networks."""

import functools
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, IFPipeline, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.support.kept_folder import kept_folder
from tests.support.tiny_pipelines import pipeline
from tests.support.tiny_prior import NO_CAMERA, TEXT_WIDTH, tiny_text_encoder, tiny_unet

T5_WIDTH = 32


def sd_pipeline(**unet: Any) -> StableDiffusionPipeline:
    """SD 2-base's parts: no camera branch, PNDM with the scaled linear schedule, CLIP's byte pairs."""
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    network = tiny_unet(**NO_CAMERA, **unet)
    network.set_attn_processor(AttnProcessor2_0())
    scheduler = PNDMScheduler(**schedule, skip_prk_steps=True, set_alpha_to_one=False)
    return pipeline(network, tiny_text_encoder(100), scheduler)


def if_unet(**config: Any) -> UNet2DConditionModel:
    """IF's kind of UNet: keys and values for the text beside self-attention, six channels out, pooled text."""
    torch.manual_seed(5)
    default = {
        "sample_size": 16, "in_channels": 3, "out_channels": 6, "block_out_channels": (32, 64),
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "layers_per_block": 1, "cross_attention_dim": TEXT_WIDTH, "encoder_hid_dim": T5_WIDTH,
        "encoder_hid_dim_type": "text_proj", "attention_head_dim": 8, "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2, "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu",
        "time_embedding_act_fn": "gelu", "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**(default | config)).eval()


def t5_tokenizer() -> T5Tokenizer:
    """Pieces are letters, with a word's first one marked."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = "abcdefghijklmnopqrstuvwxyz,."
    pieces = [(mark + letter, -3.0) for letter in letters for mark in ("", "▁")]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=77)


def if_pipeline(**unet: Any) -> IFPipeline:
    torch.manual_seed(6)
    small = {"vocab_size": 80, "d_model": T5_WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    encoder = T5EncoderModel(T5Config(**small, feed_forward_proj="gated-gelu")).eval()
    noise = {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02}
    scheduler = DDPMScheduler(**noise, variance_type="learned_range", thresholding=True)
    parts = {"tokenizer": t5_tokenizer(), "text_encoder": encoder, "unet": if_unet(**unet), "scheduler": scheduler}
    none = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    return IFPipeline(**parts, **none, requires_safety_checker=False)


@functools.cache
def folders() -> Path:
    """A place with `sd` and `if`, for all tests of the process."""
    place = kept_folder()
    sd_pipeline().save_pretrained(place / "sd")
    if_pipeline().save_pretrained(place / "if")
    return place
