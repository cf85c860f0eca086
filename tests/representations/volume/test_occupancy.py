"""The occupancy grid: it finds matter, forgets it slowly, and draws only from its generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threedgen.representations.options import OccupancyConfig
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run.seeding import generator


def grid(**options) -> OccupancyGrid:
    return OccupancyGrid(OccupancyConfig(**{"resolution": 16} | options), radius=1.0, step_size=0.02)


def ball(x: Tensor) -> Tensor:
    """Solid ball of radius 0.4 round (0.3, 0, -0.2)."""
    return (x - x.new_tensor([0.3, 0.0, -0.2])).norm(dim=-1).lt(0.4).float() * 50


def centres(size: int, radius: float = 1.0) -> Tensor:
    c = ((torch.arange(size) + 0.5) * 2 / size - 1) * radius
    return torch.stack(torch.meshgrid(c, c, c, indexing="ij"), dim=-1)


def run(module: OccupancyGrid, density, steps: range) -> None:
    for step in steps:
        module.update(density, step, generator(0, step, "occupancy"))


def test_everything_is_sampled_before_the_first_update():
    assert grid().binary.float().mean() == 1.0


@pytest.mark.parametrize("warmup", [256, 0])
def test_it_finds_the_ball_and_leaves_the_rest(warmup):
    module = grid(warmup=warmup)
    run(module, ball, range(0, 16 * 30, 16))
    distance = (centres(16) - torch.tensor([0.3, 0.0, -0.2])).norm(dim=-1)
    half = 3**0.5 / 16  # centre of a cell to its corner
    assert module.binary[distance < 0.4 - half].all()
    assert not module.binary[distance > 0.4 + half].any()


def test_cells_cover_the_cube_of_their_radius():
    module, seen = OccupancyGrid(OccupancyConfig(resolution=4), radius=2.0, step_size=0.1), []
    module.update(lambda x: seen.append(x) or torch.zeros(len(x)), 0, generator(0, 0, "occupancy"))
    assert (seen[0].view(4, 4, 4, 3) - centres(4, 2.0)).abs().max() <= 0.5
    assert seen[0].abs().max() > 1.5


def test_only_every_interval_th_step_counts():
    module = grid(interval=8)
    asked: list[int] = []
    for step in range(20):
        module.update(lambda x, step=step: asked.append(step) or torch.zeros(len(x)), step, generator(0, step, "grid"))
    assert asked == [0, 8, 16]


def test_matter_that_goes_is_forgotten_slowly():
    module = grid(decay=0.5)
    run(module, lambda x: torch.ones(len(x)), range(0, 16, 16))
    assert float(module.values.max()) == pytest.approx(0.02)
    run(module, lambda x: torch.zeros(len(x)), range(16, 48, 16))
    torch.testing.assert_close(module.values, torch.full((16, 16, 16), 0.02 / 4))


def test_thin_fog_lowers_the_threshold():
    module = grid()
    run(module, lambda x: (x[:, 0] > 0).float() * 0.01, range(0, 16, 16))
    assert 0.4 < module.binary.float().mean() < 0.6


def test_after_the_warm_up_a_quarter_and_the_full_cells_are_looked_at():
    module, counts = grid(warmup=16), []
    count = lambda x: counts.append(len(x)) or ball(x)  # noqa: E731
    run(module, count, range(0, 48, 16))
    full = int(module.binary.sum())
    assert counts[0] == 16**3
    assert 16**3 // 4 < counts[1] <= 16**3 // 4 + full + 50


def test_same_generator_same_grid_and_the_global_state_is_left_alone():
    state = torch.get_rng_state()
    pair = [grid(warmup=32), grid(warmup=32)]
    for module in pair:
        run(module, ball, range(0, 160, 16))
    assert torch.equal(pair[0].values, pair[1].values)
    assert torch.equal(torch.get_rng_state(), state)
    other = grid(warmup=32)
    other.update(ball, 0, generator(1, 0, "occupancy"))
    assert not torch.equal(other.values, pair[0].values)


def test_state_dict_carries_it_all():
    first, second = grid(), grid()
    run(first, ball, range(0, 64, 16))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.binary, second.binary) and torch.equal(first.values, second.values)
    assert 0 < first.binary.float().mean() < 1
