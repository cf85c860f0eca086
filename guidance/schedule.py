"""Noise schedules and parameterisations of diffusion models: x_t = sqrt(a) x_0 + sqrt(1-a) eps with a = alpha_bar_t.

Ho et al. 2020, eq. 4. A timestep argument `t` is an int tensor (B,), or one number for the whole batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, log, pi
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Tensor

from threedgen.config.errors import short
from threedgen.guidance.options import Shift
from threedgen.run.memory import to_device

Prediction = Literal["epsilon", "v_prediction"]
Timesteps = Tensor | int
MAX_TIMESTEPS = 10_000
MIN_ALPHA_BAR = 1e-12
NO_SIGNAL = 2.0**-24
"""alpha_bar of a timestep without signal. It is not 0, because computing x_0 divides by sqrt(alpha_bar)."""


@dataclass(frozen=True)
class Schedule:
    """Noise schedule of a diffusion model with T training timesteps, 0..T-1.

    Attributes:
        betas: variance of the noise that each timestep adds, (T,) float32, in (0, 1).
        alpha_bar: cumulative product of 1 - betas, the signal's remaining share of the variance, (T,) float32.
        prediction: output of the network: "epsilon", the noise eps, or "v_prediction",
            v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, where x_0 is the clean image or latent.
    """

    betas: Tensor
    alpha_bar: Tensor
    prediction: Prediction = "epsilon"

    @classmethod
    def from_betas(cls, betas: Tensor, prediction: Prediction = "epsilon") -> "Schedule":
        """Build a schedule from `betas` (T,), the variance of the noise that each timestep adds.

        Raises ValueError unless all betas are in (0, 1) and the product of all 1 - beta is above 1e-12.
        """
        betas = betas.double()  # a float32 product of 1000 factors is off by 1e-5
        alpha_bar = torch.cumprod(1 - betas, 0)
        if betas.ndim != 1 or not ((betas > 0) & (betas < 1) & (alpha_bar > MIN_ALPHA_BAR)).all() or not len(betas):
            raise ValueError("betas must be between 0 and 1 and leave some signal at the last timestep")
        return cls(betas.float(), alpha_bar.float(), prediction)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, T: int = 1000, prediction: Prediction = "epsilon"
    ) -> "Schedule":
        """Build Stable Diffusion's schedule: sqrt(beta) is linear in t (the ldm code base calls it "linear")."""
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        return cls.from_betas(roots**2, prediction)

    @classmethod
    def linear(
        cls, beta_start: float = 1e-4, beta_end: float = 0.02, T: int = 1000, prediction: Prediction = "epsilon"
    ) -> "Schedule":
        """Build a schedule whose beta is linear in t (Ho et al. 2020, section 4)."""
        return cls.from_betas(torch.linspace(beta_start, beta_end, T, dtype=torch.float64), prediction)

    @classmethod
    def cosine(cls, T: int = 1000, prediction: Prediction = "epsilon") -> "Schedule":
        """Build a schedule with squared-cosine alpha_bar and beta <= 0.999 (Nichol and Dhariwal 2021, eq. 17)."""
        curve = [cos((i / T + 0.008) / 1.008 * pi / 2) ** 2 for i in range(T + 1)]
        betas = [min(1 - curve[i + 1] / curve[i], 0.999) for i in range(T)]
        return cls.from_betas(torch.tensor(betas, dtype=torch.float64), prediction)

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "Schedule":
        """Build a schedule from the content of a diffusers scheduler_config.json.

        Raises ValueError if the kind of model, the prediction type, the beta schedule or the number of timesteps is
        unsupported.
        """
        kind = str(config.get("_class_name"))
        if kind.startswith(("EDM", "FlowMatch")) or "sigma_data" in config:
            raise ValueError(f"the model predicts neither epsilon nor v: _class_name={short(kind)}. Use other weights")
        prediction = config.get("prediction_type", "epsilon")
        name, T = config.get("beta_schedule", "linear"), int(config.get("num_train_timesteps", 1000))
        if prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type {short(prediction)} is unknown; use 'epsilon' or 'v_prediction'")
        if not 1 <= T <= MAX_TIMESTEPS:
            raise ValueError(f"num_train_timesteps should be 1 to {MAX_TIMESTEPS} (got {T})")
        if config.get("rescale_betas_zero_snr"):
            if prediction == "epsilon":
                raise ValueError("rescale_betas_zero_snr needs v_prediction: at alpha_bar 0 eps does not give x0")
            return cls.from_diffusers({**config, "rescale_betas_zero_snr": False}).with_zero_snr()
        if config.get("trained_betas") is not None:
            return cls.from_betas(torch.tensor(config["trained_betas"], dtype=torch.float64), prediction)
        if name == "squaredcos_cap_v2":
            return cls.cosine(T, prediction)
        if name not in ("linear", "scaled_linear"):
            known = "'scaled_linear', 'linear' or 'squaredcos_cap_v2'"
            raise ValueError(f"beta_schedule {short(name)} is unknown; use {known}")
        make = cls.linear if name == "linear" else cls.scaled_linear
        return make(config.get("beta_start", 1e-4), config.get("beta_end", 0.02), T, prediction)

    @classmethod
    def _from_alpha_bar(cls, alpha_bar: Tensor, prediction: Prediction) -> "Schedule":
        before = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
        return cls.from_betas(1 - alpha_bar / before, prediction)

    def with_zero_snr(self) -> "Schedule":
        """Return the schedule rescaled to zero terminal SNR (Lin et al. 2024, algorithm 1).

        alpha_bar at the last timestep becomes at most `NO_SIGNAL` = 2^-24, almost 0.
        """
        alpha_bar = torch.cumprod(1 - rescale_zero_terminal_snr(self.betas.double()), 0)
        alpha_bar[-1] = min(NO_SIGNAL, float(alpha_bar[-2]) / 2)
        return self._from_alpha_bar(alpha_bar, self.prediction)

    def shifted(self, scale: float, mode: Shift = "interpolated") -> "Schedule":
        """Return a schedule with a lower signal-to-noise ratio, for scale > 1: log SNR'_t = log SNR_t - w_t log(scale).

        w_t is 1 for mode "default" and t / (T - 1) for "interpolated". Several views together reveal details that noise
        hides in a single view, so they need more noise (MV-Adapter, arXiv 2412.03632, section 4.3).
        """
        log_snr = torch.logit(torch.cumprod(1 - self.betas.cpu().double(), 0))
        share = torch.linspace(0, 1, self.T).to(log_snr) if mode == "interpolated" else 1.0
        alpha_bar = torch.sigmoid(log_snr - share * log(scale))
        return self._from_alpha_bar(alpha_bar, self.prediction).to(self.betas.device)

    def timesteps_in(self, other: "Schedule") -> Tensor:
        """Convert the timesteps 0..T-1 of this schedule to timesteps of `other` with equal signal-to-noise ratio.

        Returns (T,) float32; the timesteps of `other` are fractional.
        """
        noise, known = (-torch.logit(each.alpha_bar.cpu().double()) for each in (self, other))
        return torch.from_numpy(np.interp(noise, known, np.arange(other.T))).float()

    @property
    def T(self) -> int:
        return len(self.alpha_bar)

    def to(self, device: torch.device | str) -> "Schedule":
        return Schedule(self.betas.to(device), self.alpha_bar.to(device), self.prediction)

    def alpha_sigma(self, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), the factors of signal and noise at timestep `t`.

        They can be multiplied with `like` (B, ...): their shape is (B, 1, ...), or (1, 1, ...) if `t` is one timestep
        for all images.
        """
        alpha_bar = self.alpha_bar.to(like.device)  # no copy if the schedule is on this device already
        index = t.to(like.device) if isinstance(t, Tensor) else t
        a = alpha_bar[index].reshape(-1, *[1] * (like.dim() - 1))
        return a.sqrt(), (1 - a).sqrt()

    def noise_level(self, t: Tensor) -> Tensor:
        """Return 2 / pi arctan(sigma / alpha) for timesteps `t` of any shape: 0 without noise, 1 without signal.

        alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t) are the factors of signal and noise.
        """
        a = self.alpha_bar.to(t.device)[t]
        return 2 / torch.pi * torch.atan2((1 - a).sqrt(), a.sqrt())

    def add_noise(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """Return the noisy x_t (B, ...) at timestep `t` from clean `x0` (B, ...) and Gaussian `noise` (B, ...)."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * noise

    def x0_from_eps(self, x: Tensor, eps: Tensor, t: Timesteps) -> Tensor:
        """Return the clean x_0 (B, ...) from noisy `x` (B, ...) at timestep `t` and predicted noise `eps` (B, ...)."""
        alpha, sigma = self.alpha_sigma(t, x)
        return (x - sigma * eps) / alpha

    def eps_from_output(self, x: Tensor, output: Tensor, t: Timesteps) -> Tensor:
        """Convert the network's `output` (B, ...) for noisy `x` (B, ...) at timestep `t` to predicted noise (B, ...).

        If the attribute `prediction` is "epsilon", this is the output itself. If it is "v_prediction", the output is a
        velocity v = sqrt(a) eps - sqrt(1-a) x_0 with a = alpha_bar_t, and the noise is sqrt(a) v + sqrt(1-a) x.
        """
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t, x)
        return alpha * output + sigma * x

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Return Min-SNR weights (B,) of squared errors at timesteps `t` (B,) (Hang et al. 2023, section 3.4).

        The weight is min(SNR, gamma) / SNR for an epsilon model and min(SNR, gamma) / (SNR + 1) for a v model (arXiv
        2303.09556).
        """
        alpha_bar = self.alpha_bar[to_device(t, self.alpha_bar.device)]
        snr = alpha_bar / (1 - alpha_bar)
        return snr.clamp(max=gamma) / (snr if self.prediction == "epsilon" else snr + 1)

    def target(self, x0: Tensor, noise: Tensor, t: Timesteps) -> Tensor:
        """Return the network's training target (B, ...) for the input x_t = add_noise(x0, noise, t).

        For prediction "epsilon" the target is the noise; for "v_prediction" it is v = sqrt(a) noise - sqrt(1-a) x0 with
        a = alpha_bar_t (Salimans and Ho 2022, appendix D).
        """
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * noise - sigma * x0
