"""From which side is a picture taken whose camera nobody tells? How a small multi-view prior plays Stable Diffusion.

A model p(x | c) of pictures from known cameras c is a model of pictures: p(x) = sum_c p(c) p(x | c). What it says of a
noisy x_t is the mean of what it says for each camera, in proportion to p(c | x_t) (Bayes), or without bias what it says
for one camera drawn from that. A prior with a draft knows these proportions without asking its UNet, for the draft d_c
is the mean of the pictures from c: x_t is about normal around sqrt(alpha_bar) d_c. Where x_t is all noise, p(c) alone
decides, the habit of photographers; where it shows something, the side that it shows.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.diffusion import Schedule
from threedgen.guidance.draft import Draft

ELEVATIONS = 0.0, 15.0, 30.0
"""Degrees, of the sides that are considered, every 15 degrees of azimuth."""
DISTANCE = 2.6
SPREAD = 0.1
"""Mean squared difference of a latent to its draft (docs/training.md)."""
KEPT = 16
"""Captions whose drafts are kept."""


def candidates() -> Tensor:
    """c2w (72, 4, 4) from all around."""
    azimuth = torch.arange(0.0, 360.0, 15.0)
    elevation, azimuth = torch.meshgrid(torch.tensor(ELEVATIONS), azimuth, indexing="ij")
    return look_from(elevation.flatten(), azimuth.flatten())


def look_from(elevation: Tensor, azimuth: Tensor) -> Tensor:
    """c2w (B, 4, 4) of cameras that look at the centre; degrees (B,)."""
    return orbit_c2w(elevation.deg2rad(), azimuth.deg2rad(), torch.full_like(azimuth, DISTANCE))


class Seen(NamedTuple):
    """Camera vectors (B,16), and the draft (B,C,h,w) of each picture from there."""

    camera: Tensor
    draft: Tensor


class UnseenCamera:
    """Guesses cameras for a prior that is told none. ``front``: azimuth a is taken in proportion to e^(front cos a)."""

    def __init__(self, draft: Draft, camera: Tensor, front: float) -> None:
        """``camera`` (K,16): the camera vectors of the sides that are considered; objects face +x."""
        self.draft, self.camera = draft, camera
        x, y = camera[:, 3], camera[:, 7]
        self.habit = front * x / torch.hypot(x, y)
        self.known: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, text: Tensor, schedule: Schedule) -> Seen:
        """Latents ``x`` (B,C,h,w) with the noise of ``t`` (B,) or (), text (B,L,D).

        Rows with the same latents, as guidance compares them, are seen from one side, that which the first one's text
        suggests. The draw depends on the latents alone, so that the same question has the same answer.
        """
        every = [self.drafts(words, x) for words in text]
        same = (x[:, None] == x[None]).flatten(2).all(2).int().argmax(1)
        alpha, sigma = schedule.alpha_sigma(t.expand(len(x)), x)
        chosen = [self.side(x[k], every[k], alpha[k], sigma[k]) if k == first else -1 for k, first in enumerate(same)]
        sides = [chosen[first] for first in same]
        return Seen(self.camera[sides], torch.stack([drafts[side] for drafts, side in zip(every, sides, strict=True)]))

    def side(self, x: Tensor, drafts: Tensor, alpha: Tensor, sigma: Tensor) -> int:
        """One of the K sides, drawn from p(c | x_t)."""
        wrong = (x - alpha * drafts).square().flatten(1).sum(1)
        likely = self.habit - wrong / (2 * (alpha**2 * SPREAD + sigma**2)).flatten()
        rng = torch.Generator().manual_seed(zlib.crc32(x.cpu().numpy().tobytes()))
        return int(torch.multinomial(likely.softmax(0).cpu(), 1, generator=rng))

    def drafts(self, words: Tensor, like: Tensor) -> Tensor:
        """(K,C,h,w) of a text (L,D), as large as ``like`` (B,C,h,w)."""
        for text, drafts in self.known:
            if text.shape == words.shape and drafts.shape[-2:] == like.shape[-2:] and torch.equal(text, words):
                return drafts
        made = self.draft(words.expand(len(self.camera), -1, -1), self.camera).float()
        if made.shape[-2:] != like.shape[-2:]:
            made = F.interpolate(made, like.shape[-2:], mode="bilinear", align_corners=False)
        self.known = [*self.known[1 - KEPT :], (words, made)]
        return made
