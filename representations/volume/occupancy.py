"""A coarse grid that remembers where a field has matter, so that rays can skip the rest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from threedgen.representations.options import OccupancyConfig


class OccupancyGrid(nn.Module):
    """Cells of the cube [-radius, radius]^3, indexed [x, y, z].

    values (G, G, G) float32: running maximum of density * step, the optical thickness of one step, which forgets
    slowly; binary (G, G, G) bool: cells that are sampled, all of them at first. Both are saved with the module.
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
        """Look at a random point of each cell (later: of some cells) and renew the flags.

        density: points (M, 3) -> (M,). Call it at every step; it does nothing in between. Draws from
        `generator`, a generator of the CPU, whatever the grid's device: same generator, same grid.
        """
        if step % self.options.interval:
            return
        every, size = torch.arange(self.values.numel(), device=self.values.device), self.options.resolution
        cells = every if step < self.options.warmup else self._some(generator)
        corner = torch.stack([cells // (size * size), cells // size % size, cells % size], dim=-1)
        inside = torch.rand(len(cells), 3, generator=generator).to(cells.device)
        points = ((corner + inside) * (2 / size) - 1) * self.radius
        seen = density(points).reshape(-1).float() * self.step_size
        values = self.values.view(-1)
        decayed = values[cells] * self.options.decay
        # a cell may be in the list twice: it takes its larger value, whatever the order
        fresh = torch.zeros_like(values).scatter_reduce(0, cells, torch.maximum(decayed, seen), "amax")
        values[cells] = fresh[cells]
        threshold = min(self.mean(), self.options.threshold)
        self.binary.copy_(self.values > threshold)

    def mean(self) -> float:
        """Mean of the values; row by row, which no number of threads can change in the last bit."""
        return float(self.values.mean(-1).mean())

    def _some(self, generator: torch.Generator) -> Tensor:
        """A fixed number of cells drawn from all, and at most as many of the full ones."""
        total = self.values.numel()
        many = max(1, int(total * self.options.fraction))
        uniform = torch.randint(total, (many,), generator=generator).to(self.values.device)
        full = self.binary.view(-1).nonzero()[:, 0]
        if len(full) > many:
            full = full[torch.randint(len(full), (many,), generator=generator).to(full.device)]
        return torch.cat([uniform, full])
