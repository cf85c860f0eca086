"""Sampling of a part of a picture by a model that was trained for whole ones: pure mathematics.

What is known is given back to every step with the noise of that step, so that the rest is drawn in its presence
(RePaint, Lugmayr et al. 2022, arXiv 2201.09865, algorithm 1; in latents as Avrahami et al. 2023, arXiv 2206.02779).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .diffusion import Conditions, Denoiser, ddim_alphas, ddim_step, ddim_timesteps, fresh_noise
from .schedule import Schedule


@torch.no_grad()
def ddim_inpaint(
    denoise: Denoiser,
    z: Tensor,
    hole: Tensor,
    given: Conditions,
    schedule: Schedule,
    steps: int = 50,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Latents like ``z`` (B,C,h,w), drawn anew where ``hole`` (B,1,h,w) is 1, and as they were where it is 0.

    repeats: how often a step is taken; before each but the first, noise brings its result back to where it began
    (RePaint's resampling, with jumps of one step), so that the parts agree better.  ``denoise``: of ``guided``.
    """
    timesteps = ddim_timesteps(steps, schedule.T)
    alphas, alphas_prev = ddim_alphas(schedule, timesteps)
    x = fresh_noise(z, generator)
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(z),), int(timesteps[i]), device=z.device)
        back = (alphas[i] / alphas_prev[i]).float()
        for repeat in range(repeats):
            if repeat:
                x = back.sqrt() * x + (1 - back).sqrt() * fresh_noise(x, generator)
            known = schedule.add_noise(z, fresh_noise(z, generator), t)
            x = hole * x + (1 - hole) * known
            eps = denoise(x, t, given, given.camera, given.n_view).to(x.dtype)
            x, _ = ddim_step(x, eps, alphas[i], alphas_prev[i])
    return hole * x + (1 - hole) * z
