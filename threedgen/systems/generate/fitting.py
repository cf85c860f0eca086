"""Fit of the object to images: the loss of the warm start and of the refinement rounds."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import at
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import Pixels, Views
from threedgen.representations import losses
from threedgen.representations.base import Render
from threedgen.representations.field.ngp import finite_difference_normal
from threedgen.representations.march import step_size

from .scene import Scene

HUBER_BETA = 0.1
"""Colour difference up to which the error is quadratic. Larger differences count linearly, so outliers blur less."""
ERROR_WEIGHT = 10
"""Weight of the colour error."""
OPAQUE_WEIGHT = {"0%": 0.01, "40%": 0.05, "100%": 6.0}
"""Weight of the entropy of the opacity, as a schedule over the steps of the fit."""
SPARSITY_WEIGHT = 0.1
"""Weight of the sparsity loss. It removes density of the background colour, which the colour error ignores."""
SMOOTHNESS_WEIGHT = 0.05
"""Weight of the difference of nearby normals, against bumps."""
SURFACE_POINTS = 512
"""Maximum number of surface points per step in the smoothness loss."""
SURFACE_DISTANCE = 0.02
"""Standard deviation of the offsets between compared normals in the smoothness loss, as a fraction of march.radius."""


class StepResult(NamedTuple):
    """Result of a training step: the scalar loss, its terms by name for the log, and further metrics by name.

    Terms and metrics stay on the device until they are logged, since a conversion to a number waits for the GPU.
    """

    loss: Tensor
    terms: Mapping[str, Tensor | float]
    metrics: Mapping[str, Tensor | float]


class Fit:
    """Training loss that compares renders of an object with V given images (V, H, W, 3) in [0, 1] of V cameras.

    The object is that of `scene`.
    """

    def __init__(self, scene: Scene, cameras: Cameras, images: Tensor) -> None:
        self.scene, self.cameras = scene, cameras.with_size(*images.shape[1:3])
        opacity = None if scene.matte is None else scene.matte.opacity(images.to(scene.device))
        self.pixels = Pixels(Views(images, self.cameras), opacity)

    def losses(self, step: int, done: int, steps: int) -> StepResult:
        """Return the loss of a step. Volumes train on `fit.rays` random pixels, meshes on whole images.

        Args:
            step: step of the run; it seeds the random numbers.
            done: number of steps of this fit before this step; it selects the values of the schedules.
            steps: total number of steps of this fit.
        """
        o, rng, device = self.scene.config.fit, self.scene.rng(step, "pixels"), self.scene.device
        opaque, distortion = (at(value, done, steps) for value in (OPAQUE_WEIGHT, o.distortion))
        if self.scene.field.rasterised:
            result, indices = self._render_images(step, rng)
            rough = [losses.normal_consistency(*result.surface)] if result.surface is not None else []
        else:
            result, indices, rays = self._render_pixels(step, rng)
            rough = [self._roughness(result, *rays, rng)]
        colours, background = (part.to(device) for part in self.pixels.composite(indices, rng))
        error = F.smooth_l1_loss(result.rgb_fg + background * (1 - result.opacity), colours, beta=HUBER_BETA)
        clear = opaque * losses.opaque(result) + SPARSITY_WEIGHT * losses.sparsity(result)
        # opacity far from the object, which has no colour error where its colour is that of the background
        clear = clear + result.opacity[self.pixels.empty[indices].to(device)].sum() / len(colours)
        if distortion and (spread := losses.distortion(result, 2 * self.scene.config.march.radius)) is not None:
            clear = clear + distortion * spread
        loss = ERROR_WEIGHT * error + clear + SMOOTHNESS_WEIGHT * sum(rough)
        opacity = result.opacity.detach().mean()
        return StepResult(loss, {"loss_views": ERROR_WEIGHT * error.item()}, {"opacity": opacity})

    def _render_images(self, step: int, rng: torch.Generator) -> tuple[Render, Tensor]:
        pixels = self.cameras.height * self.cameras.width
        count = max(1, self.scene.config.fit.rays // pixels)
        chosen = torch.randperm(len(self.cameras), generator=rng)[:count]
        indices = (chosen[:, None] * pixels + torch.arange(pixels)).flatten()
        return self.scene.render(self.cameras.select(chosen), step, training=False), indices

    def _render_pixels(self, step: int, rng: torch.Generator) -> tuple[Render, Tensor, tuple[Tensor, Tensor]]:
        indices, device = self.pixels.sample(self.scene.config.fit.rays, rng), self.scene.device
        rays = (self.pixels.origins[indices].to(device), self.pixels.directions[indices].to(device))
        shading = self.scene.material.sample_shading(step, False, rng)
        return self.scene.render_rays(*rays, shading, rng, training=True), indices, rays

    def _roughness(self, result: Render, origins: Tensor, directions: Tensor, rng: torch.Generator) -> Tensor:
        field, march = self.scene.field, self.scene.config.march
        solid = (result.opacity[:, 0] > 0.5).nonzero()[:SURFACE_POINTS, 0]
        depth = (result.depth / result.opacity)[solid].detach()
        points = origins[solid] + depth * directions[solid]
        offsets = SURFACE_DISTANCE * march.radius * torch.randn(points.shape, generator=rng).to(points)
        length = step_size(march)

        def opacity(x: Tensor) -> Tensor:  # of one marching step: bounded, unlike the density
            return 1 - torch.exp(-length * field.density(x))

        def normal(x: Tensor) -> Tensor:
            return finite_difference_normal(opacity, x, 1.5 * SURFACE_DISTANCE * march.radius, march.radius)

        return losses.normal_smoothness(normal, points, offsets)
