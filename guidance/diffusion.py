"""Classifier-free guidance and DDIM sampling: pure mathematics.

A network enters only as a ``Denoiser``: a function of (x, t, text, camera, n_view) that returns the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from threedgen.guidance.schedule import Schedule

TextPair = tuple[Tensor, Tensor]
Generators = torch.Generator | Sequence[torch.Generator] | None


class Denoiser(Protocol):
    """Predicts the noise in ``x`` (B,C,h,w) at ``t`` (B,) given text (B,L,D) and cameras (B,16) or None.

    One of a prior that has a picture of the thing also takes ``reference``, see ``Reference``.

    The B images are B / ``n_view`` groups of views of one scene, views fastest; ``n_view`` = 1 is plain 2D.
    """

    def __call__(self, x: Tensor, t: Tensor, text: Any, camera: Tensor | None, n_view: int) -> Tensor: ...


def per_image(text: Tensor, count: int) -> Tensor:
    """Text (n,L,D) for n prompts -> (count,L,D): each repeated for its count / n consecutive images."""
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
    **more: Any,
) -> tuple[Tensor, ...]:
    """The noise (float32, like ``x``) that each of K texts amounts to, in one network call of batch K B.

    ``texts``: usually (conditional, unconditional), each (n,L,D) with n dividing B. All branches see the same
    camera: only the text differs (MVDream), and what else the denoiser is told.
    """
    count = len(texts)
    text = torch.cat([per_image(part, len(x)) for part in texts])
    cameras = None if camera is None else torch.cat([camera] * count)
    t = t.reshape(-1).expand(len(x))
    eps = denoise(torch.cat([x] * count), torch.cat([t] * count), text, cameras, n_view, **more)
    return eps.float().chunk(count)


def combine(eps_cond: Tensor, eps_uncond: Tensor, guidance_scale: float) -> Tensor:
    """eps_u + s (eps_c - eps_u), counted from the unconditional side: s = 1 is the plain conditional model.

    threestudio's Stable Diffusion and DeepFloyd guidances count from the other side: their s is this s - 1.
    """
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


class Negatives(NamedTuple):
    """K texts for each image to stay away from: text (K,B,L,D), and how strongly, weights (K,B) >= 0."""

    text: Tensor
    weights: Tensor


Features = Mapping[str, Tensor]
"""What the layers of a network saw of R pictures, (R,L,C) by their names."""


class Reference(NamedTuple):
    """What a prior saw of a picture of the thing, ``features`` of R = 1; it takes such as ``reference`` of ``denoise``.

    scale: of guidance towards the picture; None: as towards the text, of both together.
    """

    features: Features
    scale: float | None = None

    def shown(self, *seen: bool) -> Features:
        """To K branches, of which some do not see it: to them all of it is zero."""
        return {
            name: torch.cat([part if s else torch.zeros_like(part) for s in seen])
            for name, part in self.features.items()
        }


def perpendicular(x: Tensor, y: Tensor) -> Tensor:
    """What is left of ``x`` (B,...) without its share along ``y``, image by image."""
    size = (y * y).flatten(1).sum(1).clamp(min=1e-6)
    share = (x * y).flatten(1).sum(1) / size
    return x - share.reshape(-1, *[1] * (x.dim() - 1)) * y


def combine_perp_neg(
    eps_cond: Tensor, eps_uncond: Tensor, eps_negative: Sequence[Tensor], weights: Tensor, guidance_scale: float
) -> Tensor:
    """eps_u + s (d - sum_k w_k d_k^perp), d = eps_c - eps_u, d_k = eps_k - eps_u (Armandpour et al. 2023, "Perp-Neg").

    Of each negative text only the part counts that is perpendicular to what the prompt asks for, so that it cannot
    undo the prompt. ``weights`` (K,B).
    """
    wanted = eps_cond - eps_uncond
    step = wanted
    for eps, weight in zip(eps_negative, weights, strict=True):
        weight = weight.to(wanted).reshape(-1, *[1] * (wanted.dim() - 1))
        step = step - weight * perpendicular(eps - eps_uncond, wanted)
    return eps_uncond + guidance_scale * step


@dataclass(frozen=True)
class Conditions:
    """What a prior is told about B images, which are B / ``n_view`` groups of views, views fastest.

    text: (cond, uncond), each (n,L,D) with n dividing B.  camera: (B,16) or None.  negatives: texts to stay away from,
    see ``combine_perp_neg``.  reference: a picture of the thing.  For losses that learn, ``plain`` (1,L,D) is the
    prompt without words for the view, and ``c2w`` (B,4,4) the poses.  alone: what is guided away from is not told of
    views either: it draws each image by itself.
    """

    text: TextPair
    camera: Tensor | None = None
    n_view: int = 1
    negatives: Negatives | None = None
    plain: Tensor | None = None
    c2w: Tensor | None = None
    reference: Reference | None = None
    alone: bool = False

    def shown(self, *seen: bool) -> dict[str, Any]:
        """What ``denoise`` is told of the picture, in branches of which some see it; nothing if there is none."""
        return {} if self.reference is None else {"reference": self.reference.shown(*seen)}


def predict(denoise: Denoiser, x: Tensor, t: Tensor, given: Conditions, guidance_scale: float) -> tuple[Tensor, Tensor]:
    """(guided eps, conditional eps); at scale 1 they are the same and the other branch is not computed.

    With a picture of the thing there are two scales, a of the picture and b of the text (MV-Adapter, arXiv 2412.03632,
    eq. 6): e(0,0) + a (e(0,image) - e(0,0)) + b (e(text,image) - e(0,image)); at a = b the middle term falls out.
    Where images are ``alone`` in e(0,0), guidance is towards what views see of each other too.
    """
    camera, n_view, negatives, picture = given.camera, given.n_view, given.negatives, given.reference
    towards = guidance_scale if picture is None or picture.scale is None else picture.scale
    if negatives is None and guidance_scale == towards == 1:
        (eps,) = branches(denoise, x, t, given.text[:1], camera, n_view, **given.shown(True))
        return eps, eps
    apart = picture is not None and (negatives is not None or towards != guidance_scale)
    texts = [*given.text, *([] if negatives is None else negatives.text), *([given.text[1]] if apart else [])]
    seen = [True] * len(texts)
    last = len(texts) - 1 if apart else 1  # it sees nothing
    seen[last] = False
    if given.alone:
        del texts[last], seen[last]
    told = list(branches(denoise, x, t, texts, camera, n_view, **given.shown(*seen)))
    if given.alone:
        told[last:last] = branches(denoise, x, t, given.text[1:], None, 1)
    eps_cond, eps_uncond, *others = told
    blind = others.pop() if apart else eps_uncond
    if negatives is None:
        eps = combine(eps_cond, eps_uncond, guidance_scale)
    else:
        eps = combine_perp_neg(eps_cond, eps_uncond, others, negatives.weights, guidance_scale)
    return (eps + (towards - 1) * (eps_uncond - blind) if apart else eps), eps_cond


def guided(denoise: Denoiser, guidance_scale: float) -> Denoiser:
    """Classifier-free guidance (Ho and Salimans 2022) as a denoiser whose ``text`` is a pair (cond, uncond), or all
    that is given."""

    def call(x: Tensor, t: Tensor, text: TextPair | Conditions, camera: Tensor | None, n_view: int) -> Tensor:
        given = text if isinstance(text, Conditions) else Conditions(text, camera, n_view)
        return predict(denoise, x, t, given, guidance_scale)[0]

    return call


OnStep = Callable[[int, int], object]
"""Called after each step: how many are made, and how many there are."""


def ddim_timesteps(steps: int, T: int = 1000, compat: bool = False) -> Tensor:
    """The t visited, ascending, (steps,) int64.

    Exactly ``steps`` of them, floor(i T / steps) + 1: the reference's grid whenever ``steps`` divides T.
    ``compat`` repeats the ldm code base for any count: stride T // steps, hence extra steps when ``steps``
    does not divide T (30 -> 31). ValueError if steps is not in 1..T.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"steps = {steps} is out of range; choose 1 to {T}")
    if compat:
        grid = torch.arange(0, T, T // steps) + 1
        return grid.clamp(max=T - 1)
    # The offset of 1 would leave the table if every t were visited.
    return torch.arange(steps) * T // steps + (1 if steps < T else 0)


def ddim_alphas(schedule: Schedule, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_bar at each of the ascending ``timesteps`` and at the one after it in sampling order, float64.

    The last step lands on alpha_bar[0], not on 1: Stable Diffusion is sampled without the final clean step.
    """
    alpha_bar = schedule.alpha_bar.cpu().double()
    a = alpha_bar[timesteps]
    return a, torch.cat([alpha_bar[:1], a[:-1]])


def ddim_sigma(a: Tensor, a_prev: Tensor, eta: float) -> Tensor:
    """Standard deviation of a step's fresh noise (Song et al. 2021, eq. 16): eta 0 is DDIM, 1 like DDPM."""
    return eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)).clamp(min=0).sqrt()


