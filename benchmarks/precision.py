"""Measure how exact gradients of SDS are in half precision: UNet and VAE encoder of toybox-prior under autocast.

The gradient with respect to the images of four views is compared with that of float32, for held-out objects.
"""

from statistics import mean

import numpy as np
import torch
from torch import Tensor

from threedgen.evaluation.runner import ring_poses
from threedgen.guidance.guidance import combine
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.seeding import generator
from threedgen.toybox.evaluation.held_out import Case, held_out_cases
from threedgen.toybox.world.toybox import render_orbit

from .gpu import ROOT
from .table import Row, Table

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
TIMESTEPS, SCALES = (200, 500, 800), (1, 10, 50)
"""Timesteps of 1000, and scales of classifier-free guidance."""
RING = np.arange(4) * np.pi / 2, float(np.deg2rad(15))  # azimuths and elevation of the views
SIZE = 128  # pixels


def gradient(prior: MVDream, case: Case, views: Tensor, timestep: int, dtype: torch.dtype | None) -> list[Tensor]:
    """Return the gradients (4, H, W, 3) of SDS at the images `views`, one for each guidance scale.

    `dtype` is the precision of the networks; None: float32 without autocast.
    """
    images = views.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        posterior = prior.vae.encode(2 * images.permute(0, 3, 1, 2) - 1).latent_dist
        latents = posterior.mean.float() * prior.scaling_factor
        noise = torch.randn(latents.shape, generator=generator(0, case.index, "noise"))
        t = torch.full((len(views),), timestep)
        alpha, sigma = prior.schedule.alpha_sigma(t, latents)
        with torch.no_grad():
            noisy, camera = alpha * latents + sigma * noise, prior.camera(ring_poses(RING).float())
            texts = prior.encode_prompt([case.caption, ""])[:, None].expand(-1, len(views), -1, -1)
            words, empty = (prior.predict(noisy, t, text, camera, len(views)).float() for text in texts)
    directions = [sigma**2 * (combine(words, empty, scale) - noise) for scale in SCALES]
    return [torch.autograd.grad(latents, images, each, retain_graph=True)[0] for each in directions]


def table(rounds: int) -> Table:
    """Return the mean relative errors of the gradients, over as many objects as `rounds`."""
    prior, errors = MVDream.load(str(ROOT / "weights" / "toybox-prior")), dict[tuple[int, int, str], list[float]]()
    for network in prior.networks.values():
        network.requires_grad_(False)
    for case in held_out_cases(rounds, 0):
        views = torch.from_numpy(render_orbit(case.build_truth(0), *RING, SIZE).rgb).float()
        for timestep in TIMESTEPS:
            exact = gradient(prior, case, views, timestep, None)
            for name, dtype in HALF.items():
                half = gradient(prior, case, views, timestep, dtype)
                for scale, found, true in zip(SCALES, half, exact, strict=True):
                    error = float((found - true).norm() / true.norm())
                    errors.setdefault((timestep, scale, name), []).append(error)
    rows: list[Row] = [
        {"timestep": t, "guidance scale": s, **{name: f"{mean(errors[t, s, name]):.4f}" for name in HALF}}
        for t in TIMESTEPS
        for s in SCALES
    ]
    return Table("gradients of SDS in half precision", rows, [f"relative errors, mean over {rounds} objects"])
