"""Classifier-free guidance: what conditions a prior, and how its predictions are combined.

A network enters only as a `Denoiser`, a function that returns the predicted noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

TextPair = tuple[Tensor, Tensor]
"""Conditional and unconditional text embeddings, each (n, L, D)."""
Features = Mapping[str, Tensor]
"""Self-attention inputs of a network for R reference images, (R, L, C) by layer name."""


class Denoiser(Protocol):
    """Predict the noise in `x`.

    Args:
        x: noisy latents (B, C, h, w): B / n_view groups of views of one scene, views fastest.
        t: time steps (B,).
        text: embeddings (B, L, D).
        camera: (B, 16), or None.
        n_view: views of a group; 1 is plain 2D.

    A prior with a reference image also takes `reference`, see `Reference`.
    """

    def __call__(self, x: Tensor, t: Tensor, text: Any, camera: Tensor | None, n_view: int) -> Tensor: ...


def per_image(text: Tensor, count: int) -> Tensor:
    """Repeat text (n, L, D) of n prompts for their images: (count, L, D). Raises ValueError if n does not divide it."""
    if count % len(text):
        raise ValueError(f"{count} images cannot share {len(text)} prompts evenly")
    return text.repeat_interleave(count // len(text), dim=0)


def branches(
    denoise: Any,
    x: Tensor,
    t: Tensor,
    texts: Sequence[Tensor],
    camera: Tensor | None,
    n_view: int,
    **kwargs: Features,
) -> tuple[Tensor, ...]:
    """Predict the noise for each of K texts in one network call of batch K B.

    Args:
        denoise: a `Denoiser`; `kwargs` are passed to it.
        x: (B, C, h, w).
        t: (B,) or (1,).
        texts: usually (conditional, unconditional), each (n, L, D) with n dividing B.
        camera: the same for all branches, as in MVDream.

    Returns:
        K tensors like `x`, float32.
    """
    count = len(texts)
    text = torch.cat([per_image(part, len(x)) for part in texts])
    cameras = None if camera is None else torch.cat([camera] * count)
    t = t.reshape(-1).expand(len(x))
    eps = denoise(torch.cat([x] * count), torch.cat([t] * count), text, cameras, n_view, **kwargs)
    return eps.float().chunk(count)


def combine(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Return eps_u + s (eps_c - eps_u); s = 1 is the conditional prediction.

    threestudio's Stable Diffusion and DeepFloyd guidances count from the conditional side: their s is this s - 1.
    """
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


class Negatives(NamedTuple):
    """K negative prompts for each image: text (K, B, L, D) and weights (K, B) >= 0."""

    text: Tensor
    weights: Tensor


class Reference(NamedTuple):
    """Features of a reference image (R = 1) for the `reference` argument of a `Denoiser`.

    scale: guidance scale of the image; None: one scale for image and text together.
    """

    features: Features
    scale: float | None = None

    def repeated(self, *used: bool) -> Features:
        """Features for K branches; zeros for the branches that do not use them."""
        return {
            name: torch.cat([part if use else torch.zeros_like(part) for use in used])
            for name, part in self.features.items()
        }


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """Return the component of `x` (B, ...) perpendicular to `y`, per image."""
    norm = (y * y).flatten(1).sum(1).clamp(min=1e-6)
    share = (x * y).flatten(1).sum(1) / norm
    return x - share.reshape(-1, *[1] * (x.dim() - 1)) * y


def combine_perp_neg(
    eps_cond: Tensor, eps_uncond: Tensor, eps_negative: Sequence[Tensor], weights: Tensor, guidance_scale: float
) -> Tensor:
    """Combine predictions with negative prompts (Armandpour et al. 2023, "Perp-Neg").

    eps_u + s (d - sum_k w_k d_k^perp) with d = eps_c - eps_u and d_k = eps_k - eps_u: only the part of a negative
    prompt that is perpendicular to the prompt counts, so it cannot undo the prompt.

    Args:
        eps_negative: K tensors like `eps_cond` (B, ...).
        weights: (K, B).
    """
    step = direction = eps_cond - eps_uncond
    for eps, weight in zip(eps_negative, weights, strict=True):
        weight = weight.to(direction).reshape(-1, *[1] * (direction.dim() - 1))
        step = step - weight * perpendicular(eps - eps_uncond, direction)
    return eps_uncond + guidance_scale * step


