"""Occupancy grid: marks cells that contain density, so that rays skip empty space."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threedgen.representations.options import OccupancyConfig


class OccupancyGrid(nn.Module):
    """Occupancy grid with G cells per axis over the cube [-radius, radius]^3, indexed [x, y, z].

    Attributes:
        radius, step_size: half the side of the cube and the length of one ray step, in world units.
        values: (G, G, G) float32 buffer, decaying maximum of density * step size (the optical depth of one ray step).
        binary: (G, G, G) bool buffer, True for occupied cells. Initially all cells are occupied.
    """

    values: Tensor
    binary: Tensor

    def __init__(self, options: OccupancyConfig, radius: float, step_size: float):
        super().__init__()
        self.options, self.radius, self.step_size = options, radius, step_size
        shape = (options.resolution,) * 3
        self.register_buffer("values", torch.zeros(shape))
        self.register_buffer("binary", torch.ones(shape, dtype=torch.bool))

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], step: int, generator: torch.Generator) -> None:
        """Update the grid with the density at one random point per cell. Call it at every step.

        It does nothing in the steps between two intervals. During the warm-up it updates all cells, later a random
        subset.

        Args:
            density: maps points (M, 3) in world units to densities (M,).
            generator: CPU generator, so that the random points do not depend on the device.
        """
        if step % self.options.interval:
            return
        all_cells, size = torch.arange(self.values.numel(), device=self.values.device), self.options.resolution
        cells = all_cells if step < self.options.warmup else self._sample_cells(generator)
        corner = torch.stack([cells // (size * size), cells // size % size, cells % size], dim=-1)
        offset = torch.rand(len(cells), 3, generator=generator).to(cells.device)
        points = ((corner + offset) * (2 / size) - 1) * self.radius
        new = density(points).reshape(-1).float() * self.step_size
        values = self.values.view(-1)
        decayed = values[cells] * self.options.decay
        # a cell may occur twice: the larger value wins, in any order
        updated = torch.zeros_like(values).scatter_reduce(0, cells, torch.maximum(decayed, new), "amax")
        values[cells] = updated[cells]
        threshold = min(self.mean(), self.options.threshold)
        self.binary.copy_(self.values > threshold)

    def mean(self) -> float:
        """Return the mean of `values`. It is summed row by row and bit-identical for any number of threads."""
        return float(self.values.mean(-1).mean())

    def _sample_cells(self, generator: torch.Generator) -> Tensor:
        """Return flat indices of a fixed number of uniformly sampled cells, and of at most as many occupied cells."""
        total = self.values.numel()
        count = max(1, int(total * self.options.fraction))
        uniform = torch.randint(total, (count,), generator=generator).to(self.values.device)
        occupied = self.binary.view(-1).nonzero()[:, 0]
        if len(occupied) > count:
            occupied = occupied[torch.randint(len(occupied), (count,), generator=generator).to(occupied.device)]
        return torch.cat([uniform, occupied])
