"""Learning what captions mean: a text encoder is matched with latents (CLIP, Radford et al. 2021).

Stable Diffusion gets its text encoder from CLIP; this is the same in small. Learnt through the UNet alone, words are a
faint signal behind the noise, and nouns come many times later than colours.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.data.bank import LatentBank
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.system import System

from .options import NetworkConfig, WordsConfig


def text_encoder(options: NetworkConfig, tokenizer: Any) -> Any:
    """A fresh CLIPTextModel. Its tables are small, so that a caption's words are learnt and not fought."""
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
    """(B, C, h, w) latents -> (B, D): the half of CLIP that sees. Its ``body`` (B, 256, h/4, w/4) knows the toybox."""
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


class WordsSystem(System):
    """Matches a text encoder, which is trained in place, with latents."""

    stage = "text encoder"

    def __init__(self, options: WordsConfig, seed: int, text_encoder: Any, tokenizer: Any, bank: LatentBank) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options = options
        self.text_encoder = text_encoder.requires_grad_(True).train()
        width = int(text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = latent_tower(int(bank.vae.config["latent_channels"]), width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.bank = tokenizer, int(text_encoder.config.max_position_embeddings), bank

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        known = min(o.pictures, bank.count, o.batch + step * o.fresh)
        chosen = self.numpy_rng(step, "captions").choice(known, min(o.batch, known), replace=False)
        z, captions = bank.latents(chosen)[:, 0].to(self.device), bank.captions(chosen)
        ids = token_ids(self.tokenizer, captions, self.max_tokens).to(self.device)
        with autocast_bf16(self.device, o.bf16):
            pictures = self.tower(z).float()
            texts = self.text_encoder(ids).pooler_output
        texts = F.normalize(self.project(texts.float()), dim=-1)
        alike = F.normalize(pictures, dim=-1) @ texts.T * self.log_scale.clamp(max=4.6).exp()
        same = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((alike.detach().argmax(1) == same).float().mean())}
        return (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2