@dataclass(frozen=True)
class Condition:
    """Everything that conditions a prior on B images, which are B / n_view groups of views, views fastest.

    Attributes:
        text: conditional and unconditional embeddings, each (n, L, D) with n dividing B.
        camera: (B, 16) or what else the prior takes for poses; None: no camera.
        n_view: views of a group.
        negatives: negative prompts for `combine_perp_neg`.
        plain_text: (1, L, D), the prompt without words for the view; for losses that train a network.
        c2w: poses (B, 4, 4); for losses that train a network.
        reference: features of a reference image.
        single_view_uncond: the unconditional branch denoises each view by itself, so that guidance also strengthens
            what views take from each other.
    """

    text: TextPair
    camera: Tensor | None = None
    n_view: int = 1
    negatives: Negatives | None = None
    plain_text: Tensor | None = None
    c2w: Tensor | None = None
    reference: Reference | None = None
    single_view_uncond: bool = False

    def reference_kwargs(self, *used: bool) -> dict[str, Features]:
        """Arguments of a denoiser for the reference image in K branches; empty without one."""
        return {} if self.reference is None else {"reference": self.reference.repeated(*used)}


def predict(
    denoise: Denoiser, x: Tensor, t: Tensor, condition: Condition, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Predict the noise with classifier-free guidance (Ho and Salimans 2022).

    With a reference image there may be two scales, a of the image and b of the text (MV-Adapter, arXiv 2412.03632, eq.
    6): e(0, 0) + a (e(0, image) - e(0, 0)) + b (e(text, image) - e(0, image)).

    Returns:
        The guided and the conditional prediction, like `x`; at scale 1 they are one and only that branch is computed.
    """
    camera, n_view, negatives, reference = condition.camera, condition.n_view, condition.negatives, condition.reference
    image_scale = guidance_scale if reference is None or reference.scale is None else reference.scale
    if negatives is None and guidance_scale == image_scale == 1:
        (eps,) = branches(denoise, x, t, condition.text[:1], camera, n_view, **condition.reference_kwargs(True))
        return eps, eps
    two_scales = reference is not None and (negatives is not None or image_scale != guidance_scale)
    texts = [
        *condition.text,
        *([] if negatives is None else negatives.text),
        *([condition.text[1]] if two_scales else []),
    ]
    uses_image = [True] * len(texts)
    last = len(texts) - 1 if two_scales else 1  # the branch without text and image
    uses_image[last] = False
    if condition.single_view_uncond:
        del texts[last], uses_image[last]
    eps_all = list(branches(denoise, x, t, texts, camera, n_view, **condition.reference_kwargs(*uses_image)))
    if condition.single_view_uncond:
        eps_all[last:last] = branches(denoise, x, t, condition.text[1:], None, 1)
    eps_cond, eps_uncond, *others = eps_all
    eps_none = others.pop() if two_scales else eps_uncond
    if negatives is None:
        eps = combine(eps_cond, eps_uncond, guidance_scale)
    else:
        eps = combine_perp_neg(eps_cond, eps_uncond, others, negatives.weights, guidance_scale)
    return (eps + (image_scale - 1) * (eps_uncond - eps_none) if two_scales else eps), eps_cond


def guided(denoise: Denoiser, guidance_scale: float) -> Denoiser:
    """Wrap a denoiser with classifier-free guidance; its `text` is then a `Condition`, or a pair (cond, uncond)."""

    def call(x: Tensor, t: Tensor, text: TextPair | Condition, camera: Tensor | None, n_view: int) -> Tensor:
        condition = text if isinstance(text, Condition) else Condition(text, camera, n_view)
        return predict(denoise, x, t, condition, guidance_scale)[0]

    return call
