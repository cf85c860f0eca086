"""Validation of a novel-view model in training: the gap test and the sample sheet.

The gap test measures whether the model uses its condition, the given view. The model predicts the clean target from a
noisy one in one step, first with the true condition and then with that of another scene. The gap is the difference in
PSNR. A model that ignores its condition has no gap, but can be good in every other metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from threedgen.data.srn.pairs import PairBank
from threedgen.geometry.images import enlarge_small, grid, psnr, write_png
from threedgen.geometry.views import Views
from threedgen.guidance.novel_view.logsnr import add_noise, x0_from_output
from threedgen.guidance.novel_view.sampler import ViewModel, clipped, sample_views
from threedgen.run.disk import write_atomic
from threedgen.run.seeding import generator

from .options import PairTrainingConfig

CHUNK = 16
"""Number of pairs per forward pass."""


class Gap(NamedTuple):
    """Mean PSNR in dB with true and with shuffled conditions at the noise level `alpha_bar` in (0, 1)."""

    alpha_bar: float
    true: float
    shuffled: float

    @property
    def gap(self) -> float:
        return self.true - self.shuffled


class Pairs(NamedTuple):
    """B pairs of views, encoded for the model.

    Attributes:
        x, x0: (B, C, h, w) conditions and clean targets.
        c2w: (B, 2, 4, 4) camera-to-world poses; index 0 is the condition, index 1 the target.
        K: (B, 3, 3) intrinsics in pixels.
    """

    x: Tensor
    x0: Tensor
    c2w: Tensor
    K: Tensor

    def to(self, device: torch.device) -> Pairs:
        return Pairs(*(tensor.to(device) for tensor in self))


@torch.no_grad()
def gap_test(
    model: ViewModel, pairs: Pairs, alpha_bars: tuple[float, ...], rng: torch.Generator, kinds: int = 1
) -> list[Gap]:
    """Run the gap test at each noise level of `alpha_bars`, in (0, 1).

    Args:
        pairs: pairs of different scenes; their number is a multiple of `kinds`.
        kinds: number of object categories, which alternate in `pairs`. The shuffled condition of pair i is that of pair
            i + kinds, which has the same category.
    """
    noise = torch.randn(pairs.x0.shape, generator=rng).to(pairs.x0)
    keep = torch.ones(len(pairs.x), dtype=torch.bool, device=pairs.x.device)

    def decode(x: Tensor) -> Tensor:
        return torch.cat([model.decode_images(part) for part in x.split(CHUNK)]).clamp(0, 1).float().cpu()

    truth = decode(pairs.x0).numpy()

    def fidelity(x: Tensor, logsnr: Tensor) -> float:
        """Return the mean PSNR in dB of the clean views predicted with conditions `x` at noise levels (B,)."""
        z = add_noise(pairs.x0, noise, logsnr)
        inputs = (x, z, logsnr, pairs.c2w, pairs.K, keep)
        output = torch.cat([model.predict(*part) for part in zip(*(t.split(CHUNK) for t in inputs), strict=True)])
        x0 = x0_from_output(z, output, logsnr, model.prediction)
        views = decode(clipped(model, x0))
        return fmean(psnr(*pair) for pair in zip(truth, views.numpy(), strict=True))

    levels = {a: torch.full((len(pairs.x),), log(a) - log(1 - a), device=pairs.x.device) for a in alpha_bars}
    shuffled = pairs.x.roll(-kinds, 0)
    return [Gap(a, fidelity(pairs.x, level), fidelity(shuffled, level)) for a, level in levels.items()]


def write_gaps(path: Path, step: int, gaps: Sequence[Gap]) -> None:
    """Append the results of a step to a CSV file; rows of this and later steps, from a killed run, are removed."""
    before = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    lines = [line for line in before if int(line.partition(",")[0]) < step]
    lines += [f"{step},{g.alpha_bar:g},{g.true:.3f},{g.shuffled:.3f},{g.gap:.3f}" for g in gaps]
    write_atomic(path, "\n".join(["step,alpha_bar,true,shuffled,gap", *lines, ""]))


def write_sheet(
    path: Path, model: ViewModel, bank: PairBank, options: PairTrainingConfig, seed: int, device: torch.device
) -> None:
    """Write two rows per held-out scene: condition and sampled views, condition and true views.

    The views are sampled by stochastic conditioning (3DiM, section 2.2).
    """
    scenes = range(bank.train, bank.train + min(options.sheet_scenes, bank.held_out))
    truth = [once_around(bank.source.scene(scene), options.sheet_views + 1) for scene in scenes]
    count = len(truth[0])
    images = torch.stack([views.images[:1] for views in truth]).to(device)
    x = model.encode_images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    c2w = torch.stack([views.cameras.c2w for views in truth]).to(device)
    K = torch.stack([views.cameras.K[0] for views in truth]).to(device)
    rngs = [generator(seed, scene, "sheet") for scene in scenes]
    steps, scale = 1 if options.regression else options.sheet_steps, options.guidance_scale
    samples = sample_views(model, x, c2w[:, :1], c2w[:, 1:], K, rngs, steps=steps, guidance_scale=scale)
    rows = [
        row
        for views, sampled in zip(truth, samples, strict=True)
        for row in (views.images[:1], model.decode_images(sampled).float().cpu(), views.images)
    ]
    labels = ["given", *["sampled"] * (count - 1), "given", *["true"] * (count - 1)] * len(truth)
    write_png(path, grid(enlarge_small(torch.cat(rows)), count, labels))


def once_around(views: Views, count: int) -> Views:
    """Return at most `count` views in order of azimuth, evenly spaced in this order."""
    position = views.cameras.position
    order = torch.atan2(position[:, 1], position[:, 0]).argsort()
    chosen = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return views.select(order[chosen])