def ddim_step(
    x: Tensor, eps: Tensor, a: Tensor, a_prev: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step from alpha_bar ``a`` to ``a_prev`` (scalar tensors) -> (x_prev, predicted x0) like ``x``.

    Song et al. 2021, eq. 12. ``noise`` like ``x`` is needed when ``eta`` > 0.
    """
    sigma = ddim_sigma(a, a_prev, eta)
    x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
    x_prev = a_prev.sqrt() * x0 + (1 - a_prev - sigma**2).clamp(min=0).sqrt() * eps
    if eta > 0:
        if noise is None:
            raise ValueError(f"eta = {eta} needs noise; pass a tensor like x, or eta = 0")
        x_prev = x_prev + sigma * noise
    return x_prev, x0


@torch.no_grad()
def ddim_sample(
    denoise: Denoiser,
    x_T: Tensor,
    text: Any,
    camera: Tensor | None,
    n_view: int,
    schedule: Schedule,
    steps: int = 50,
    eta: float = 0.0,
    generator: Generators = None,
    compat: bool = False,
    T: int | None = None,
    on_step: OnStep = lambda done, steps: None,
) -> Tensor:
    """From noise ``x_T`` (B,C,h,w) to a sample of the same shape.

    Wrap the network in ``guided`` for classifier-free guidance and pass ``text`` as its pair. ``generator`` (see
    ``fresh_noise``) is read only when ``eta`` > 0. ``T``: the steps begin below it, with latents that are half noise.
    ``on_step`` is also called before the first.
    """
    timesteps = ddim_timesteps(steps, T or schedule.T, compat)
    alphas, alphas_prev = ddim_alphas(schedule, timesteps)
    x = x_T
    on_step(0, len(timesteps))
    for i in reversed(range(len(timesteps))):
        t = torch.full((len(x),), int(timesteps[i]), device=x.device)
        eps = denoise(x, t, text, camera, n_view).to(x.dtype)
        noise = fresh_noise(x, generator) if eta > 0 else None
        x, _ = ddim_step(x, eps, alphas[i], alphas_prev[i], eta, noise)
        on_step(len(timesteps) - i, len(timesteps))
    return x


def ddim_redraw(
    denoise: Denoiser,
    z: Tensor,
    noise: Tensor,
    given: Conditions,
    schedule: Schedule,
    steps: int,
    strength: float,
    on_step: OnStep = lambda done, steps: None,
    eta: float = 0.0,
    generator: Generators = None,
) -> Tensor:
    """Draws latents ``z`` (B,C,h,w) again: ``strength`` in (0, 1] of all ``noise`` is added, and taken away by DDIM.

    SDEdit (Meng et al. 2022): little noise keeps shapes and colours and renews what is fine; 1 keeps next to nothing.
    ``steps``: of the whole way from noise; of them the share ``strength`` is made. ``denoise``: of ``guided``.
    """
    steps = max(1, round(strength * steps))
    T = max(steps, round(strength * schedule.T))
    t = ddim_timesteps(steps, T)[-1].to(z.device)
    x = schedule.add_noise(z, noise, t)
    camera, n_view = given.camera, given.n_view
    return ddim_sample(denoise, x, given, camera, n_view, schedule, steps, eta, generator, T=T, on_step=on_step)


def fresh_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Unit Gaussian noise like ``like`` (B,...), drawn where the generator lives: from a CPU one always the same.

    Of several generators each draws its share of the B, which are divided evenly.
    """
    if isinstance(generator, Sequence):
        if len(like) % len(generator):
            raise ValueError(f"{len(like)} images cannot be shared by {len(generator)} generators evenly")
        shares = like.split(len(like) // len(generator))
        return torch.cat([fresh_noise(share, one) for share, one in zip(shares, generator, strict=True)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like)
