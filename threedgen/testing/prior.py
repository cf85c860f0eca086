"""Multi-view prior with random weights and few parameters. A training step takes milliseconds on a CPU."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from threedgen.guidance.attention.joined import multiview_unet
from threedgen.guidance.priors.mvdream import MVDream

WORDS = "a the red blue green dog cat car house hat with wearing on of and 3d asset".split()
TEXT_WIDTH = 24


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    """Return a UNet for 8 x 8 latents: two levels, attention on the finer one. `config` overrides config values."""
    torch.manual_seed(1)
    default = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
    }
    return multiview_unet(**(default | config)).eval()


def tiny_vae(**config: Any) -> AutoencoderKL:
    """Return a VAE with random weights. Its latents have half the height and width of the images."""
    torch.manual_seed(2)
    default = {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "sample_size": 16,
    }
    return AutoencoderKL(**(default | config)).eval()


def tiny_text_encoder(vocab: int = 40, **config: Any) -> CLIPTextModel:
    """Return a CLIP text encoder of two layers with random weights, for `vocab` tokens."""
    torch.manual_seed(3)
    default = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocab, **(default | config))).eval()


def word_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a fixed vocabulary of whole words, of the same kind as that of the embedded prior."""
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    vocab = {word: i for i, word in enumerate(special + (words or WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)


def tiny_prior(**unet: Any) -> MVDream:
    """Return an MVDream prior with random weights for 16 x 16 images. `unet` overrides config values of its UNet."""
    return MVDream(tiny_unet(**unet), tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32")
