"""Joint score distillation (JSD; Jiang et al. 2024, "JointDreamer", arXiv 2407.12291)."""

from dataclasses import replace

from torch import Generator, Tensor

from threedgen.guidance.guidance import Condition, Denoiser, combine, predict

from .sds import SDS, NoisyLatents, rescale_std


class JSD(SDS):
    """Joint score distillation (Jiang et al. 2024): SDS of single views, with a term that makes the views consistent.

    The gradient with respect to the latents of B images, V views per object, is w(t) (eps - noise + c) / B:

    - w(t) is 1 - alpha_bar_t, or 1 with the option `weighting` "uniform".
    - eps - noise is SDS: noise is the noise added to the latents, eps the noise predicted with guidance for each view
      alone, without camera and reference image.
    - c = (`view_weight` / V) sqrt((1 - alpha_bar_t) / alpha_bar_t) (x0_single - x0_views) makes the views consistent;
      `view_weight` is an option.
    - x0_views are the clean latents predicted with guidance for all views together, x0_single those predicted for each
      view alone, without camera and image, with the negative or empty prompt.

    c corresponds to the energy E = `view_weight` |x0_single - x0_views|^2 / (2 V), the paper's -C_MVS. As in classifier
    guidance, c = sqrt(1 - alpha_bar_t) dE / dx_t for the noisy latents x_t. As in the authors' code, this derivative
    treats x0_views and the noise predicted for x0_single as constants.
    """

    def predictions(
        self, z: Tensor, t: Tensor, noise: Tensor, denoise: Denoiser, condition: Condition, step: int, rng: Generator
    ) -> NoisyLatents:
        scale, weight = self.value("guidance_scale", step), self.value("view_weight", step)
        single = replace(condition, camera=None, n_view=1, reference=None, single_view_uncond=False)
        x = self.schedule.add_noise(z, noise, t)
        eps_uncond, eps_cond = predict(denoise, x, t, replace(single, negatives=None), 0)
        if condition.negatives is None:
            eps = combine(eps_cond, eps_uncond, scale)
        else:
            eps, _ = predict(denoise, x, t, single, scale)
        if weight > 0:
            alpha, sigma = self.schedule.alpha_sigma(t, x)
            gap = self.schedule.x0_from_eps(x, eps_uncond, t) - self.joint_x0(x, t, denoise, condition, step)
            eps = eps + sigma * weight / condition.n_view * gap / alpha
        return NoisyLatents(z, x, t, noise, eps, eps_cond)

    def joint_x0(self, x: Tensor, t: Tensor, denoise: Denoiser, condition: Condition, step: int) -> Tensor:
        """Predict the clean latents (B, C, h, w) with guidance, for all views of an object together.

        `x` are noisy latents (B, C, h, w) at timesteps `t`, (1,) or (B,). `denoise` predicts noise without guidance;
        `condition` has text, cameras and reference image of the views.

        Two options are used, which may depend on the optimisation step `step`: `view_guidance_scale` is the guidance
        scale, and `recon_std_rescale` in [0, 1] moves the standard deviation of the result towards that of the
        prediction with the prompt but without guidance (1: equal, see `rescale_std`).
        """
        eps, eps_cond = predict(denoise, x, t, condition, self.value("view_guidance_scale", step))
        x0, x0_cond = (self.schedule.x0_from_eps(x, one, t) for one in (eps, eps_cond))
        return rescale_std(x0, x0_cond, self.value("recon_std_rescale", step), condition.n_view)
