"""Contrastive training of the toybox's text encoder, as in CLIP (Radford et al. 2021) with latents as the images.

If the text encoder were trained by the UNet's loss alone, it would learn nouns many times more slowly than colours.
"""

from collections import OrderedDict

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from threedgen.data.bank import LatentBank
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.system import System

from .options import NetworkConfig, WordsConfig

WEIGHT_DECAY = 0.05


def build(options: NetworkConfig, tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    """Build an untrained text encoder for the vocabulary of `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.text_width,
            intermediate_size=4 * options.text_width,
            num_hidden_layers=options.text_layers,
            num_attention_heads=options.text_heads,
            max_position_embeddings=options.max_tokens,
            hidden_act="gelu",
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def latent_tower(channels: int, width: int) -> nn.Sequential:
    """Build the image encoder, from latents (B, C, h, w) to embeddings (B, D), with C = `channels` and D = `width`.

    The features of its submodule `body` are (B, 256, h / 4, w / 4).
    """
    body = nn.Sequential(
        nn.Conv2d(channels, 64, 3, 1, 1),
        nn.SiLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(128, 192, 3, 2, 1),
        nn.GroupNorm(16, 192),
        nn.SiLU(),
        nn.Conv2d(192, 256, 3, 1, 1),
    )
    head = nn.Sequential(nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(1024, width))
    return nn.Sequential(OrderedDict(body=body, head=head))


class TextEncoderSystem(System):
    """LightningModule that trains a text encoder in place, to match the latents of `bank` with their captions."""

    stage = "text encoder"

    def __init__(
        self,
        options: WordsConfig,
        seed: int,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
        bank: LatentBank,
        bf16: bool,
    ) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options, self.bf16 = options, bf16
        self.text_encoder = text_encoder.requires_grad_(True).train()
        width = int(text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = latent_tower(bank.latent_shape[1], width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.bank = tokenizer, int(text_encoder.config.max_position_embeddings), bank

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        available = min(o.pictures, bank.count, o.batch + step * o.fresh)
        chosen = self.numpy_rng(step, "captions").choice(available, min(o.batch, available), replace=False)
        z, captions = bank.latents(chosen)[:, 0].to(self.device), bank.captions(chosen)
        ids = token_ids(self.tokenizer, captions, self.max_tokens).to(self.device)
        with autocast_bf16(self.device, self.bf16):
            images = self.tower(z).float()
            texts = self.text_encoder(ids).pooler_output
        texts = F.normalize(self.project(texts.float()), dim=-1)
        logits = F.normalize(images, dim=-1) @ texts.T * self.log_scale.clamp(max=4.6).exp()
        pairs = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((logits.detach().argmax(1) == pairs).float().mean())}
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.adamw(self.parameters(), self.options.learning_rate, weight_decay=WEIGHT_DECAY)
