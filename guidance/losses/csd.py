"""Classifier score distillation (CSD; Yu et al. 2023, arXiv 2310.19415)."""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from threedgen.guidance.guidance import Condition, Denoiser

from .sds import SDS, NoisyLatents


class CSD(SDS):
    """SDS without its generative part: the gradient is w(t) (s - 1) (eps_c - eps_u) / B, with guidance scale s.

    It is the gradient with respect to the latents. w(t) is 1 - alpha_bar_t, or 1 with the option `weighting` "uniform".
    B is the number of images; eps_c and eps_u are the noise predictions with and without the prompt. The gradient of
    SDS is w(t) (eps_c - noise + (s - 1) (eps_c - eps_u)) / B. Its last part is the score of an implicit classifier
    p(text | x) (Yu et al. 2023, section 3). With a negative prompt, eps_u is a mixture (section 4): negative_weight
    eps_negative + (1 - negative_weight) eps_empty, with the option `negative_weight`. Otherwise it is eps_empty.
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
