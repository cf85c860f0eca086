"""Noise schedule of 3DiM, continuous in the logarithm of the signal-to-noise ratio (log-SNR).

Symbols: logsnr = log(alpha^2 / sigma^2), alpha^2 = alpha_bar = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr), and
z = alpha x0 + sigma eps (Watson et al. 2023, section 2.1; Kingma et al. 2021, "VDM"). All functions take `logsnr` as
(B,) for tensors (B, ...), or as a scalar () for tensors of any shape.
"""

from math import atan, exp
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]

LOGSNR_MIN, LOGSNR_MAX = -20.0, 20.0


def logsnr_cosine(t: Tensor, logsnr_min: float = LOGSNR_MIN, logsnr_max: float = LOGSNR_MAX) -> Tensor:
    """Return log-SNR -2 log tan(a t + b), float32, for times t (...) in [0, 1].

    It is `logsnr_max` (clean) at t = 0 and `logsnr_min` (noise) at t = 1. This is the cosine schedule (Nichol and
    Dhariwal 2021) in the form of Salimans and Ho 2022. It is computed in float64, because the tangent has a pole near
    t = 1, where float32 would be wrong by 1e-3.
    """
    b = atan(exp(-0.5 * logsnr_max))
    a = atan(exp(-0.5 * logsnr_min)) - b
    return (-2 * torch.log(torch.tan(a * t.double() + b))).clamp(logsnr_min, logsnr_max).float()


def logsnr_steps(steps: int = 256) -> Tensor:
    """Return the log-SNR (steps + 1,) at the start and after each sampling step, from noise to clean, uniform in t.

    Raises:
        ValueError: steps is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} is out of range; it should be at least 1")
    return logsnr_cosine(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def alpha_sigma(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, each (B, 1, ...), to be multiplied with `like` (B, ...).

    Both are computed by a sigmoid, because sqrt(1 - alpha^2) loses precision near alpha = 1.
    """
    level = logsnr.to(like.device).reshape(-1, *[1] * (like.dim() - 1))
    return level.sigmoid().sqrt(), (-level).sigmoid().sqrt()


def add_noise(x0: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
    """Return the noisy z = alpha x0 + sigma noise, for clean `x0` (B, ...) and unit Gaussian `noise` (B, ...)."""
    alpha, sigma = alpha_sigma(logsnr, x0)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the training target (B, ...) of a network whose input is z = add_noise(x0, noise, logsnr).

    The target is `noise`, `x0`, or v = alpha noise - sigma x0 (Salimans and Ho 2022, appendix D).
    """
    alpha, sigma = alpha_sigma(logsnr, x0)
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[prediction]


def x0_from_output(z: Tensor, output: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Convert a network output (B, ...) for noisy `z` (B, ...) to a prediction of the clean x0 (B, ...).

    For prediction="epsilon" the result is very large where `z` is almost pure noise.
    """
    alpha, sigma = alpha_sigma(logsnr, z)
    if prediction == "sample":
        return output
    return alpha * z - sigma * output if prediction == "v_prediction" else (z - sigma * output) / alpha


def posterior(z: Tensor, x0: Tensor, logsnr: Tensor, logsnr_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(z' | z, x0), where z' has less noise than z: `logsnr_next` >= `logsnr`.

    With c = 1 - exp(logsnr - logsnr'), the mean (B, ...) is alpha' ((1 - c) z / alpha + c x0). The variance (B, 1, ...)
    is sigma'^2 c, the smaller of the two usual choices (Ho et al. 2020, eq. 7).
    """
    alpha, _ = alpha_sigma(logsnr, z)
    alpha_next, sigma_next = alpha_sigma(logsnr_next, z)
    c = -torch.expm1(logsnr - logsnr_next).to(z.device).reshape(-1, *[1] * (z.dim() - 1))
    return alpha_next * (z * (1 - c) / alpha + c * x0), sigma_next**2 * c
