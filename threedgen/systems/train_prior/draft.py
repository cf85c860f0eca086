"""Learning the first guess of a prior: the latents of what a caption names, seen from a camera.

It learns from typical scenes, one picture of each: luck is noise to it, and a caption seen twice says less than two
captions. ``guidance/draft.py`` says what it is good for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.data.latents import LatentBank
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.train.system import AveragedSystem

from .options import DraftTrainingConfig


class DraftSystem(AveragedSystem):
    """``prior.draft`` is trained in place, on a text encoder that stays as it is. ``bank``: one view of each scene."""

    stage = "draft"
    prior: MVDream

    def __init__(
        self, options: DraftTrainingConfig, seed: int, max_steps: int, prior: MVDream, bank: LatentBank
    ) -> None:
        super().__init__(options, seed, max_steps)
        self.options = options
        assert prior.draft is not None
        self.draft = prior.draft.requires_grad_(True).train()
        self.keep_average(self.draft, options.ema)
        self.bank = bank
        self.hold(prior=prior)

    def setup(self, stage: str) -> None:
        encoder: nn.Module = self.prior.text_encoder
        encoder.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior, bank = int(batch), self.options, self.prior, self.bank
        rng = self.numpy_rng(step, "draft")
        known = min(bank.count, o.batch + step * o.fresh)
        chosen = rng.integers(0, known, o.batch)
        captions = [bank.words(i) if rng.random() >= o.no_text else "" for i in chosen]
        z = bank.scenes(chosen)[:, 0].to(self.device)
        camera = None if rng.random() < o.two_d else camera_vector(bank.c2w(chosen)[:, 0]).to(self.device)
        ids = token_ids(prior.tokenizer, captions, prior.max_tokens).to(self.device)
        with mixed(self.device, o.bf16):
            with torch.no_grad():
                text = prior.text_encoder(ids).last_hidden_state
            guess = self.draft(text, camera).float()
        loss = F.mse_loss(guess, z)
        self.metrics = {"draft_2d" if camera is None else "draft": float(loss.detach())}
        return loss

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.draft.parameters(), o.learning_rate, weight_decay=o.weight_decay)
