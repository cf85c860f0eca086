"""Noise schedules and parameterisations: pure mathematics.

Symbols follow the papers: a = alpha_bar_t, x_t = sqrt(a) x_0 + sqrt(1-a) eps (Ho et al. 2020, eq. 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, log, pi
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from threedgen.guidance.choices import Shift

Prediction = Literal["epsilon", "v_prediction"]
Timesteps = Tensor | int
MOST_STEPS, LEAST_SIGNAL = 10_000, 1e-12
"""Timesteps of a schedule, and the alpha_bar that has to be left at its end."""


@dataclass(frozen=True)
class Schedule:
    """The forward process: ``betas`` and ``alpha_bar`` (T,) float32, and what the network predicts."""

    betas: Tensor
    alpha_bar: Tensor
    prediction: Prediction = "epsilon"

    @classmethod
    def from_betas(cls, betas: Tensor, prediction: Prediction = "epsilon") -> Schedule:
        """Accumulates in float64: a float32 product of 1000 factors would already be off by 1e-5. ValueError for what
        would divide by zero later."""
        betas = betas.double()
        alpha_bar = torch.cumprod(1 - betas, 0)
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1) & (alpha_bar > LEAST_SIGNAL)).all() or not len(betas):
            raise ValueError("betas should be numbers between 0 and 1 that leave some of the picture at the end")
        return cls(betas.float(), alpha_bar.float(), prediction)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, T: int = 1000, prediction: Prediction = "epsilon"
    ) -> Schedule:
        """sqrt(beta) rises linearly: Stable Diffusion's schedule (which the ldm code base calls "linear")."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls.from_betas(roots**2, prediction)

    @classmethod
    def linear(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, T: int = 1000, prediction: Prediction = "epsilon"
    ) -> Schedule:
        """beta rises linearly (Ho et al. 2020, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64), prediction)

    @classmethod
    def cosine(cls, T: int = 1000, prediction: Prediction = "epsilon") -> Schedule:
        """alpha_bar follows a squared cosine (Nichol and Dhariwal 2021, eq. 17), beta capped."""
        curve = [cos((i / T + 0.008) / 1.008 * pi / 2) ** 2 for i in range(T + 1)]
        betas = [min(1 - curve[i + 1] / curve[i], 0.999) for i in range(T)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float64), prediction)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> Schedule:
        """From the scheduler_config.json of a diffusers folder. ValueError for a schedule unknown here."""
        prediction = config.get("prediction_type", "epsilon")
        name, T = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {prediction!r} is unknown; use 'epsilon' or 'v_prediction'")
        if not 1 <= T <= MOST_STEPS:
            raise ValueError(f"num_train_timesteps should be 1 to {MOST_STEPS} (got {T})")
        if config.get("rescale_betas_zero_snr"):
            raise ValueError("rescale_betas_zero_snr is not supported: at alpha_bar 0 eps does not give x0")
        if config.get("trained_betas") is not None:
            return cls.from_betas(torch.tensor(config["trained_betas"], dtype=torch.float64), prediction)
        if name == "squaredcos_cap_v2":
            return cls.cosine(T, prediction)
        if name not in ("linear", "scaled_linear"):
            known = "'scaled_linear', 'linear' or 'squaredcos_cap_v2'"
            raise ValueError(f"beta_schedule {name!r} is unknown; use {known}")
        make = cls.linear if name == "linear" else cls.scaled_linear
        return make(config.get("beta_start", 1e-4), config.get("beta_end", 0.02), T, prediction)

    def shifted(self, scale: float, mode: Shift = "interpolated") -> Schedule:
        """The same with ``scale`` times less signal to noise: log SNR'_t = log SNR_t - w_t log scale.

        Several views tell of each other what noise hides in one (MV-Adapter, arXiv 2412.03632, section 4.3). w_t is 1,
        or interpolated, t / (T - 1). Raises ValueError for a scale below 1.
        """
        if not scale >= 1:
            raise ValueError(f"the signal-to-noise ratio is shifted by a factor of at least 1 (got {scale})")
        log_snr = torch.logit(torch.cumprod(1 - self.betas.double(), 0))
        share = torch.linspace(0, 1, self.T).to(log_snr) if mode == "interpolated" else 1.0
        alpha_bar = torch.sigmoid(log_snr - share * log(scale))
        before = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
        return Schedule.from_betas(1 - alpha_bar / before, self.prediction)

    def timesteps_in(self, other: Schedule) -> Tensor:
        """The timesteps (T,) of ``other`` at which it has the noise that this one has at 0 ... T - 1: fractions, from
        its first to its last."""
        noise, known = (-torch.logit(each.alpha_bar.double().cpu()) for each in (self, other))
        return torch.from_numpy(np.interp(noise, known, np.arange(other.T))).float()

    @property
    def T(self) -> int:
        """Number of training timesteps; valid t are 0 .. T-1."""
        return len(self.alpha_bar)

    def to(self, device: torch.device | str) -> Schedule:
        return Schedule(self.betas.to(device), self.alpha_bar.to(device), self.prediction)

    def alpha_sigma(self, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), float32, shaped to broadcast over ``like`` (B,...)."""
        index = torch.as_tensor(t, device=self.alpha_bar.device)
        a = self.alpha_bar[index].to(like.device).reshape(-1, *[1] * (like.dim() - 1))
        return a.sqrt(), (1 - a).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """x_t of clean ``x0`` (B,...) and unit Gaussian ``noise`` at ``t``: (B,) or one number for all."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def x0_from_eps(self, x: Tensor, eps: Tensor, t: Timesteps) -> Tensor:
        alpha, sigma = self.alpha_sigma(t, x)
        return (x - sigma * eps) / alpha

    def eps_from_output(self, x: Tensor, output: Tensor, t: Timesteps) -> Tensor:
        """The noise, whatever the network predicts: of v it is sqrt(a) v + sqrt(1-a) x."""
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t, x)
        return alpha * output + sigma * x

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Weights (B,) of squared errors at ``t`` (B,): min(SNR, gamma) / SNR, of v / (SNR + 1), as if of x0 with
        weight min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""
        alpha_bar = self.alpha_bar[t]
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def target(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """What the network should output in training for x_t = add_noise(x0, noise, t).

        v = sqrt(a) eps - sqrt(1-a) x0 (Salimans and Ho 2022, appendix D).
        """
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * noise - sigma * x0
