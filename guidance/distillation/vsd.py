"""Variational score distillation (VSD; Wang et al. 2023, "ProlificDreamer", arXiv 2305.16213).

SDS compares the prior's noise with the noise that was added; VSD with what a second network says, which learns the
distribution of the renders while the object does. At their fixed point renders and prior agree as distributions, so
ordinary guidance scales (7.5) suffice, and colours are not oversaturated. The second network is the prior with
low-rank additions and the pose (``lora.py``); its parameters belong to this module, hence to the run's checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.guidance.diffusion import Denoiser, Negatives, Schedule, combine, fresh_noise, per_image
from threedgen.guidance.options import VSDConfig
from threedgen.guidance.prior import Prior

from .lora import PosedLoRA
from .sds import Distillation, Logs, follow, predict


class VSD(Distillation):
    """``options`` is a VSDConfig; ``prior`` is copied, and stays frozen."""

    def __init__(
        self,
        options: VSDConfig,
        schedule: Schedule,
        max_steps: int | None = None,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(options, schedule, max_steps)
        if prior is None:
            raise ValueError("VSD trains a copy of the prior's network and needs the prior")
        self.unregistered = (prior,)  # frozen: in no checkpoint
        self.lora = PosedLoRA(prior.unet, options.rank, generator)

    def forward(
        self,
        latents: Tensor,
        denoise: Denoiser,
        text_cond: Tensor,
        text_uncond: Tensor,
        camera: Tensor | None,
        n_view: int,
        step: int,
        generator: torch.Generator,
        *,
        negatives: Negatives | None = None,
        plain: Tensor | None = None,
        c2w: Tensor | None = None,
    ) -> tuple[Tensor, Logs]:
        """d loss / d z = (1 - alpha_bar_t) (eps_prior - eps_copy) / B, plus the copy's own loss (``learn``).

        The two do not meet: the first reaches only ``latents`` (B,C,h,w), the second only the copy. It sees ``plain``
        (1,L,D), by default the first text, and the poses ``c2w`` (B,4,4), by default none.
        """
        t, noise, drawn = self.draw(latents, n_view, step, generator)
        z = latents.detach().float()
        text = per_image(text_cond[:1] if plain is None else plain, len(z))
        poses = z.new_zeros(len(z), 16) if c2w is None else c2w.to(z).flatten(1)
        with torch.no_grad():
            x = self.schedule.add_noise(z, noise, t)
            scale = self.value("guidance_scale", step)
            eps, _ = predict(denoise, x, t, (text_cond, text_uncond), camera, n_view, scale, negatives)
            own = self.own_eps(x, t, text, camera, n_view, poses)
            _, sigma = self.schedule.alpha_sigma(t, z)
        loss, logs = follow(latents, sigma**2 * (eps - own), t)
        learning = self.learn(z, text, camera, n_view, poses, generator)
        return loss + learning, logs | drawn | {"loss_lora": learning.detach()}

    def own_eps(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int, poses: Tensor) -> Tensor:
        """The noise in ``x`` (B,C,h,w) as the copy sees it."""
        scale = self.options.lora_guidance_scale
        eps = self.schedule.eps_from_output(x, self.copy(x, t, text, camera, n_view, poses), t)
        if scale == 1:
            return eps
        blind = self.copy(x, t, text, camera, n_view, torch.zeros_like(poses))
        return combine(eps, self.schedule.eps_from_output(x, blind, t), scale)

    def learn(
        self,
        z: Tensor,
        text: Tensor,
        camera: Tensor | None,
        n_view: int,
        poses: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The diffusion loss of the copy on the renders' latents, with t from the whole table and noise of its own.

        Now and then (``pose_dropout``) it is told no pose.
        """
        count = len(z) // n_view
        t = torch.randint(self.schedule.T, (count,), generator=generator, device=generator.device)
        t = t.repeat_interleave(n_view).to(z.device)
        noise = fresh_noise(z, generator)
        coin = torch.rand((), generator=generator, device=generator.device)
        poses = torch.zeros_like(poses) if float(coin) < self.options.pose_dropout else poses
        output = self.copy(self.schedule.add_noise(z, noise, t), t, text, camera, n_view, poses)
        return F.mse_loss(output, self.schedule.target(z, noise, t))

    def copy(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int, poses: Tensor) -> Tensor:
        """What the copy's UNet itself says: noise or v, as the prior was trained."""
        prior = self.unregistered[0]
        with self.lora.applied(prior.unet, poses):
            return prior.network(x, t.reshape(-1).expand(len(x)), text, camera, n_view)
