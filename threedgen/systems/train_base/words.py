"""Learning what captions mean: the text encoder is matched with latents (CLIP, Radford et al. 2021).

Stable Diffusion gets its text encoder from CLIP; this is the same in small.  Learnt through the UNet alone, words are a
faint signal behind the noise, and nouns come many times later than colours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.data.bank import LatentBank
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.train.system import System

from .options import WordsConfig


class LatentTower(nn.Module):
    """(B, C, h, w) latents -> (B, D): the half of CLIP that sees. ``features`` (B, 256, h/4, w/4) know the toybox."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 64, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(128, 192, 3, 2, 1),
            nn.GroupNorm(16, 192),
            nn.SiLU(),
            nn.Conv2d(192, 256, 3, 1, 1),
        )
        self.head = nn.Sequential(nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(1024, width))

    def features(self, z: Tensor) -> Tensor:
        made: Tensor = self.body(z)
        return made

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = self.head(self.features(z))
        return made


class WordsSystem(System):
    """Text encoder and its counterpart for latents.  ``text_encoder`` is trained in place."""

    stage = "text encoder"

    def __init__(
        self, options: WordsConfig, seed: int, max_steps: int, text_encoder: Any, tokenizer: Any, bank: LatentBank
    ) -> None:
        super().__init__(options, seed, max_steps)
        self.options = options
        self.text_encoder = text_encoder.requires_grad_(True).train()
        width = int(text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = LatentTower(int(bank.vae.config["latent_channels"]), width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.bank = tokenizer, int(text_encoder.config.max_position_embeddings), bank

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        known = min(o.pictures, bank.count, o.batch + step * o.fresh)
        chosen = self.numpy_rng(step, "captions").choice(known, min(o.batch, known), replace=False)
        z, captions = bank.latents(chosen)[:, 0].to(self.device), bank.captions(chosen)
        ids = token_ids(self.tokenizer, captions, self.max_tokens).to(self.device)
        with mixed(self.device, o.bf16):
            seen = self.tower(z).float()
            read = self.text_encoder(ids).pooler_output
        read = F.normalize(self.project(read.float()), dim=-1)
        alike = F.normalize(seen, dim=-1) @ read.T * self.log_scale.clamp(max=4.6).exp()
        same = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((alike.detach().argmax(1) == same).float().mean())}
        return (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.parameters(), o.learning_rate, weight_decay=o.weight_decay)
