"""Occupancy grid: occupied cells, decay, and randomness only from the generator."""

import pytest
import torch
from torch import Tensor

from threedgen.representations.options import OccupancyConfig
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run.seeding import generator


def grid(**options) -> OccupancyGrid:
    return OccupancyGrid(OccupancyConfig(**{"resolution": 16} | options), radius=1.0, step_size=0.02)


def ball(x: Tensor) -> Tensor:
    """Density of a solid ball of radius 0.4 at (0.3, 0, -0.2)."""
    return (x - x.new_tensor([0.3, 0.0, -0.2])).norm(dim=-1).lt(0.4).float() * 50


def centres(size: int, radius: float = 1.0) -> Tensor:
    c = ((torch.arange(size) + 0.5) * 2 / size - 1) * radius
    return torch.stack(torch.meshgrid(c, c, c, indexing="ij"), dim=-1)


def update(module: OccupancyGrid, density, steps: range) -> None:
    for step in steps:
        module.update(density, step, generator(0, step, "occupancy"))


@pytest.mark.parametrize("warmup", [256, 0])
def test_update_finds_exactly_the_occupied_cells(warmup):
    module = grid(warmup=warmup)
    assert module.binary.all(), "all cells are sampled before the first update"
    update(module, ball, range(0, 16 * 30, 16))
    distance = (centres(16) - torch.tensor([0.3, 0.0, -0.2])).norm(dim=-1)
    half = 3**0.5 / 16  # half the diagonal of a cell
    assert module.binary[distance < 0.4 - half].all()
    assert not module.binary[distance > 0.4 + half].any()


def test_update_samples_every_cell_of_the_cube():
    module, points = OccupancyGrid(OccupancyConfig(resolution=4), radius=2.0, step_size=0.1), []
    module.update(lambda x: points.append(x) or torch.zeros(len(x)), 0, generator(0, 0, "occupancy"))
    assert (points[0].view(4, 4, 4, 3) - centres(4, 2.0)).abs().max() <= 0.5
    assert points[0].abs().max() > 1.5


def test_update_runs_only_at_the_interval():
    module, steps = grid(interval=8), []
    for step in range(20):
        module.update(lambda x, step=step: steps.append(step) or torch.zeros(len(x)), step, generator(0, step, "grid"))
    assert steps == [0, 8, 16]


def test_values_decay_after_density_disappears():
    module = grid(decay=0.5)
    update(module, lambda x: torch.ones(len(x)), range(0, 16, 16))
    assert float(module.values.max()) == pytest.approx(0.02)
    update(module, lambda x: torch.zeros(len(x)), range(16, 48, 16))
    torch.testing.assert_close(module.values, torch.full((16, 16, 16), 0.02 / 4))


def test_low_density_lowers_the_threshold():
    module = grid()
    update(module, lambda x: (x[:, 0] > 0).float() * 0.01, range(0, 16, 16))
    assert 0.4 < module.binary.float().mean() < 0.6


def test_update_after_warmup_samples_a_quarter_and_the_occupied_cells():
    module, counts = grid(warmup=16), []
    count = lambda x: counts.append(len(x)) or ball(x)  # noqa: E731
    update(module, count, range(0, 48, 16))
    occupied = int(module.binary.sum())
    assert counts[0] == 16**3
    assert 16**3 // 4 < counts[1] <= 16**3 // 4 + occupied + 50


def test_update_depends_only_on_the_generator():
    state = torch.get_rng_state()
    pair = [grid(warmup=32), grid(warmup=32)]
    for module in pair:
        update(module, ball, range(0, 160, 16))
    assert torch.equal(pair[0].values, pair[1].values)
    assert torch.equal(torch.get_rng_state(), state)
    other = grid(warmup=32)
    other.update(ball, 0, generator(1, 0, "occupancy"))
    assert not torch.equal(other.values, pair[0].values)


def test_state_dict_restores_the_grid():
    first, second = grid(), grid()
    update(first, ball, range(0, 64, 16))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.binary, second.binary) and torch.equal(first.values, second.values)
    assert 0 < first.binary.float().mean() < 1
