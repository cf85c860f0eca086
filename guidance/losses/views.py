"""Interface of distillation losses: the rendered views that they receive, and the function that training calls."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from threedgen.geometry.cameras import Cameras
from threedgen.guidance.guidance import Condition, Denoiser


@dataclass(frozen=True)
class RenderedViews:
    """B rendered training views, with gradients, for losses on images.

    Attributes:
        images: (B, H, W, 3) in [0, 1], as the prior receives them: colours, or normals with guidance_input=normal.
        opacity: (B, H, W, 1) in [0, 1].
        depth: (B, H, W, 1) sum of weight * distance along the ray, in world units, not divided by the opacity.
        normals: (B, H, W, 3) opacity * (unit normal + 1) / 2, or None.
        cameras: B cameras.
        extra: further rendered channels (B, H, W, C) of the representation, by name.
    """

    images: Tensor
    opacity: Tensor
    depth: Tensor
    normals: Tensor | None
    cameras: Cameras
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class DistillationLoss(Protocol):
    """Loss of rendered views under a prior. If it is an nn.Module with parameters, they are trained with the object.

    Args:
        latents: (B, C, h, w), the views encoded by the prior, with gradients.
        denoise: denoiser of the frozen prior, without guidance.
        condition: text, cameras and reference image of the views.
        step: optimisation step.
        generator: CPU random generator of this step.
        views: the rendered views.

    Returns:
        The loss, a scalar, and metrics to log by name.
    """

    def __call__(
        self,
        latents: Tensor,
        denoise: Denoiser,
        condition: Condition,
        step: int,
        generator: torch.Generator,
        views: RenderedViews,
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...
