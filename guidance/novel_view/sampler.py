"""Noise schedule, interface of novel-view models, and ancestral sampling of views (3DiM, sections 2.1, 2.2 and 7.3).

The schedule is continuous in logsnr = log(alpha^2 / sigma^2), with alpha^2 = sigmoid(logsnr), sigma^2 =
sigmoid(-logsnr) and z = alpha x0 + sigma eps (Kingma et al. 2021, "VDM"). Functions take `logsnr` as (B,), or () for
the whole batch. Each denoising step is conditioned on one known view; a finished view becomes a known view. With
steps = 1 and a network that predicts the "sample", each view is predicted in one step from white noise.
"""

from collections.abc import Callable, Sequence
from math import atan, exp
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from threedgen.guidance.guidance import combine
from threedgen.guidance.sampling import fresh_noise

if TYPE_CHECKING:
    from .xunet import LatentPairs, XUNet

ViewModel: TypeAlias = "XUNet | LatentPairs"
"""Network that denoises a target view, given one clean condition view. Views are images or latents."""
Progress = Callable[[int, int, Tensor], None]
StrategyName = Literal["stochastic", "first", "last"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
LOGSNR_MIN, LOGSNR_MAX = -20.0, 20.0


def logsnr_cosine(t: Tensor) -> Tensor:
    """Return the log-SNR (...) of the cosine schedule at times t (...): 20 (clean) at t = 0, -20 (noise) at t = 1.

    logsnr = -2 log tan(a t + b) with constants a, b (Nichol and Dhariwal 2021, Salimans and Ho 2022). The result is
    float32. It is computed in float64, because tan has a pole near t = 1.
    """
    b = atan(exp(-0.5 * LOGSNR_MAX))
    a = atan(exp(-0.5 * LOGSNR_MIN)) - b
    return (-2 * torch.log(torch.tan(a * t.double() + b))).clamp(LOGSNR_MIN, LOGSNR_MAX).float()


def logsnr_steps(steps: int = 256) -> Tensor:
    """Return the log-SNR before the first and after each of `steps` denoising steps, (steps + 1,), from -20 to 20.

    These are values of `logsnr_cosine` at equal distances in time.
    """
    return logsnr_cosine(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def alpha_sigma(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma of z = alpha x0 + sigma eps, as (B or 1, 1, ...) to broadcast with `like` (B, ...).

    alpha^2 = sigmoid(logsnr) and sigma^2 = sigmoid(-logsnr), for a log-SNR (B,) or ().
    """
    level = logsnr.to(like.device).reshape(-1, *[1] * (like.dim() - 1))
    return level.sigmoid().sqrt(), (-level).sigmoid().sqrt()


def add_noise(x0: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
    """Return alpha x0 + sigma noise (B, ...), with alpha^2 = sigmoid(logsnr) and sigma^2 = sigmoid(-logsnr).

    `x0` and Gaussian `noise` are (B, ...), the log-SNR `logsnr` is (B,) or ().
    """
    alpha, sigma = alpha_sigma(logsnr, x0)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the training target (B, ...) of a network, for clean `x0` and Gaussian `noise`, both (B, ...).

    The target is `noise` for prediction "epsilon", `x0` for "sample" and v = alpha noise - sigma x0 for "v_prediction",
    with alpha^2 = sigmoid(logsnr) and sigma^2 = sigmoid(-logsnr) for the log-SNR `logsnr`, (B,) or ().
    """
    alpha, sigma = alpha_sigma(logsnr, x0)
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[prediction]


def x0_from_output(z: Tensor, output: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the clean tensor x0 (B, ...) that a network predicts by its `output` (B, ...) for noisy `z` (B, ...).

    `logsnr`, (B,) or (), is the log-SNR of z = alpha x0 + sigma eps: alpha^2 = sigmoid(logsnr), sigma^2 =
    sigmoid(-logsnr). The output is the noise eps for `prediction` "epsilon", x0 for "sample" and
    v = alpha eps - sigma x0 for "v_prediction".
    """
    alpha, sigma = alpha_sigma(logsnr, z)
    if prediction == "sample":
        return output
    return alpha * z - sigma * output if prediction == "v_prediction" else (z - sigma * output) / alpha


def posterior(z: Tensor, x0: Tensor, logsnr: Tensor, logsnr_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (B, ...) and variance (B or 1, 1, ...) of q(z' | z, x0), for a step from z to the less noisy z'.

    `z` and `x0` are (B, ...). `logsnr` and `logsnr_next`, (B,) or (), are the log-SNR of z and of z'. The mean is
    alpha' ((1 - c) z / alpha + c x0) with c = 1 - exp(logsnr - logsnr_next). The variance is sigma'^2 c, the smaller of
    the two usual choices (Ho et al. 2020, eq. 7). Here alpha^2 = sigmoid(logsnr), alpha'^2 = sigmoid(logsnr_next) and
    sigma'^2 = sigmoid(-logsnr_next).
    """
    alpha, _ = alpha_sigma(logsnr, z)
    alpha_next, sigma_next = alpha_sigma(logsnr_next, z)
    c = -torch.expm1(logsnr - logsnr_next).to(z.device).reshape(-1, *[1] * (z.dim() - 1))
    return alpha_next * (z * (1 - c) / alpha + c * x0), sigma_next**2 * c


def candidates(strategy: StrategyName, known: int, last: int = 1) -> range:
    """Return the indices of the known views, 0..known-1, that may be the condition of a denoising step.

    The known views, `known` in number, are the input views, followed by the finished ones. With the strategy
    "stochastic" all of them may be the condition, with "first" only the first view, with "last" the newest `last`
    views.
    """
    return {"stochastic": range(known), "first": range(1), "last": range(max(0, known - last), known)}[strategy]


def split_generator(generator: torch.Generator) -> list[torch.Generator]:
    """Return three generators with seeds from `generator`.

    `sample_views` uses the first for the noise of the views that it samples, the second for the choice of condition
    views, the third for the noise that replaces the condition in the unconditional branch.
    """
    seeds = torch.randint(2**62, (3,), generator=generator, device=generator.device).tolist()
    return [torch.Generator(generator.device).manual_seed(seed) for seed in seeds]


@torch.no_grad()
def sample_views(
    model: ViewModel,
    images: Tensor,
    c2w: Tensor,
    targets: Tensor,
    K: Tensor,
    generators: Sequence[torch.Generator],
    strategy: StrategyName = "stochastic",
    last: int = 1,
    steps: int = 256,
    guidance_scale: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Sample T novel views of each of S scenes, one after the other. Returns encoded views (S, T, C, H, W), float32.

    Encoded views are images or latents, as `model.encode_images` returns them. The model runs in the autocast context
    of the caller; everything else is float32.

    Args:
        images: encoded input views (S, N, C, H, W), N >= 1.
        c2w: camera-to-world poses of the input views (S, N, 4, 4), OpenGL axes.
        targets: camera-to-world poses of the views to sample (S, T, 4, 4), OpenGL axes.
        K: intrinsics (S, 3, 3) in pixels of images of size `model.image_size`, shared by all views of a scene.
        generators: one per scene, so a scene does not depend on the other scenes of the batch. The same generator gives
            the same noise for all strategies and guidance scales.
        strategy, last: set from which each denoising step chooses its condition view at random. The set consists of the
            input views and the finished samples ("stochastic"), only the first input view ("first"), or the newest
            `last` of all these views ("last").
        steps: denoising steps per view; 256 in the paper.
        guidance_scale: s in eps_u + s (eps_c - eps_u); 1: no guidance, 0: no condition. The paper has a weight of 3 for
            SRN cars and 2 for chairs, and does not specify whether the weight is s or s - 1.
        progress: called after each step with (steps done, total steps of all T views, predicted clean views (S, C, H,
            W) of that step).
    """
    scenes, inputs, count = len(images), images.shape[1], targets.shape[1]
    rows = torch.arange(scenes, device=images.device)
    noise, picks, dropped = zip(*map(split_generator, generators), strict=True)
    views = torch.cat([images.float(), images.new_zeros(scenes, count, *images.shape[2:], dtype=torch.float32)], dim=1)
    poses = torch.cat([c2w, targets], dim=1).float()
    levels = logsnr_steps(steps).to(images.device)
    for done in range(count):
        new, choice = inputs + done, candidates(strategy, inputs + done, last)
        z = fresh_noise(views[:, 0], noise)
        for step in range(steps):
            random = [int(torch.randint(len(choice), (), generator=g, device=g.device)) for g in picks]
            picked = torch.tensor([choice[k] for k in random], device=images.device)
            pair = torch.stack([poses[rows, picked], poses[:, new]], dim=1)
            blank = fresh_noise(z, dropped)
            x0 = guided_x0(model, views[rows, picked], blank, z, levels[step], pair, K, guidance_scale)
            x0 = clipped(model, x0)
            z, variance = posterior(z, x0, levels[step], levels[step + 1])
            if step + 1 < steps:
                z = z + variance.sqrt() * fresh_noise(z, noise)
            if progress is not None:
                progress(done * steps + step + 1, count * steps, x0)
        views[:, new] = clipped(model, z)
    return views[:, inputs:]


def clipped(model: ViewModel, x: Tensor) -> Tensor:
    return x if model.clip is None else x.clamp(-model.clip, model.clip)


def guided_x0(
    model: ViewModel, x: Tensor, blank: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, guidance_scale: float
) -> Tensor:
    """Predict the clean target views (S, C, H, W) with classifier-free guidance.

    Guidance has the same result for outputs x0, eps and v, because for a fixed z they are affine functions of each
    other.

    Args:
        x: clean condition views (S, C, H, W).
        blank: noise (S, C, H, W) that replaces `x` in the unconditional branch.
        z, logsnr: noisy target views (S, C, H, W) and their log-SNR, a scalar tensor ().
        c2w: camera-to-world poses (S, 2, 4, 4) of condition and target, OpenGL axes.
        K: intrinsics (S, 3, 3) in pixels of images of size `model.image_size`, shared by both views.
        guidance_scale: s in eps_u + s (eps_c - eps_u); 1: no guidance, 0: no condition.
    """
    branches = [(x, True)] if guidance_scale != 0 else []
    branches += [(blank, False)] if guidance_scale != 1 else []
    n, scenes = len(branches), len(z)
    has_condition = torch.tensor([kept for _, kept in branches], device=z.device).repeat_interleave(scenes)
    conditions = torch.cat([condition for condition, _ in branches])
    level = logsnr.reshape(1).expand(n * scenes)
    all_z, all_c2w, all_K = (torch.cat([tensor] * n) for tensor in (z, c2w, K))
    outputs = model.predict(conditions, all_z, level, all_c2w, all_K, has_condition).float().chunk(n)
    output = outputs[0] if n == 1 else combine(outputs[0], outputs[1], guidance_scale)
    return x0_from_output(z, output, logsnr, model.prediction)
