"""Classifier score distillation (CSD; Yu et al. 2023, arXiv 2310.19415)."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from threedgen.guidance.guidance import Condition, Denoiser

from .sds import SDS, NoisyLatents


class CSD(SDS):
    """Classifier score distillation: the part of the SDS gradient that comes from classifier-free guidance.

    The gradient with respect to the latents of B images is w(t) (s - 1) (eps_c - eps_u) / B with guidance scale s.
    eps_c and eps_u are the noise predictions with and without the prompt; w(t) is 1 - alpha_bar_t, or 1 with the option
    `weighting` "uniform". SDS has the gradient w(t) (eps_c - noise + (s - 1) (eps_c - eps_u)) / B.

    With a negative prompt, eps_u is a mixture (Yu et al. 2023, section 4): m eps_negative + (1 - m) eps_empty, where m
    is the option `negative_weight` and eps_empty the prediction for the empty prompt. Otherwise, eps_u is eps_empty.
    """

    def predictions(
        self, z: Tensor, t: Tensor, noise: Tensor, denoise: Denoiser, condition: Condition, step: int, rng: Generator
    ) -> NoisyLatents:
        share = self.value("negative_weight", step)
        if self.empty_text is None:  # there is no negative prompt: the unconditional text is the empty prompt
            parts = [(1.0, condition)]
        else:
            empty = replace(condition, text=(condition.text[0], self.empty_text))
            parts = [(share, condition), (1 - share, empty)]
        found = [
            (weight, SDS.predictions(self, z, t, noise, denoise, part, step, rng))
            for weight, part in parts
            if weight > 0
        ]
        eps = torch.stack([weight * one.eps for weight, one in found]).sum(0)
        return found[0][1]._replace(eps=eps, eps_ref=found[0][1].eps_cond)
