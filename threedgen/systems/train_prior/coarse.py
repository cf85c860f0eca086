"""Trains the coarse predictor of a multi-view prior: the latents of what a caption names, seen from a camera.

It learns from typical objects, one picture of each: luck is noise to it, and a caption seen twice says less than two
captions. ``guidance/coarse.py`` says why it is there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.bank import LatentBank
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.multiview.joined import camera_vector
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.muon import Muon
from threedgen.train.system import AveragedSystem

from .options import CoarseConfig


class CoarseSystem(AveragedSystem):
    """Trains a predictor in place, on the text encoder of ``prior``, which stays as it is. ``bank``: single views."""

    stage = "coarse predictor"
    prior: LatentDiffusion

    def __init__(
        self, options: CoarseConfig, seed: int, coarse: CoarsePredictor, prior: LatentDiffusion, bank: LatentBank
    ) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options, self.bank = options, bank
        self.coarse = coarse.requires_grad_(True).train()
        self.keep_average(self.coarse, options.ema)
        self.set_unregistered(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.text_encoder.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior, bank = int(batch), self.options, self.prior, self.bank
        rng = self.numpy_rng(step, "coarse")
        chosen = rng.integers(0, min(bank.count, o.first + step * o.fresh), o.batch)
        captions = [text if rng.random() >= o.no_text else "" for text in bank.captions(chosen)]
        z = bank.latents(chosen)[:, 0].to(self.device)
        camera = None if rng.random() < o.two_d else camera_vector(bank.c2w(chosen)[:, 0]).to(self.device)
        ids = token_ids(prior.tokenizer, captions, prior.max_tokens).to(self.device)
        with autocast_bf16(self.device, o.bf16):
            with torch.no_grad():
                text = prior.text_encoder(ids).last_hidden_state
            predicted = self.coarse(text, camera).float()
        loss = F.mse_loss(predicted, z)
        self.metrics = {"coarse": float(loss.detach())} if camera is not None else {}
        return loss

    def configure_optimizers(self):
        o = self.options
        return self.scheduled(Muon(self.coarse.parameters(), 1.0, weight_decay=o.weight_decay), o.learning_rate)
