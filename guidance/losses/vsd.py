"""Variational score distillation (VSD; Wang et al. 2023, "ProlificDreamer", arXiv 2305.16213).

SDS compares the prior's prediction with the added noise. VSD compares it with the prediction of the prior's UNet with a
LoRA and a pose embedding. LoRA and embedding are trained on the renders at the same time. A guidance scale of 7.5
suffices.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.guidance.guidance import Condition, Denoiser, repeat_text
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import fresh_noise
from threedgen.run.memory import to_device

from .lora import PosedLoRA
from .sds import Distillation, Logs, NoisyLatents, RenderedViews, sds_direction

POSE_DROPOUT = 0.1
"""Probability that a training step of the LoRA gets zeros instead of camera poses."""


class VSD(Distillation):
    """Loss of variational score distillation (VSD), with a LoRA that is trained on the renders at the same time.

    A call takes the latents of B renders, the prior's denoiser, the condition (text, camera poses), the optimisation
    step and a random generator. It returns a scalar and metrics to log. The scalar is the sum of two losses, so one
    optimiser step on it changes the object and the LoRA:

    - The VSD loss changes the object. Its gradient with respect to the latents is
      (1 - alpha_bar_t) (eps_prior - eps_lora) / B. eps_prior is the noise that the frozen prior predicts with guidance,
      eps_lora the noise that its UNet predicts with the LoRA and the poses. 1 - alpha_bar_t is the variance of the
      noise at the sampled timestep t.
    - The training loss changes the LoRA: the mean squared error of what the UNet with the LoRA predicts, noise or v,
      for the latents with added noise.
    """

    def make_parameters(self, prior: Prior | None, generator: torch.Generator | None) -> None:
        assert prior is not None
        self.unregistered = (prior,)  # frozen: in no checkpoint
        self.lora = PosedLoRA(prior.unet, self.options.rank, generator)

    def forward(
        self,
        latents: Tensor,
        denoise: Denoiser,
        condition: Condition,
        step: int,
        generator: torch.Generator,
        views: RenderedViews | None = None,
    ) -> tuple[Tensor, Logs]:
        """Return the sum of the VSD loss and the training loss of the LoRA, a scalar, and metrics to log by name.

        The LoRA (low-rank changes of the UNet) learns to predict the noise in the renders. The VSD loss has a gradient
        with respect to `latents` only, the training loss with respect to the LoRA only.

        Args:
            latents: the renders encoded by the prior, (B, C, h, w).
            denoise: predicts the frozen prior's noise without guidance. The guidance is applied here.
            condition: text, cameras and poses of the views.
            step: optimisation step.
            generator: CPU random generator of this step.
            views: not used.
        """
        loss, logs = super().forward(latents, denoise, condition, step, generator, views)
        lora_loss = self.lora_loss(latents.detach().float(), condition, generator)
        return loss + lora_loss, logs | {"loss_lora": lora_loss.detach()}

    def direction(self, latents: NoisyLatents, condition: Condition, step: int) -> Tensor:
        x, t = latents.x, latents.t
        eps_lora = self.schedule.eps_from_output(x, self.lora_output(x, t, condition), t)
        return sds_direction(latents._replace(eps_ref=eps_lora), self.schedule)

    def lora_loss(self, z: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
        """Compute the training loss of the LoRA on clean latents `z` (B, C, h, w) of the renders: a scalar.

        It is the mean squared error of the output, noise or v, of the UNet with the LoRA for `z` with added noise. All
        views of a scene get the same timestep, uniform in 0..T-1. `condition` has text, cameras and poses of the views.
        With probability `POSE_DROPOUT` (0.1), zeros replace the poses of all images.
        """
        count = len(z) // condition.n_view
        t = torch.randint(self.schedule.T, (count,), generator=generator, device=generator.device)
        t = to_device(t.repeat_interleave(condition.n_view), z.device)
        noise = fresh_noise(z, generator)
        coin = torch.rand((), generator=generator, device=generator.device)
        condition = replace(condition, c2w=None) if float(coin) < POSE_DROPOUT else condition
        output = self.lora_output(self.schedule.add_noise(z, noise, t), t, condition)
        return F.mse_loss(output, self.schedule.target(z, noise, t))

    def lora_output(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the output (B, C, h, w) of the UNet with the LoRA, noise or v, for noisy latents `x` (B, C, h, w).

        `t` are timesteps, (1,) or (B,). All images have the same text: the prompt without view-dependent words,
        `condition.plain_text`, or if this is None, the prompt of the first image in `condition.text`. The camera poses
        are `condition.c2w`; if this is None, zeros.
        """
        prior = self.unregistered[0]
        text = condition.text[0][:1] if condition.plain_text is None else condition.plain_text
        poses = x.new_zeros(len(x), 16) if condition.c2w is None else condition.c2w.to(x).flatten(1)
        with self.lora.applied(prior.unet, poses):
            t = t.reshape(-1).expand(len(x))
            kwargs = condition.reference_kwargs(True)
            return prior.network(x, t, repeat_text(text, len(x)), condition.camera, condition.n_view, **kwargs)
