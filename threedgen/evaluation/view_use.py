"""View use: how much a multi-view prior uses the other views of an object when it denoises one view."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from threedgen.data.latent_cache import Captioned, encode
from threedgen.guidance.prior import Prior
from threedgen.run.seeding import generator

from .metrics.figures import Json, bootstrap_ratio, estimate, mean_estimate
from .report import figure_table, format_estimate, rounded

LEVELS = (350, 500, 650, 800, 950)
"""Diffusion time steps of view 0 at which `measure_view_use` measures the use of the other views."""
CLEAN = 100
"""Diffusion time step, with little noise, of views 1 to V - 1 in the cases "clean" and "completed" of
`measure_view_use`."""
BATCH = 16


class Objects(NamedTuple):
    """Views of N objects, V per object, encoded by the VAE of a prior.

    Attributes:
        z: clean latents (N, V, C, h, w), without diffusion noise.
        c2w: camera-to-world poses (N, V, 4, 4), OpenGL axes, z up.
        captions: N captions.
        opposite: latents (N, C, h, w) of view V // 2, opposite to view 0, after mirroring its image left to right.
    """

    z: Tensor
    c2w: Tensor
    captions: list[str]
    opposite: Tensor

    @classmethod
    def encoded(cls, prior: Prior, views: Captioned) -> "Objects":
        """Encode ``views``, the images of N captioned objects with V views per object, with the VAE of a prior."""
        rgb, count = torch.from_numpy(views.rgb), len(views.captions)
        mirrored = rgb.unflatten(0, (count, -1))[:, len(rgb) // count // 2].flip(2)
        z, opposite = (encode(prior.networks["vae"], images).to(prior.device) for images in (rgb, mirrored))
        c2w = torch.from_numpy(views.c2w).float().to(prior.device)
        return cls(z.unflatten(0, (count, -1)), c2w.reshape(count, -1, 4, 4), views.captions, opposite)


@torch.no_grad()
def x0_errors(
    prior: Prior,
    objects: Objects,
    z: Tensor,
    t: Tensor,
    noise: Tensor,
    captions: Sequence[str] | None = None,
    fit_code: bool = False,
) -> np.ndarray:
    """Predict the clean latents of view 0 in one step from noisy latents of all V views of each of N objects.

    Return the mean squared errors (N,) of the predicted latents (C, h, w) of view 0, float64.

    Args:
        prior: multi-view diffusion model.
        objects: cameras of the views, and the true latents of view 0, with which the prediction is compared.
        z: clean latents (N, V, C, h, w), to which noise is added. View 0 must be that of ``objects``; the others may be
            views of another object.
        t: diffusion time steps (N, V), integers from 0 (little noise) to ``prior.schedule.T`` - 1.
        noise: Gaussian noise (N, V, C, h, w).
        captions: N prompts; None: the empty prompt for all objects.
        fit_code: whether to condition the prior also on an object code (vector of what a caption leaves unspecified),
            fitted to the clean views 1 to V - 1.
    """
    n_view, errors = z.shape[1], []
    for part in torch.arange(len(z)).split(BATCH):
        texts = prior.encode_prompt([""] if captions is None else [captions[k] for k in part])
        texts = texts.expand(len(part), -1, -1)
        if fit_code:
            texts = prior.encode_code(texts, z[part, 1:], objects.c2w[part, 1:], fit=True)
        text = texts.repeat_interleave(n_view, 0)
        camera = prior.camera(objects.c2w[part].flatten(0, 1))
        steps = t[part].flatten().to(z.device)
        x = prior.schedule.add_noise(z[part].flatten(0, 1), noise[part].flatten(0, 1), steps)
        x0 = prior.schedule.x0_from_eps(x, prior.denoise(x, steps, text, camera, n_view), steps)
        miss = x0.unflatten(0, (-1, n_view))[:, 0] - objects.z[part, 0]
        errors.append(miss.square().flatten(1).mean(1).cpu())
    return torch.cat(errors).numpy().astype(float)


def measure_view_use(prior: Prior, objects: Objects, seed: int) -> Json:
    """Measure how much a multi-view prior uses the other views of an object when it denoises one view.

    Noise is added to all V views of each of N objects, and the prior predicts the clean latents of view 0 in one step.
    The input differs between the cases below. Companions are views 1 to V - 1 of the input. The prompt is empty, except
    in the case "caption".

        true         companions of the same object, at the time step of view 0
        wrong        companions of another object, at the time step of view 0
        alone        companions of the same object, at the last time step: almost pure noise
        caption      companions of the same object, at the time step of view 0; the prompt is the object's caption
        clean        companions of the same object, at the time step 100: little noise; view 0 is at the last time step
        completed    input of "clean", and an object code (vector of what a caption leaves unspecified) fitted to the
                     companions; only for priors with object codes

    A prior that ignores the companions has equal errors in the cases true, wrong and alone.

    Returns:
        Dict with the keys below. Errors are mean squared errors of the predicted latents, averaged over the objects.
        Each error and ratio is a dict with "mean", "low" and "high" (95 % interval).
        "levels": list with a dict for each time step of view 0: 350, 500, 650, 800, 950. Its keys are "t" (the time
            step), "true", "wrong", "alone" and "caption" (errors), and "true_over_alone" and "wrong_over_alone" (ratios
            of errors).
        "clean", "completed": errors of these cases.
        "copied": error of a trivial prediction: the latents of the view opposite to view 0, mirrored left to right.
        "objects": N.
        "variance": variance of the clean latents of all views.
    """
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
            ratio = float(found[name].mean() / found["alone"].mean())
            row[f"{name}_over_alone"] = estimate(ratio, bootstrap_ratio(list(found[name]), list(found["alone"])))
        rows.append(row)
    t = torch.full(z.shape[:2], CLEAN)
    t[:, 0] = last
    clean = mean_estimate(list(x0_errors(prior, objects, z, t, noise)))
    copied = mean_estimate((objects.opposite - z[:, 0]).square().flatten(1).mean(1).tolist())
    figures: Json = {"objects": len(z), "variance": float(z.var()), "levels": rows, "clean": clean, "copied": copied}
    if prior.has_code:
        figures["completed"] = mean_estimate(list(x0_errors(prior, objects, z, t, noise, fit_code=True)))
    return rounded(figures)


def view_use_table(figures: Json) -> str:
    heads = {
        "true": "true companions", "wrong": "another object's", "alone": "alone", "true_over_alone": "true / alone",
        "wrong_over_alone": "another's / alone", "caption": "with the caption",
    }  # fmt: skip
    completed = format_estimate(figures["completed"]) if "completed" in figures else "-"
    return f"""## Use of the other views

Squared error of the predicted clean latents of one view, empty prompt, {figures["objects"]} objects; the variance of
the latents is {figures["variance"]:.2f}.

{figure_table("t", {str(row["t"]): row for row in figures["levels"]}, heads)}

Companions nearly clean (t = {CLEAN}), the view itself at the last time step: {format_estimate(figures["clean"])};
with an object code fitted to the companions, as when views are completed: {completed};
copying the mirrored opposite view: {format_estimate(figures["copied"])}."""
