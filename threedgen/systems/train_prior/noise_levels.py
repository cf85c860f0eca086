"""Noise levels of the views of an object: equal, independent, or little noise in some (Chen et al. 2024, arXiv
2407.01392, "Diffusion Forcing").

With equal levels a view learns nothing that it cannot take from the caption and from itself; clean companions teach it
to look at them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from threedgen.train.system import sample_timesteps

from .options import ViewNoiseConfig

COMPANION_MAX = 0.3
"""Companions get t = COMPANION_MAX T u^2 with u uniform."""


def view_timesteps(
    objects: int, n_view: int, T: int, power: float, options: ViewNoiseConfig, rng: torch.Generator
) -> Tensor:
    """Time steps (objects, n_view), int64 in [0, T), of the views of each object.

    By the shares in ``options`` an object is of one of three kinds: each view has a level of its own; one to n_view - 1
    of them have little noise and the others one level; all have one level.
    """
    levels = sample_timesteps(objects, T, power, rng)[:, None].expand(-1, n_view)
    if n_view == 1 or not (options.independent or options.companions):
        return levels.clone()
    own = (T * torch.rand(objects, n_view, generator=rng) ** power).long().clamp(max=T - 1)
    order = torch.rand(objects, n_view, generator=rng).argsort(1)
    count = torch.randint(1, n_view, (objects, 1), generator=rng)
    little = (COMPANION_MAX * T * torch.rand(objects, n_view, generator=rng) ** 2).long()
    kind = torch.rand(objects, 1, generator=rng)
    independent = kind < options.independent
    companion = (kind >= options.independent) & (kind < options.independent + options.companions) & (order < count)
    return torch.where(independent, own, torch.where(companion, little, levels))
