"""Completion of views: sample new views of an object from known ones.

If the prior was trained with a separate noise level for each view (by the training config `train-toybox-views`), the
new views attend to nearly noise-free known views. If the prior has object codes (vectors for what a prompt leaves
unspecified), the new views start from a coarse prediction for the code of the known views.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .guidance import Condition, Denoiser, TextPair, guided, repeat_text
from .prior import Prior
from .sampling import OnStep, fresh_noise, no_callback, sample_latents

KNOWN_VIEWS_TIMESTEP = 20
"""Timestep of the noise that is added to the known views. The network was trained with noise in every view."""


class KnownViews(NamedTuple):
    """Known views of S objects, A views per object; the views of an object are consecutive.

    Attributes:
        latents: noisy latents of the known views, (S A, C, h, w), at timestep `KNOWN_VIEWS_TIMESTEP` (almost clean).
        camera: camera vectors of the known views, (S A, 16), from `Prior.camera`.
    """

    latents: Tensor
    camera: Tensor


def known_views(prior: Prior, z: Tensor, c2w: Tensor, generator: torch.Generator | None = None) -> KnownViews:
    """Return the known views of an object for `with_known_views`, with the little noise of `KNOWN_VIEWS_TIMESTEP`.

    Args:
        prior: prior whose `separate_levels` is True, so that its views may have different noise levels.
        z: clean latents of the known views (A, C, h, w).
        c2w: their camera-to-world matrices (A, 4, 4), OpenGL axes, world z up.
        generator: random generator of the noise; None: torch's global generator.
    """
    camera = prior.camera(c2w.to(prior.device).float())
    if camera is None:
        raise ValueError("a prior without cameras cannot complete views")
    t = torch.tensor(KNOWN_VIEWS_TIMESTEP, device=z.device)
    return KnownViews(prior.schedule.add_noise(z, fresh_noise(z, generator), t), camera)


@torch.no_grad()
def complete_views(
    prior: Prior,
    text: TextPair,
    views: Tensor,
    views_c2w: Tensor,
    c2w: Tensor,
    steps: int,
    guidance_scale: float,
    generator: torch.Generator | None = None,
    on_step: OnStep = no_callback,
) -> Tensor:
    """Sample V new views of an object from A known views, and return images (V, s, s, 3) in [0, 1] on the CPU.

    The side s is `prior.image_size`.

    Args:
        prior: a prior whose `completes_views` is True.
        text: embeddings of the prompt and of the negative prompt, each (1, L, D). If the prior has object codes
            (vectors for what a prompt leaves unspecified), the last of the L rows is the code. If it is zero for the
            prompt, it is computed from the known views.
        views: known images (A, H, W, 3) in [0, 1], of any size.
        views_c2w: camera-to-world matrices (A, 4, 4) of the known views, OpenGL axes, world z up.
        c2w: camera-to-world matrices (V, 4, 4) of the new views, with the same axes.
        steps: number of DDIM steps from noise.
        guidance_scale: classifier-free guidance scale; 1: off.
        generator: random generator of all noise; None: torch's global generator.
        on_step: progress callback (steps done, total steps).
    """
    z, schedule = prior.encode_images(views, generator), prior.schedule
    known = known_views(prior, z, views_c2w, generator)
    camera = prior.camera(c2w.to(prior.device).float())
    if prior.has_code and not text[0][:, -1].any():
        text = (prior.encode_code(text[0], z[None], views_c2w[None], fit=True), text[1])
    condition = Condition(text, camera, len(c2w), single_view_uncond=prior.guide_views)
    denoise = with_known_views(prior.denoise, known, len(views)) if prior.separate_levels else prior.denoise
    predict = guided(denoise, condition, guidance_scale)
    init = prior.coarse_start(repeat_text(text[0], len(c2w)), c2w)
    noise = fresh_noise(z.new_empty(len(c2w), *z.shape[1:]), generator)
    z = sample_latents(predict, noise, schedule, steps, init, on_step=on_step)
    return prior.decode_latents(z).float().cpu()


def with_known_views(denoise: Denoiser, known: KnownViews, n_known: int) -> Denoiser:
    """Wrap a denoiser so that the views to denoise attend to known views of the same objects.

    Args:
        denoise: function (`Denoiser`) that predicts the noise in a batch of views.
        known: known views, almost without noise.
        n_known: number of known views per object.

    Returns:
        A denoiser that takes the new views only; its `n_view` is their number per object. It calls `denoise` with the
        known views of each object before its new views, and returns the noise in the new views. If its argument
        `camera` is None (an unconditional branch), it calls `denoise` without the known views.
    """

    def call(x: Tensor, t: Tensor, text: Any, camera: Tensor | None, n_view: int, **kwargs: Any) -> Tensor:
        if camera is None:
            return denoise(x, t, text, camera, n_view, **kwargs)
        repeats = len(x) // n_view * n_known // len(known.latents)  # branches of the guidance

        def join(a: Tensor, b: Tensor) -> Tensor:
            a = torch.cat([a] * repeats)
            return torch.cat([a.unflatten(0, (-1, n_known)), b.unflatten(0, (-1, n_view))], 1).flatten(0, 1)

        levels = torch.full((len(known.latents),), KNOWN_VIEWS_TIMESTEP, device=t.device, dtype=t.dtype)
        texts = text.unflatten(0, (-1, n_view))
        texts = torch.cat([texts[:, :1].expand(-1, n_known, -1, -1), texts], 1).flatten(0, 1)
        parts = (join(known.latents, x), join(levels, t), texts, join(known.camera, camera))
        eps = denoise(*parts, n_known + n_view, **kwargs)
        return eps.unflatten(0, (-1, n_known + n_view))[:, n_known:].flatten(0, 1)

    return call
