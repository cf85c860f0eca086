"""The marcher and the compositor of nerfacc, where it is installed: its kernels, our convention.

nerfacc begins every ray's steps at its near plane and keeps those whose midpoint lies in a full cell before the far
plane. So the first sample of a ray is given as its near plane, the exit from the bound as its far plane.
"""

from __future__ import annotations

import nerfacc
import torch
from nerfacc.cuda import _backend
from torch import Tensor

from threedgen.representations.options import MarchConfig

from . import Composite, Samples, pack, step_size, torch_twin
from .torch_twin import positions, spans

__all__ = ["composite", "march", "positions", "visible"]

if _backend._C is None:
    raise ImportError("its kernels are not built, and there is no CUDA compiler to build them")


def march(
    origins: Tensor, directions: Tensor, options: MarchConfig, grid: Tensor | None, jitter: Tensor | None
) -> Samples:
    """See `march.march`; equal parts of chords are left to the torch twin."""
    if options.sampler == "stratified" or len(origins) == 0:
        return torch_twin.march(origins, directions, options, grid, jitter)
    first, leave, _ = spans(origins, directions, options, jitter)
    radius, step = options.radius, step_size(options)
    cells = torch.ones(1, 1, 1, dtype=torch.bool, device=origins.device) if grid is None else grid
    box = origins.new_tensor([[-radius] * 3 + [radius] * 3])
    found, _, _ = nerfacc.traverse_grids(
        origins, directions, cells[None], box, near_planes=first, far_planes=leave, step_size=step
    )
    ray_index = found.ray_indices[found.is_left]
    # it adds step to step, whose rounding grows: back to a whole number of steps
    begin = first.index_select(0, ray_index)
    k = ((found.vals[found.is_left] - begin) / step).round()
    return pack(ray_index, begin + k * step, begin + (k + 1) * step, len(origins))


def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
    """See `march.composite`."""
    weights, _, _ = nerfacc.render_weight_from_density(*_of(samples, sigma))

    def along(values: Tensor | None) -> Tensor:
        return nerfacc.accumulate_along_rays(weights, values, samples.ray_index, samples.n_rays)

    return Composite(along(values.float()), along(None), along(samples.t_mid[:, None]), weights)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    """See `march.visible`."""
    return nerfacc.render_visibility_from_density(
        *_of(samples, sigma), early_stop_eps=early_stop, alpha_thre=alpha_threshold
    )


def _of(samples: Samples, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t_starts, t_ends, sigmas, packed_info as nerfacc wants them."""
    packed = torch.stack([samples.start, samples.count], dim=-1)
    return samples.t_start, samples.t_end, sigma.float(), packed
