"""Compositing of 3D Gaussians in plain PyTorch, for all devices and dtypes.

Every Gaussian is evaluated in every pixel, so the memory is proportional to pixels x Gaussians.
"""

import torch
from torch import Tensor

from . import ALPHA_THRESHOLD, MAX_ALPHA, TRANSMITTANCE_THRESHOLD, ProjectedSplats


def composite(splats: ProjectedSplats, height: int, width: int) -> Tensor:
    means = splats.means
    rows, columns = (torch.arange(size, device=means.device).to(means) + 0.5 for size in (height, width))
    images = []
    for k in range(len(means)):
        order = splats.depths[k].argsort(stable=True)
        x, y = means[k, order].unbind(-1)
        a, b, c = splats.conics[k, order].unbind(-1)
        dx, dy = columns[:, None] - x, (rows[:, None] - y)[:, None]
        sigma = 0.5 * (a * dx**2 + c * dy**2) + b * dx * dy  # (H, W, N)
        alpha = (splats.opacities[k, order] * torch.exp(-sigma)).clamp(max=MAX_ALPHA)
        used = (alpha >= ALPHA_THRESHOLD) & (splats.extents[k, order, 0] > 0)
        alpha = torch.where(used, alpha, torch.zeros_like(alpha))
        after = (1 - alpha).cumprod(dim=-1)
        alpha = alpha * (after > TRANSMITTANCE_THRESHOLD)
        after = (1 - alpha).cumprod(dim=-1)
        before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
        weights = alpha * before
        values = splats.values[k, order]
        images.append(torch.cat([weights @ values, weights.sum(-1, keepdim=True)], dim=-1))
    return torch.stack(images)
