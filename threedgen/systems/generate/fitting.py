"""What refinement does beside distillation: pictures drawn again by the prior, surfaces without dents."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from threedgen.geometry.rigs import Rig
from threedgen.guidance.guidance import Condition, guided, per_image
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import InitLatents, fresh_noise, sample_latents
from threedgen.representations import losses
from threedgen.representations.field.ngp import finite_difference_normal
from threedgen.representations.march import step_size
from threedgen.representations.options import MarchConfig
from threedgen.representations.volume.render import Field, Render
from threedgen.systems.generate.options import RefineConfig

POINTS, REACH = 512, 0.02
"""Points at which a step looks at the surface, and how far from them, in radii of the world."""


@torch.no_grad()
def redrawn(
    prior: Prior,
    pictures: Tensor | None,
    rig: Rig,
    text: Condition,
    o: RefineConfig,
    strength: float,
    rng: torch.Generator,
) -> Tensor:
    """Pictures (V, H, W, 3) of one group, with noise and then denoised together (SDEdit, Meng et al. 2022).

    None, where there is no object yet: what the prior expects of these cameras is drawn again, or if it expects
    nothing, noise alone.
    """
    c2w = rig.cameras.c2w.to(prior.device) if rig.n_view > 1 else None
    camera = None if c2w is None else prior.camera(c2w)
    given = replace(text, camera=camera, n_view=rig.n_view)
    z = (
        prior.coarse_latents(per_image(text.text[0], rig.n_view), c2w)
        if pictures is None
        else prior.encode_images(pictures, rng)
    )
    if z is None:
        z, strength = torch.zeros(len(rig.cameras), *prior.latent_shape, device=prior.device), 1.0
    denoise = guided(prior.denoise, o.guidance_scale)
    z = sample_latents(denoise, fresh_noise(z, rng), given, prior.schedule, o.steps, InitLatents(z, strength))
    return sharpened(prior.decode_latents(z), o.sharpen)


def sharpened(pictures: Tensor, amount: float) -> Tensor:
    """Adds to pictures (V, H, W, 3) ``amount`` of what a Gaussian blur by a 64th of their height takes from them."""
    if not amount:
        return pictures
    sigma, x = pictures.shape[1] / 64, pictures.permute(0, 3, 1, 2)
    size = 2 * math.ceil(3 * sigma) + 1
    softer = gaussian_blur2d(x, (size, size), (sigma, sigma))
    return (x + amount * (x - softer)).clamp(0, 1).permute(0, 2, 3, 1)


def dents(
    field: Field, march: MarchConfig, seen: Render, origins: Tensor, directions: Tensor, rng: torch.Generator
) -> Tensor:
    """How rough the surface is at points where some of the rays (R, 3) meet it, see `losses.normal_smoothness`."""
    solid = (seen.opacity[:, 0] > 0.5).nonzero()[:POINTS, 0]
    depth = (seen.depth / seen.opacity)[solid].detach()
    points = origins[solid] + depth * directions[solid]
    offsets = REACH * march.radius * torch.randn(points.shape, generator=rng).to(points)
    length = step_size(march)

    def opacity(x: Tensor) -> Tensor:  # of a step of the march: what is opaque has no normals inside
        return 1 - torch.exp(-length * field.density(x))

    def normal(x: Tensor) -> Tensor:
        return finite_difference_normal(opacity, x, 1.5 * REACH * march.radius, march.radius)

    return losses.normal_smoothness(normal, points, offsets)
