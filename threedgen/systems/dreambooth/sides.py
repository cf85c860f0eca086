"""From which side was a photo taken? The prior is asked, and where it has a draft, that of this side is taken.

A small prior's UNet sees a draft beside the noisy latents, in the four views that of each side. What it learns from a
photo it says of four views only if the draft beside the photo is of the photo's side. Nobody says which that is, but a
model that draws what a camera sees can be asked which camera it was: the one under which it tells the noise in the
photo best (Diffusion Classifier, arXiv 2303.16203).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from threedgen.guidance.priors.camera_posterior import candidates
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.seeding import generator

LEVELS = 0.35, 0.5, 0.65
"""Of noise, in shares of the time steps; with less or more of it fewer sides were found."""


@torch.no_grad()
def photo_sides(prior: MVDream, pictures: Tensor, prompt: str) -> Tensor:
    """c2w (N, 4, 4): from which of the candidates pictures (N, S, S, 3) of a prompt seem to be taken.

    Every candidate is given the same noise. The mean squared errors of a level count relative to their mean over the
    candidates, so that no level counts for more than another.
    """
    c2w, schedule = candidates(), prior.schedule.to(prior.device)
    count = len(c2w)
    camera, text = prior.camera(c2w).to(prior.device), prior.encode_prompt([prompt]).expand(count, -1, -1)
    rng = generator(0, 0, "photo sides")
    z = prior.encode_images(pictures, rng)
    wrong = torch.zeros(len(pictures), count)
    for level in LEVELS:
        t = torch.tensor([int(level * schedule.T)], device=z.device)
        noise = torch.randn(z[:1].shape, generator=rng).to(z.device)
        for k, one in enumerate(z[:, None]):
            x = schedule.add_noise(one, noise, t).expand(count, -1, -1, -1)
            said = prior.network(x, t.expand(count), text, camera)
            error = (said - schedule.target(one, noise, t)).square().flatten(1).mean(1).cpu()
            wrong[k] += error / error.mean()
    return c2w[wrong.argmin(1)]


@torch.no_grad()
def drafts(prior: MVDream, prompts: Sequence[str], c2w: Tensor) -> Tensor | None:
    """(N, C, h, w): what the draft shows of N prompts, each from its own side c2w (N, 4, 4). None without a draft."""
    if prior.draft is None:
        return None
    text = prior.encode_prompt(list(prompts))[:, : prior.max_tokens]
    return prior.draft(text, prior.camera(c2w).to(prior.device)).float().cpu()
