"""Learning the first guess of a prior: the latents of what a caption names, seen from a camera.

It learns from typical objects, one picture of each: luck is noise to it, and a caption seen twice says less than two
captions. ``guidance/draft.py`` says what it is good for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.bank import LatentBank
from threedgen.guidance.draft import Draft
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.train.system import AveragedSystem

from .options import DraftConfig


class DraftSystem(AveragedSystem):
    """Trains a draft in place, on the text encoder of ``prior``, which stays as it is. ``bank``: single views."""

    stage = "draft"
    prior: MVDream

    def __init__(self, options: DraftConfig, seed: int, draft: Draft, prior: MVDream, bank: LatentBank) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options, self.bank = options, bank
        self.draft = draft.requires_grad_(True).train()
        self.keep_average(self.draft, options.ema)
        self.hold(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.text_encoder.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior, bank = int(batch), self.options, self.prior, self.bank
        rng = self.numpy_rng(step, "draft")
        chosen = rng.integers(0, min(bank.count, o.first + step * o.fresh), o.batch)
        captions = [text if rng.random() >= o.no_text else "" for text in bank.captions(chosen)]
        z = bank.latents(chosen)[:, 0].to(self.device)
        camera = None if rng.random() < o.two_d else camera_vector(bank.c2w(chosen)[:, 0]).to(self.device)
        ids = token_ids(prior.tokenizer, captions, prior.max_tokens).to(self.device)
        with mixed(self.device, o.bf16):
            with torch.no_grad():
                text = prior.text_encoder(ids).last_hidden_state
            guess = self.draft(text, camera).float()
        loss = F.mse_loss(guess, z)
        self.metrics = {"draft": float(loss.detach())} if camera is not None else {}
        return loss
