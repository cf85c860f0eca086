"""Back end of hash grid, MLP and ray marcher for torch's meta device, whose tensors have shapes but no values.

It serves to measure the memory of a render without computing it. The ray marcher puts the same number of samples on
every ray. Temporary tensors are as large as those of the Triton back ends.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from threedgen.representations.hashgrid.torch_twin import Levels
from threedgen.representations.march import Samples, differentiable
from threedgen.representations.volume.options import MarchConfig
from threedgen.run.memory import PeakMemory


def encode(x: Tensor, table: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    return x.new_empty(levels.n_levels * table.shape[1], len(x)).t()


def scatter(x: Tensor, grad: Tensor, levels: Levels, direction: Tensor | None = None) -> Tensor:
    columns = grad.t().contiguous()
    return columns.new_empty(levels.entries, grad.shape[1] // levels.n_levels)


def position_gradient(x: Tensor, table: Tensor, grad: Tensor, levels: Levels) -> Tensor:
    columns = grad.t().contiguous()
    return columns.new_empty(len(x), 3)


def mlp(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return x.new_empty(len(x), len(v))


def mlp_gradients(grad: Tensor, x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[1], len(x)).t(), torch.empty_like(w), torch.empty_like(v)


def place(origins: Tensor, directions: Tensor, spans: Tensor, options: MarchConfig, grid: Tensor | None) -> Samples:
    rays, each = len(origins), options.samples
    count = torch.full((rays,), each)  # on the CPU, where `split` reads it
    index = torch.empty(rays * each, dtype=torch.long, device=origins.device)
    t_start, t_end = (origins.new_empty(rays * each) for _ in range(2))
    return EqualRays(index, t_start, t_end, count.cumsum(0) - count, count)


@dataclass(frozen=True)
class EqualRays(Samples):
    """Samples without values (on torch's meta device), equally many on each ray, to measure the memory of a render.

    A render computes its rays in n equal chunks (groups of rays), one after another. Each needs the same memory, so to
    measure it, three chunks are enough. `split`, which divides the rays, returns three slices at most:

    - the first chunk;
    - the second chunk, which stands for all chunks between the first and the last. `PeakMemory`, which measures memory
      and counts kernel launches, counts those of this chunk n - 2 times;
    - all other rays, which stand for the last chunk. `select_rays` gives them only as many samples as one chunk has.

    Attributes:
        chunks: numbers of samples in a chunk, one for each call of `split` that divided the rays.
    """

    chunks: list[int] = field(default_factory=list)

    def split(self, max_samples: int | None) -> list[slice]:
        if max_samples is None or len(self) <= max_samples:
            return [slice(0, self.n_rays)]
        rays = max(1, max_samples // int(self.count[0]))
        self.chunks.append(rays * int(self.count[0]))
        ends = sorted({0, rays, min(2 * rays, self.n_rays), self.n_rays})
        return [slice(first, stop) for first, stop in pairwise(ends)]

    def select_rays(self, part: slice) -> Samples:
        rays, middle = part.stop - part.start, 0 < part.start and part.stop < self.n_rays
        PeakMemory.times = -(-self.n_rays // rays) - 2 if middle else 1
        size = rays * int(self.count[0])
        columns = (column[: min([size, *self.chunks])] for column in (self.ray_index, self.t_start, self.t_end))
        ray_index, t_start, t_end = columns
        index = ray_index if size == len(self) else ray_index - part.start
        return Samples(index, t_start, t_end, self.start[part], self.count[part])


def visible(sigma: Tensor, samples: Samples, alpha_threshold: float, early_stop: float) -> Tensor:
    raise NotImplementedError("the number of visible samples depends on values")


def forward(sigma: Tensor, values: Tensor, *samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return sigma.new_empty(len(samples[2]), values.shape[1] + 2), torch.empty_like(sigma), torch.empty_like(sigma)


def backward(g_pixels: Tensor, g_weights: Tensor, sigma: Tensor, *saved: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sigma), torch.empty_like(saved[0])


composite = differentiable(forward, backward)
