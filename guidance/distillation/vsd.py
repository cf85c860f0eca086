"""Variational score distillation (VSD; Wang et al. 2023, "ProlificDreamer", arXiv 2305.16213).

SDS compares the prior's noise with the noise that was added; VSD with what a second network says, which learns the
distribution of the renders while the object does. At their fixed point renders and prior agree as distributions, so
ordinary guidance scales (7.5) suffice, and colours are not oversaturated. The second network is the prior with
low-rank additions and the pose (``lora.py``); its parameters belong to this module, hence to the run's checkpoints.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.guidance.diffusion import Conditions, Denoiser, combine, fresh_noise, per_image
from threedgen.guidance.prior import Prior

from .lora import PosedLoRA
from .sds import Distillation, Logs, Noised


class VSD(Distillation):
    """``options`` is a VSDConfig; ``prior`` is copied, and stays frozen."""

    def begin(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        if prior is None:
            raise ValueError("VSD trains a copy of the prior's network and needs the prior")
        self.unregistered = (prior,)  # frozen: in no checkpoint
        self.lora = PosedLoRA(prior.unet, self.options.rank, generator)

    def forward(
        self, latents: Tensor, denoise: Denoiser, given: Conditions, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Logs]:
        """d loss / d z = (1 - alpha_bar_t) (eps_prior - eps_copy) / B, plus the copy's own loss (``learn``).

        The two do not meet: the first reaches only ``latents`` (B,C,h,w), the second only the copy. It sees the plain
        prompt, by default the first text, and the poses, by default none.
        """
        loss, logs = super().forward(latents, denoise, given, step, generator)
        learning = self.learn(latents.detach().float(), given, generator)
        return loss + learning, logs | {"loss_lora": learning.detach()}

    def direction(self, seen: Noised, given: Conditions, step: int) -> Tensor:
        scale = self.options.lora_guidance_scale
        own = self.schedule.eps_from_output(seen.x, self.copy(seen.x, seen.t, given), seen.t)
        if scale != 1:
            blind = self.copy(seen.x, seen.t, replace(given, c2w=None))
            own = combine(own, self.schedule.eps_from_output(seen.x, blind, seen.t), scale)
        _, sigma = self.schedule.alpha_sigma(seen.t, seen.z)
        return sigma**2 * (seen.eps - own)

    def learn(self, z: Tensor, given: Conditions, generator: torch.Generator) -> Tensor:
        """The diffusion loss of the copy on the renders' latents, with t from the whole table and noise of its own.

        Now and then (``pose_dropout``) it is told no pose.
        """
        count = len(z) // given.n_view
        t = torch.randint(self.schedule.T, (count,), generator=generator, device=generator.device)
        t = t.repeat_interleave(given.n_view).to(z.device)
        noise = fresh_noise(z, generator)
        coin = torch.rand((), generator=generator, device=generator.device)
        given = replace(given, c2w=None) if float(coin) < self.options.pose_dropout else given
        return F.mse_loss(self.copy(self.schedule.add_noise(z, noise, t), t, given), self.schedule.target(z, noise, t))

    def copy(self, x: Tensor, t: Tensor, given: Conditions) -> Tensor:
        """What the copy's UNet itself says: noise or v, as the prior was trained; no pose is one of zeros."""
        prior = self.unregistered[0]
        text = per_image(given.text[0][:1] if given.plain is None else given.plain, len(x))
        poses = x.new_zeros(len(x), 16) if given.c2w is None else given.c2w.to(x).flatten(1)
        with self.lora.applied(prior.unet, poses):
            t = t.reshape(-1).expand(len(x))
            return prior.network(x, t, text, given.camera, given.n_view, **given.shown(True))
