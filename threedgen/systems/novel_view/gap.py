"""What is seen of a novel-view model while it learns: the gap test, and the sheet of samples.

The gap test asks whether it looks at its condition. One step from a noisy target to the clean view, once with the true
condition and once with the picture of another scene in its place, all else the same. The difference in PSNR is what the
condition tells. It is looked for by noise level: a model that has learnt poses and shapes, and ignores what the
condition shows, is fine in every other figure.
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
from threedgen.guidance.threedim.logsnr import add_noise, x0_from_output
from threedgen.guidance.threedim.sampler import ViewModel, clipped, sample_views
from threedgen.run.disk import write_atomic
from threedgen.run.seeding import generator

from .options import PairTrainingConfig

CHUNK = 16
"""Pairs that the network sees together."""


class Gap(NamedTuple):
    """PSNR of the predicted clean views at a share of signal ``alpha_bar``, dB: means over the pairs."""

    alpha_bar: float
    true: float
    shuffled: float

    @property
    def gap(self) -> float:
        return self.true - self.shuffled


class Pairs(NamedTuple):
    """What a model is given and what it should find: x, x0 (B, C, h, w), poses (B, 2, 4, 4), K (B, 3, 3)."""

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
    """One figure for each of ``alpha_bars``, the share of signal in the noisy target, in (0, 1).

    The condition of pair i is exchanged for that of pair i + ``kinds``, of the same kind, so that what is lost is the
    scene and not the category. Each pair is of another scene; their number is a multiple of ``kinds``.
    """
    noise = torch.randn(pairs.x0.shape, generator=rng).to(pairs.x0)
    keep = torch.ones(len(pairs.x), dtype=torch.bool, device=pairs.x.device)

    def pictures(x: Tensor) -> Tensor:
        return torch.cat([model.decode_images(part) for part in x.split(CHUNK)]).clamp(0, 1).float().cpu()

    truth = pictures(pairs.x0).numpy()

    def fidelity(x: Tensor, logsnr: Tensor) -> float:
        """Averages the PSNR, dB, of the clean views that the model sees in their noisy form, given a condition."""
        z = add_noise(pairs.x0, noise, logsnr)
        given = (x, z, logsnr, pairs.c2w, pairs.K, keep)
        output = torch.cat([model.predict(*part) for part in zip(*(t.split(CHUNK) for t in given), strict=True)])
        x0 = x0_from_output(z, output, logsnr, model.prediction)
        found = pictures(clipped(model, x0))
        return fmean(psnr(*pair) for pair in zip(truth, found.numpy(), strict=True))

    levels = {a: torch.full((len(pairs.x),), log(a) - log(1 - a), device=pairs.x.device) for a in alpha_bars}
    shuffled = pairs.x.roll(-kinds, 0)
    return [Gap(a, fidelity(pairs.x, level), fidelity(shuffled, level)) for a, level in levels.items()]


def write_gaps(path: Path, step: int, gaps: Sequence[Gap]) -> None:
    """Adds the lines of a step to a table, and drops those of this step and later ones, which a killed run left."""
    before = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
    lines = [line for line in before if int(line.partition(",")[0]) < step]
    lines += [f"{step},{g.alpha_bar:g},{g.true:.3f},{g.shuffled:.3f},{g.gap:.3f}" for g in gaps]
    write_atomic(path, "\n".join(["step,alpha_bar,true,shuffled,gap", *lines, ""]))


def write_sheet(
    path: Path, model: ViewModel, bank: PairBank, options: PairTrainingConfig, seed: int, device: torch.device
) -> None:
    """Draws two rows for each held-out scene: given and sampled by stochastic conditioning; given and true."""
    scenes = range(bank.train, bank.train + min(options.sheet_scenes, bank.held_out))
    truth = [once_around(bank.source.scene(scene), options.sheet_views + 1) for scene in scenes]
    count = len(truth[0])
    images = torch.stack([views.images[:1] for views in truth]).to(device)
    x = model.encode_images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    c2w = torch.stack([views.cameras.c2w for views in truth]).to(device)
    K = torch.stack([views.cameras.K[0] for views in truth]).to(device)
    rngs = [generator(seed, scene, "sheet") for scene in scenes]
    steps, scale = 1 if options.regression else options.sheet_steps, options.guidance_scale
    drawn = sample_views(model, x, c2w[:, :1], c2w[:, 1:], K, rngs, steps=steps, guidance_scale=scale)
    rows = [
        row
        for views, sampled in zip(truth, drawn, strict=True)
        for row in (views.images[:1], model.decode_images(sampled).float().cpu(), views.images)
    ]
    labels = ["given", *["sampled"] * (count - 1), "given", *["true"] * (count - 1)] * len(truth)
    write_png(path, grid(enlarge_small(torch.cat(rows)), count, labels))


def once_around(views: Views, count: int) -> Views:
    """Some of the views, evenly chosen, in the order of their azimuths."""
    place = views.cameras.position
    order = torch.atan2(place[:, 1], place[:, 0]).argsort()
    some = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return views.select(order[some])
