"""Training of a novel-view model on pairs of views (3DiM, arXiv 2210.04628, sections 2.1 and 7.2).

Noise levels are continuous log signal-to-noise ratios, so the class does not derive from `train.denoising`, which has
integer time steps.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.srn.pairs import PairBank
from threedgen.guidance.novel_view import folder as folders
from threedgen.guidance.novel_view.logsnr import LOGSNR_MIN, add_noise, logsnr_cosine, target
from threedgen.guidance.novel_view.options import CamerasConfig
from threedgen.guidance.novel_view.sampler import ViewModel
from threedgen.run.arrays import Array
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.system import AveragedSystem, stratified_uniform

from .gap import Pairs, gap_test, write_gaps, write_sheet
from .options import TrainThreeDiMConfig

BETAS = (0.9, 0.99)
LOGGED_LEVEL = 0.05
"""The gap is logged at the noise level whose alpha_bar is nearest to this."""


def pair_loss(model: ViewModel, pairs: Pairs, logsnr: Tensor, keep: Tensor, noise: Tensor, blank: Tensor) -> Tensor:
    """Return the mean squared error of the network's prediction for noisy targets, a scalar.

    Args:
        logsnr: (B,) log signal-to-noise ratios of the noisy targets.
        keep: (B,) bool; where False, the condition is replaced by `blank`.
        noise, blank: (B, C, h, w) unit Gaussian noise.
    """
    x = torch.where(keep[:, None, None, None], pairs.x, blank)
    z = add_noise(pairs.x0, noise, logsnr)
    out = model.predict(x, z, logsnr, pairs.c2w, pairs.K, keep)
    return F.mse_loss(out, target(pairs.x0, noise, logsnr, model.prediction))


class PairSystem(AveragedSystem):
    """LightningModule that trains a novel-view model and keeps the moving average of its weights."""

    stage = "novel views"

    def __init__(self, config: TrainThreeDiMConfig, model: Any, bank: PairBank) -> None:
        super().__init__(config)
        self.options, self.bank = config.training, bank
        self.model = model.requires_grad_(True).train()
        self.keep_average(self.model, 0.0)

    @property
    def examples(self) -> int:
        """Number of pairs per optimizer step over all devices."""
        return self.options.batch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def setup(self, stage: str) -> None:
        self.average.decay = 0.5 ** (self.examples / self.options.ema_half_life)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o = int(batch), self.options
        rng, gen = self.numpy_rng(step, "pairs"), self.rng(step, "diffusion")
        pairs = self.load_pairs(rng.integers(0, self.bank.train, o.batch), rng, o.near)
        if o.regression:
            logsnr = torch.full((o.batch,), LOGSNR_MIN)
        else:
            logsnr = logsnr_cosine(stratified_uniform(o.batch, gen) ** o.time_power)
        keep = torch.rand(o.batch, generator=gen) >= o.dropped
        noise, blank = (torch.randn(pairs.x.shape, generator=gen).to(self.device) for _ in range(2))
        with self.autocast():
            return pair_loss(self.model, pairs, logsnr.to(self.device), keep.to(self.device), noise, blank)

    def load_pairs(self, scenes: Array, rng: np.random.Generator, near: float = 0.0) -> Pairs:
        """Sample an encoded pair of views for each of B scene indices; `near`: probability of neighbouring cameras."""
        x, y, c2w, K = self.bank.pairs(scenes, rng, near)
        if self.bank.encode is None:
            x, y = self.model.encode_images(x), self.model.encode_images(y)
        return Pairs(x, y, c2w, K).to(self.device)

    def autocast(self) -> torch.autocast:
        return autocast_bf16(self.device, self.options.bf16)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        o, parameters = self.options, self.model.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=o.learning_rate, betas=BETAS, weight_decay=0.0, fused=True)
        return self.scheduled(optimizer, rate_factor(o.warmup / self.examples, o.decay, self.max_steps))

    def validate(self, step: int, folder: Path) -> None:
        """Write gap.csv, model/ and samples.png, all with the averaged weights."""
        o, bank = self.options, self.bank
        levels = (float(torch.tensor(LOGSNR_MIN).double().sigmoid()),) if o.regression else o.gap_levels
        count = bank.held_out // bank.source.n_families * bank.source.n_families
        held_out = np.arange(bank.train, bank.train + count)  # one pair of each scene, always the same
        with self.average.applied(self.model):
            with self.autocast():
                pairs = self.load_pairs(held_out, self.numpy_rng(0, "held-out pairs"))
                gaps = gap_test(self.model, pairs, levels, self.rng(0, "gap test"), bank.source.n_families)
            write_gaps(folder / "gap.csv", step, gaps)
            one = min(gaps, key=lambda gap: abs(gap.alpha_bar - LOGGED_LEVEL))
            self.metrics = {"gap": one.gap, "psnr_true": one.true, "psnr_shuffled": one.shuffled}
            folders.save(self.model, folder / "model", cameras(bank))
            if o.sheet_scenes:
                with self.autocast():
                    write_sheet(folder / "samples.png", self.model, bank, o, self.seed, self.device)

    def remove_validation(self, step: int, folder: Path) -> None:
        write_gaps(folder / "gap.csv", step, ())


def rate_factor(warmup: float, decay: float, max_steps: int) -> Callable[[int], float]:
    """Return the function from the step to the factor on the learning rate, in [0, 1].

    It rises linearly over the first `warmup` steps, and falls to 0 over the last fraction `decay` of the steps.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
        left = (max_steps - step) / (decay * max_steps) if decay > 0 else 1.0
        return min(rise, max(0.0, left))

    return factor


def cameras(bank: PairBank, scenes: int = 16) -> CamerasConfig:
    """Return the ranges of elevation and distance, and the mean focal length, in at most `scenes` held-out scenes."""
    views = bank.source.views
    held_out = np.arange(bank.train, bank.train + min(scenes, bank.held_out))
    _, pose, K = bank.views(np.repeat(held_out, views), np.tile(np.arange(views), len(held_out)))
    position = pose[:, :3, 3]
    distance = position.norm(dim=-1)
    elevation = torch.rad2deg(torch.asin((position[:, 2] / distance.clamp(min=1e-9)).clamp(-1, 1)))
    low, high = float(elevation.min()), float(elevation.max())
    near, far = float(distance.min()), float(distance.max())
    size = bank.size
    return CamerasConfig(elevation=(low, high), distance=(near, far), focal=float(K[:, 1, 1].mean()) / size)
