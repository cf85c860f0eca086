"""Use of the other views: how much a multi-view prior relies on them when it denoises one view of an object.

Noise is added to view 0, and the prior predicts its clean latents in one step. Views 1 to V - 1 of the input, here
called companions, differ between the cases:

    true         companions are the other views of the same object, with the same noise level as view 0
    wrong        companions are views of another object, with the same noise level as view 0
    alone        companions are the other views at the last time step, which are almost pure noise
    caption      as true, but with the caption of the object; all other cases have the empty prompt
    clean        companions are the other views with little noise (t = CLEAN), and view 0 is at the last time step

A prior that ignores the companions has equal errors in the cases true, wrong and alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from threedgen.data.bank import Captioned, encode
from threedgen.guidance.prior import MultiviewPrior
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.seeding import generator

from .metrics.figures import Json, bootstrap_ratio, estimate, mean, mean_estimate
from .report import figure_table, format_estimate, rounded

LEVELS = (350, 500, 650, 800, 950)
LOW_LEVELS = (50, 200)
"""Time steps at which the cases are compared, and low time steps at which only the case caption is measured."""
CLEAN = 100
"""Time step of the companions in the case clean, with little noise."""
BATCH = 16
"""Number of objects that are denoised in one batch."""


class Objects(NamedTuple):
    """Encoded views of N objects, V views each.

    Attributes:
        z: clean latents (N, V, C, h, w).
        c2w: camera-to-world poses (N, V, 4, 4).
        captions: N captions.
        opposite: latents (N, C, h, w) of view V // 2, opposite to view 0, mirrored left to right.
    """

    z: Tensor
    c2w: Tensor
    captions: list[str]
    opposite: Tensor

    @classmethod
    def encoded(cls, prior: MVDream, views: Captioned) -> Objects:
        """Encode captioned views with the VAE of a prior. The cameras of each object are evenly spaced around it."""
        count = len(views.captions)
        rgb = torch.from_numpy(views.rgb)
        mirrored = rgb.unflatten(0, (count, -1))[:, rgb.shape[0] // count // 2].flip(2)
        z, opposite = (encode(prior.vae, images).to(prior.device) for images in (rgb, mirrored))
        c2w = torch.from_numpy(views.c2w).float().reshape(count, -1, 4, 4).to(prior.device)
        return cls(z.unflatten(0, (count, -1)), c2w, views.captions, opposite)


@torch.no_grad()
def x0_errors(
    prior: MultiviewPrior, objects: Objects, z: Tensor, t: Tensor, noise: Tensor, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Predict the clean latents of view 0 in one step, and return the mean squared error per object.

    Args:
        objects: cameras, and the true latents of view 0.
        z: clean latents (N, V, C, h, w) that noise is added to; view 0 is that of ``objects``.
        t: time steps (N, V), integers.
        noise: Gaussian noise (N, V, C, h, w).
        captions: N prompts; None for the empty prompt.

    Returns:
        Errors (N,), float64, averaged over the channels and pixels of view 0.
    """
    n_view, errors = z.shape[1], []
    for part in torch.arange(len(z)).split(BATCH):
        texts = prior.encode_prompt([""] if captions is None else [captions[k] for k in part])
        text = texts.expand(len(part), -1, -1).repeat_interleave(n_view, 0)
        camera = prior.camera(objects.c2w[part].flatten(0, 1))
        steps = t[part].flatten().to(z.device)
        x = prior.schedule.add_noise(z[part].flatten(0, 1), noise[part].flatten(0, 1), steps)
        x0 = prior.schedule.x0_from_eps(x, prior.denoise(x, steps, text, camera, n_view), steps)
        miss = x0.unflatten(0, (-1, n_view))[:, 0] - objects.z[part, 0]
        errors.append(miss.square().flatten(1).mean(1).cpu())
    return torch.cat(errors).numpy().astype(float)


def view_use(prior: MultiviewPrior, objects: Objects, seed: int) -> Json:
    """Measure the mean error of view 0 in all cases of this module, with 95 % intervals over the objects, as JSON."""
    z, last = objects.z, prior.schedule.T - 1
    noise = torch.randn(z.shape, generator=generator(seed, 0, "view use")).to(z)
    wrong = torch.cat([z[:, :1], z.roll(1, 0)[:, 1:]], 1)
    rows = []
    for level in LEVELS:
        t = torch.full(z.shape[:2], level)
        far = t.clone()
        far[:, 1:] = last
        found = {
            "true": x0_errors(prior, objects, z, t, noise),
            "wrong": x0_errors(prior, objects, wrong, t, noise),
            "alone": x0_errors(prior, objects, z, far, noise),
            "caption": x0_errors(prior, objects, z, t, noise, objects.captions),
        }
        row: Json = {"t": level} | {name: mean_estimate(list(errors)) for name, errors in found.items()}
        for name in ("true", "wrong"):
            row[f"{name}_over_alone"] = _ratio(found[name], found["alone"])
        rows.append(row)
    t = torch.full(z.shape[:2], CLEAN)
    t[:, 0] = last
    clean = mean_estimate(list(x0_errors(prior, objects, z, t, noise)))
    copied = (objects.opposite - z[:, 0]).square().flatten(1).mean(1)
    low = []
    for level in LOW_LEVELS:
        errors = x0_errors(prior, objects, z, torch.full(z.shape[:2], level), noise, objects.captions)
        low.append({"t": level, "caption": mean(list(errors))})
    figures: Json = {
        "objects": len(z),
        "variance": float(z.var()),
        "levels": rows,
        "low_levels": low,
        "clean": clean,
        "opposite_view_mirrored": mean_estimate(copied.tolist()),
    }
    result: Json = rounded(figures)
    return result


def _ratio(above: np.ndarray, below: np.ndarray) -> dict[str, float | None]:
    return estimate(float(above.mean() / below.mean()), bootstrap_ratio(list(above), list(below)))


def view_use_table(figures: Json) -> str:
    """Return the report section for the result of `view_use`, in Markdown."""
    heads = {
        "true": "true companions", "wrong": "another object's", "alone": "alone", "true_over_alone": "true / alone",
        "wrong_over_alone": "another's / alone", "caption": "with the caption",
    }  # fmt: skip
    low = ", ".join(f"{row['caption']:.4f} at t = {row['t']}" for row in figures["low_levels"])
    return f"""## Use of the other views

Squared error of the predicted clean latents of one view, empty prompt, {figures["objects"]} objects; the variance of
the latents is {figures["variance"]:.2f}.

{figure_table("t", {str(row["t"]): row for row in figures["levels"]}, heads)}

Companions nearly clean (t = {CLEAN}), the view itself at the last time step: {format_estimate(figures["clean"])};
copying the mirrored opposite view: {format_estimate(figures["opposite_view_mirrored"])}.
Little noise, with the caption: {low}."""
