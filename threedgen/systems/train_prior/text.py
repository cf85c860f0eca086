"""Learning what captions mean: the text encoder of a prior is matched with latents (CLIP, Radford et al. 2021).

Stable Diffusion gets its text encoder from CLIP; this is the same in small.  Learnt through the UNet alone, words are a
faint signal behind the noise, and nouns come many times later than colours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.data.latents import LatentBank
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.train.system import System

from .options import TextTrainingConfig


class LatentTower(nn.Sequential):
    """(B, C, h, w) latents -> (B, D): the half of CLIP that is thrown away."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 64, 3, 1, 1),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, 2, 1),
            nn.SiLU(),
            nn.Conv2d(128, 192, 3, 2, 1),
            nn.GroupNorm(16, 192),
            nn.SiLU(),
            nn.Conv2d(192, 256, 3, 1, 1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, width),
        )


class TextSystem(System):
    """Text encoder and its counterpart for latents.  ``prior.text_encoder`` is trained in place."""

    stage = "text encoder"

    def __init__(
        self, options: TextTrainingConfig, seed: int, max_steps: int, prior: MVDream, bank: LatentBank
    ) -> None:
        super().__init__(options, seed, max_steps)
        self.options = options
        self.text_encoder = prior.text_encoder.requires_grad_(True).train()
        width = int(prior.text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = LatentTower(int(prior.vae.config["latent_channels"]), width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.bank = prior.tokenizer, prior.max_tokens, bank

    def scenes(self, step: int):
        """The scenes of a step, each once, among those known so far: every step ``fresh`` more."""
        o = self.options
        known = min(o.scenes, self.bank.count, o.batch + step * o.fresh)
        return self.numpy_rng(step, "captions").choice(known, min(o.batch, known), replace=False)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        chosen = self.scenes(step)
        views = self.numpy_rng(step, "views").integers(0, bank.n_view, (len(chosen), o.n_view))
        z = bank.scenes(chosen)[torch.arange(len(chosen))[:, None], torch.from_numpy(views)]
        ids = token_ids(self.tokenizer, [bank.words(i) for i in chosen], self.max_tokens).to(self.device)
        with mixed(self.device, o.bf16):
            seen = self.tower(z.flatten(0, 1).to(self.device)).float().unflatten(0, (len(chosen), -1)).mean(1)
            read = self.text_encoder(ids).pooler_output
        read = F.normalize(self.project(read.float()), dim=-1)
        alike = F.normalize(seen, dim=-1) @ read.T * self.log_scale.clamp(max=4.6).exp()
        same = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((alike.detach().argmax(1) == same).float().mean())}
        return (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.parameters(), o.learning_rate, weight_decay=o.weight_decay)
