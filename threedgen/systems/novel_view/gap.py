"""The gap test: does a novel-view model look at its condition?

One step from a noisy target to the clean view, once with the true condition and once with the picture of another scene
in its place, all else the same. The difference in PSNR is what the condition tells. It is looked for by noise level: a
model that has learnt poses and shapes, and ignores what the condition shows, is fine in every other figure.
"""

from __future__ import annotations

from math import log
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from threedgen.geometry.images import psnr
from threedgen.guidance.threedim.logsnr import add_noise, x0_from_output
from threedgen.guidance.threedim.model import ViewModel

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
    truth = pictures(model, pairs.x0)
    found = []
    for a in alpha_bars:
        logsnr = torch.full((len(pairs.x),), log(a) - log(1 - a), device=pairs.x.device)
        z = add_noise(pairs.x0, noise, logsnr)
        true, shuffled = (
            mean_psnr(pictures(model, clean(model, pairs._replace(x=x), z, logsnr)), truth)
            for x in (pairs.x, pairs.x.roll(-kinds, 0))
        )
        found.append(Gap(a, true, shuffled))
    return found


def clean(model: ViewModel, pairs: Pairs, z: Tensor, logsnr: Tensor) -> Tensor:
    """The clean views that the model sees in ``z``, in parts that fit into memory."""
    keep = torch.ones(len(z), dtype=torch.bool, device=z.device)
    asked = (pairs.x, z, logsnr, pairs.c2w, pairs.K, keep)
    output = torch.cat([model.predict(*part) for part in zip(*(t.split(CHUNK) for t in asked), strict=True)])
    x0 = x0_from_output(z, output, logsnr, model.prediction)
    return x0 if model.clip is None else x0.clamp(-model.clip, model.clip)


def pictures(model: ViewModel, x: Tensor) -> Tensor:
    return torch.cat([model.to_pictures(part) for part in x.split(CHUNK)]).clamp(0, 1)


def mean_psnr(a: Tensor, b: Tensor) -> float:
    """Averages PSNR over pictures (B, H, W, 3) in [0, 1], dB."""
    return fmean(psnr(*pair) for pair in zip(a.float().cpu().numpy(), b.float().cpu().numpy(), strict=True))
