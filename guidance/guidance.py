"""Classifier-free guidance: the conditions of a diffusion prior, and the combination of its noise predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

TextPair = tuple[Tensor, Tensor]
"""Conditional and unconditional embeddings of n prompts, each (n, L, D): L tokens, D features."""
Features = Mapping[str, Tensor]
"""Inputs of a network's self-attention layers for R reference images: (R, L, C) by the layer's name."""


class Denoiser(Protocol):
    """Function that predicts the noise in `x`, with arguments as in `Prior.denoise`.

    A denoiser of a prior with a reference image also takes the argument `reference`: features, see `Features`.
    """

    def __call__(self, x: Tensor, t: Tensor, text: Any, camera: Tensor | None, n_view: int) -> Tensor: ...


def per_image(text: Tensor, count: int) -> Tensor:
    """Repeat the embeddings `text` (n, L, D) of n prompts for count / n consecutive images each: (count, L, D)."""
    return text.repeat_interleave(count // len(text), dim=0)


def branches(
    denoise: Any, x: Tensor, t: Tensor, texts: Sequence[Tensor], camera: Tensor | None, n_view: int, **kwargs: Features
) -> tuple[Tensor, ...]:
    """Predict the noise in `x` (B, C, h, w) for each of K texts, in one network call with a batch of K B images.

    `denoise` also receives `kwargs`, and the same cameras for all K branches, as in MVDream. `t` is (B,), or (1,) for
    all images; each text is (n, L, D) with n dividing B. Returns K noise predictions like `x`, float32.
    """
    count = len(texts)
    text = torch.cat([per_image(part, len(x)) for part in texts])
    cameras = None if camera is None else torch.cat([camera] * count)
    t = t.reshape(-1).expand(len(x))
    eps = denoise(torch.cat([x] * count), torch.cat([t] * count), text, cameras, n_view, **kwargs)
    return eps.float().chunk(count)


def combine(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
    """Return the guided noise eps_u + s (eps_c - eps_u), like both predictions (B, C, h, w); s = 1: no guidance.

    threestudio's Stable Diffusion and DeepFloyd guidances use eps_c + s (eps_c - eps_u): their s is this s minus 1.
    """
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


class Negatives(NamedTuple):
    """K negative prompts for each of B images: text embeddings (K, B, L, D) and weights (K, B) >= 0."""

    text: Tensor
    weights: Tensor


class Reference(NamedTuple):
    """Features (1, L, C) of one reference image, and its guidance scale; None: image and text share one scale."""

    features: Features
    scale: float | None = None

    def repeated(self, *used: bool) -> Features:
        """Return features (K, L, C) by layer name for K branches; a branch whose `used` is False gets zeros."""
        return {
            name: torch.cat([part if use else torch.zeros_like(part) for use in used])
            for name, part in self.features.items()
        }


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """Return, for each image, the component of `x` (B, ...) perpendicular to `y` (B, ...)."""
    norm = (y * y).flatten(1).sum(1).clamp(min=1e-6)
    share = (x * y).flatten(1).sum(1) / norm
    return x - share.reshape(-1, *[1] * (x.dim() - 1)) * y


def combine_perp_neg(
    eps_cond: Tensor, eps_uncond: Tensor, eps_negative: Sequence[Tensor], weights: Tensor, guidance_scale: float
) -> Tensor:
    """Combine predictions, each (B, C, h, w), with K negative prompts (Armandpour et al. 2023, "Perp-Neg").

    The result is eps_u + s (d - sum_k w_k d_k^perp) with d = eps_c - eps_u and d_k = eps_k - eps_u. d_k^perp is the
    component of d_k perpendicular to d, so a negative prompt cannot cancel the prompt. `weights`: w_k >= 0, (K, B).
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
        text: conditional and unconditional embeddings, each (n, L, D) with n dividing B.
        camera: cameras in the form that `Prior.camera` returns, such as camera vectors (B, 16); None: no cameras.
        n_view: views per scene.
        negatives: negative prompts for `combine_perp_neg`.
        plain_text: embedding (1, L, D) of the prompt without view-dependent words, for the LoRA of VSD.
        c2w: camera-to-world matrices (B, 4, 4), for the LoRA of VSD.
        reference: features of a reference image.
        single_view_uncond: whether the unconditional branch denoises each view by itself. The guidance then also
            amplifies the attention between views.
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
        """Return the keyword arguments of a denoiser for the reference image, {} without one; see `repeated`."""
        return {} if self.reference is None else {"reference": self.reference.repeated(*used)}


def predict(
    denoise: Denoiser, x: Tensor, t: Tensor, condition: Condition, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """Predict the noise with classifier-free guidance (Ho and Salimans 2022).

    With a reference image there may be two scales, a of the image and b of the text (MV-Adapter, arXiv 2412.03632, eq.
    6): e(0, 0) + a (e(0, image) - e(0, 0)) + b (e(text, image) - e(0, image)).

    Args:
        x: noisy latents (B, C, h, w).
        t: time steps (B,), or (1,) for all images.
        condition: its `reference.scale` is a; a = b if that is None.
        guidance_scale: b.

    Returns:
        The guided and the conditional noise, both like `x`, float32. If all scales are 1 and there are no negative
        prompts, both are the same tensor, and only the conditional branch is computed.
    """
    camera, n_view, negatives, reference = condition.camera, condition.n_view, condition.negatives, condition.reference
    image_scale = guidance_scale if reference is None or reference.scale is None else reference.scale
    if negatives is None and guidance_scale == image_scale == 1:
        (eps,) = branches(denoise, x, t, condition.text[:1], camera, n_view, **condition.reference_kwargs(True))
        return eps, eps
    two_scales = reference is not None and (negatives is not None or image_scale != guidance_scale)
    texts = [*condition.text, *(() if negatives is None else negatives.text)]
    if two_scales:
        texts.append(condition.text[1])
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


def guided(denoise: Denoiser, condition: Condition, guidance_scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function of latents (B, C, h, w) and timesteps (B,) that predicts the guided noise, see `predict`."""

    def guided_noise(x: Tensor, t: Tensor) -> Tensor:
        return predict(denoise, x, t, condition, guidance_scale)[0]

    return guided_noise
