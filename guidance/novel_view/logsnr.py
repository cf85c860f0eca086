"""Noise schedule of 3DiM, continuous in the logarithm of the signal-to-noise ratio.

Symbols: logsnr = log(alpha^2 / sigma^2), alpha^2 = alpha_bar = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr), and
z = alpha x0 + sigma eps (Watson et al. 2023, section 2.1; Kingma et al. 2021, "VDM"). A `logsnr` (B,) belongs to
tensors (B, ...), a scalar one to tensors of any shape.
"""

from __future__ import annotations

from math import atan, exp
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]

LOGSNR_MIN, LOGSNR_MAX = -20.0, 20.0


def logsnr_cosine(t: Tensor, logsnr_min: float = LOGSNR_MIN, logsnr_max: float = LOGSNR_MAX) -> Tensor:
    """Return -2 log tan(a t + b) for t in [0, 1], float32: `logsnr_max` (clean) at 0, `logsnr_min` at 1.

    The cosine schedule (Nichol and Dhariwal 2021) in the form of Salimans and Ho 2022, truncated at both ends.
    Evaluated in float64: near t = 1 the tangent has a pole, and float32 would overshoot the end by 1e-3.
    """
    b = atan(exp(-0.5 * logsnr_max))
    a = atan(exp(-0.5 * logsnr_min)) - b
    return (-2 * torch.log(torch.tan(a * t.double() + b))).clamp(logsnr_min, logsnr_max).float()


def logsnr_steps(steps: int = 256) -> Tensor:
    """Return the `steps` + 1 levels of a sampling chain, from noise to clean, equally spaced in t.

    Raises:
        ValueError: steps is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} is out of range; it should be at least 1")
    return logsnr_cosine(torch.linspace(1, 0, steps + 1, dtype=torch.float64))


def alpha_sigma(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, shaped to broadcast over `like` (B, ...); two sigmoids, as 1 - alpha^2 cancels."""
    level = logsnr.to(like.device).reshape(-1, *[1] * (like.dim() - 1))
    return level.sigmoid().sqrt(), (-level).sigmoid().sqrt()


def add_noise(x0: Tensor, noise: Tensor, logsnr: Tensor) -> Tensor:
    """Return z of clean `x0` (B, ...) and unit Gaussian `noise`."""
    alpha, sigma = alpha_sigma(logsnr, x0)
    return alpha * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Return the training target of a network for z = add_noise(x0, noise, logsnr).

    v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D).
    """
    alpha, sigma = alpha_sigma(logsnr, x0)
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[prediction]


def x0_from_output(z: Tensor, output: Tensor, logsnr: Tensor, prediction: Prediction = "epsilon") -> Tensor:
    """Convert a network output for `z` to clean images; unbounded for eps where there is almost no signal."""
    alpha, sigma = alpha_sigma(logsnr, z)
    if prediction == "sample":
        return output
    return alpha * z - sigma * output if prediction == "v_prediction" else (z - sigma * output) / alpha


def posterior(z: Tensor, x0: Tensor, logsnr: Tensor, logsnr_next: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean (like `z`) and variance of the less noisy z' at `logsnr_next` >= `logsnr`, given z and clean x0.

    q(z' | z, x0) of the forward process, the smaller of the two usual variances (Ho et al. 2020, eq. 7), with
    c = 1 - exp(logsnr - logsnr') : mean = alpha' ((1 - c) z / alpha + c x0), variance = sigma'^2 c.
    """
    alpha, _ = alpha_sigma(logsnr, z)
    alpha_next, sigma_next = alpha_sigma(logsnr_next, z)
    c = -torch.expm1(logsnr - logsnr_next).to(z.device).reshape(-1, *[1] * (z.dim() - 1))
    return alpha_next * (z * (1 - c) / alpha + c * x0), sigma_next**2 * c
