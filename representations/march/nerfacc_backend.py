"""Marching and compositing with the kernels of nerfacc. Samples have the same positions as in other back ends.

The near plane passed to nerfacc is the start of the ray's first sample, and the far plane is the exit from the bounding
volume.
"""

import nerfacc
import torch
from nerfacc.cuda import _backend
from torch import Tensor

from threedgen.representations.volume.options import MarchConfig

from . import Composite, Samples, pack, step_size, torch_twin

if _backend._C is None:
    raise ImportError("nerfacc has no compiled kernels. Install a CUDA compiler to build them")


def place(origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None) -> Samples:
    if len(origins) == 0:
        return torch_twin.place(origins, directions, spans, options, grid)
    first, leave = spans[:, 0].contiguous(), spans[:, 1].contiguous()
    radius, step = options.radius, step_size(options)
    cells = torch.ones(1, 1, 1, dtype=torch.bool, device=origins.device) if grid is None else grid
    box = origins.new_tensor([[-radius] * 3 + [radius] * 3])
    intervals, _, _ = nerfacc.traverse_grids(
        origins, directions, cells[None], box, near_planes=first, far_planes=leave, step_size=step
    )
    ray_index = intervals.ray_indices[intervals.is_left]
    # nerfacc adds up steps, with growing rounding errors: round to whole steps
    entry = first.index_select(0, ray_index)
    k = ((intervals.vals[intervals.is_left] - entry) / step).round()
    return pack(ray_index, entry + k * step, entry + (k + 1) * step, len(origins))


def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
    weights, _, _ = nerfacc.render_weight_from_density(*_nerfacc_arguments(samples, sigma))

    def accumulate(values: Tensor | None) -> Tensor:
        return nerfacc.accumulate_along_rays(weights, values, samples.ray_index, samples.n_rays)

    return Composite(accumulate(values.float()), accumulate(None), accumulate(samples.t_mid[:, None]), weights)


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    return nerfacc.render_visibility_from_density(
        *_nerfacc_arguments(samples, sigma), early_stop_eps=early_stop, alpha_thre=alpha_threshold
    )


def _nerfacc_arguments(samples: Samples, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    packed = torch.stack([samples.start, samples.count], dim=-1)
    return samples.t_start, samples.t_end, sigma.float(), packed
