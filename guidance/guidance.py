"""Classifier-free guidance: the conditions of a diffusion prior, and the combination of its noise predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

TextPair = tuple[Tensor, Tensor]
"""Conditional and unconditional embeddings of n prompts, each (n, L, D): L tokens, D features."""
Features = Mapping[str, Tensor]
"""Features of R reference images by name: inputs (R, L, C) of self-attention layers by layer name (MV-Adapter), or
features of CLIP's image encoder and latents (ImageDream)."""


class Denoiser(Protocol):
    """Function (noisy latents (B, C, h, w), timesteps (B,), text, camera, n_view) -> predicted noise (B, C, h, w).

    `text` are embeddings (B, L, D), `camera` encoded cameras (from `Prior.camera`) or None, and `n_view` consecutive
    images are views of one object. A denoiser conditioned on reference images also takes the keyword argument
    `reference`, a dict of features of these images (`Features`).
    """

    def __call__(self, x: Tensor, t: Tensor, text: Any, camera: Tensor | None, n_view: int) -> Tensor: ...


def repeat_text(text: Tensor, count: int) -> Tensor:
    """Repeat the embeddings (n, L, D) of n prompts, each for count / n consecutive images; return (count, L, D)."""
    return text.repeat_interleave(count // len(text), dim=0)


def add_view(values: Tensor, last: Tensor) -> Tensor:
    """Put one more view after the V views of each of B objects; return (B * (V + 1), ...).

    `values` (B * V, ...) holds the V views of the first object, then those of the second, and so on. `last` (B, ...)
    holds the further view of each object.
    """
    return torch.cat([values.unflatten(0, (len(last), -1)), last[:, None]], dim=1).flatten(0, 1)


def predict_for_texts(
    denoise: Any, x: Tensor, t: Tensor, texts: Sequence[Tensor], camera: Tensor | None, n_view: int, **kwargs: Features
) -> tuple[Tensor, ...]:
    """Predict the noise of B latents for each of K texts, in one call of `denoise` (a `Denoiser`) with K * B images.

    Args:
        x, t: noisy latents (B, C, h, w) and timesteps, (B,) or (1,).
        texts: K text embeddings (n, L, D), where n divides B; each of the n serves B / n consecutive images.
        camera: encoded cameras of the B images, used with each of the K texts; None: no cameras.
        n_view: number of consecutive images that are views of one object.
        kwargs: further keyword arguments of `denoise`, such as `reference`: features (K, ...) of a reference image by
            name, of which row k serves the B images of text k.

    Returns:
        K noise predictions (B, C, h, w), float32.
    """
    count = len(texts)
    text = torch.cat([repeat_text(part, len(x)) for part in texts])
    cameras = None if camera is None else torch.cat([camera] * count)
    t = t.reshape(-1).expand(len(x))
    eps = denoise(torch.cat([x] * count), torch.cat([t] * count), text, cameras, n_view, **kwargs)
    return eps.float().chunk(count)


def combine(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Return the guided noise eps_u + s (eps_c - eps_u) with s = `guidance_scale`; s = 1: no guidance.

    `eps_cond` and `eps_uncond` are eps_c and eps_u, the noise (B, C, h, w) predicted with and without the prompt. The
    guidance scale of threestudio's Stable Diffusion is this s minus 1.
    """
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


class Negatives(NamedTuple):
    """K negative prompts (Perp-Neg) for each of B images: text embeddings (K, B, L, D) and weights (K, B) >= 0.

    The weight of a prompt scales the noise that `combine_perp_neg` subtracts for it; 0: the prompt has no effect.
    """

    text: Tensor
    weights: Tensor


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """Return the component of `x` (B, ...) perpendicular to `y` (B, ...), separately for each image."""
    norm = (y * y).flatten(1).sum(1).clamp(min=1e-6)
    share = (x * y).flatten(1).sum(1) / norm
    return x - share.reshape(-1, *[1] * (x.dim() - 1)) * y


def combine_perp_neg(
    eps_cond: Tensor, eps_uncond: Tensor, eps_negative: Sequence[Tensor], weights: Tensor, guidance_scale: float
) -> Tensor:
    """Return the guided noise (B, C, h, w) with K negative prompts (Perp-Neg, Armandpour et al. 2023).

    The result is eps_u + s (d - sum_k w_k d_k^perp) with guidance scale s, d = eps_c - eps_u and d_k = eps_k - eps_u.
    eps_c, eps_u and eps_k are the predictions for the prompt, without it and for negative prompt k. d_k^perp is the
    component of d_k perpendicular to d, so a negative prompt cannot cancel the prompt. `eps_negative` holds the K
    predictions eps_k, `weights` (K, B) the factors w_k >= 0.
    """
    step = direction = eps_cond - eps_uncond
    for eps, weight in zip(eps_negative, weights, strict=True):
        weight = weight.to(direction).reshape(-1, *[1] * (direction.dim() - 1))
        step = step - weight * perpendicular(eps - eps_uncond, direction)
    return eps_uncond + guidance_scale * step


@dataclass(frozen=True)
class Condition:
    """Text, cameras and images that condition a prior's predictions for B images.

    The B images are views of B / n_view scenes; the views of a scene are consecutive.

    Attributes:
        text: embeddings of the prompt and of the negative or empty prompt, each (n, L, D), where n divides B; each of
            the n serves B / n consecutive images.
        camera: result of `Prior.camera` for the B images, such as camera vectors (B, 16); None: no cameras.
        n_view: views per scene.
        negatives: further negative prompts with weights (Perp-Neg, see `combine_perp_neg`); None: no such prompts.
        plain_text: embedding (1, L, D) of the prompt without view-dependent words, for the LoRA of VSD; None: `text`.
        c2w: camera-to-world matrices (B, 4, 4), OpenGL axes, for the LoRA of VSD; None: no poses.
        reference: features of one reference image by name, each (1, ...), see `Features`; None: no image.
        single_view_uncond: whether the unconditional branch denoises each view separately, without its camera. The
            guidance then also amplifies the attention between views.
    """

    text: TextPair
    camera: Tensor | None = None
    n_view: int = 1
    negatives: Negatives | None = None
    plain_text: Tensor | None = None
    c2w: Tensor | None = None
    reference: Features | None = None
    single_view_uncond: bool = False

    def reference_kwargs(self, *used: bool) -> dict[str, Features]:
        """Return the keyword arguments with which a denoiser gets the reference image.

        Guidance needs K predictions for the same B images, such as with and without prompt. The denoiser makes them in
        one batch of K B images: first the B images of prediction 1, then those of prediction 2, and so on.

        Args:
            used: K flags, one per prediction. True: the features of the reference image are used. False: zeros replace
                them, as in the unconditional branch.

        Returns:
            {"reference": features by name, each (K, ...)}, or {} if the condition has no reference image. The denoiser
            uses row k for all B images of prediction k.
        """
        if self.reference is None:
            return {}
        parts = self.reference.items()
        return {
            "reference": {name: torch.cat([x if use else torch.zeros_like(x) for use in used]) for name, x in parts}
        }


def predict(
    denoise: Denoiser, x: Tensor, t: Tensor, condition: Condition, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Predict the noise with classifier-free guidance (Ho and Salimans 2022): eps_u + s (eps_c - eps_u).

    eps_c is the noise that `denoise` predicts with the prompt, the cameras and the reference image. eps_u is predicted
    with the negative or empty prompt, without the image, and with the cameras unless `condition.single_view_uncond` is
    True. If `condition.negatives` is not None, `combine_perp_neg` also subtracts the predictions for these prompts.

    Args:
        denoise: predicts noise without guidance.
        x: noisy latents (B, C, h, w).
        t: timesteps (B,), or (1,) for all images.
        condition: prompts, cameras and reference image of the B images.
        guidance_scale: s.

    Returns:
        The guided noise and eps_c, both like `x`, float32. If s is 1 and `condition.negatives` is None, eps_u is not
        computed, and both are the same tensor.
    """
    camera, n_view, alone = condition.camera, condition.n_view, condition.single_view_uncond
    negatives = condition.negatives
    if negatives is None and guidance_scale == 1:
        (eps,) = predict_for_texts(
            denoise, x, t, condition.text[:1], camera, n_view, **condition.reference_kwargs(True)
        )
        return eps, eps
    more = () if negatives is None else negatives.text
    texts = [condition.text[0], *(() if alone else condition.text[1:]), *more]
    uses_image = [True, *(() if alone else (False,)), *(True for _ in more)]
    eps_cond, *others = predict_for_texts(
        denoise, x, t, texts, camera, n_view, **condition.reference_kwargs(*uses_image)
    )
    eps_uncond = predict_for_texts(denoise, x, t, condition.text[1:], None, 1)[0] if alone else others.pop(0)
    if negatives is None:
        return combine(eps_cond, eps_uncond, guidance_scale), eps_cond
    return combine_perp_neg(eps_cond, eps_uncond, others, negatives.weights, guidance_scale), eps_cond


def guided(denoise: Denoiser, condition: Condition, guidance_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function (latents (B, C, h, w), timesteps (B,)) -> noise (B, C, h, w) for samplers.

    The noise is predicted by `denoise` with classifier-free guidance, for the prompts, cameras and reference image in
    `condition`; see `predict`.
    """

    def guided_noise(x: Tensor, t: Tensor) -> Tensor:
        return predict(denoise, x, t, condition, guidance_scale)[0]

    return guided_noise
