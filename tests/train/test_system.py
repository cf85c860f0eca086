"""What all systems that learn draw in a step."""

from __future__ import annotations

import pytest
import torch

from threedgen.train.system import stratified


@pytest.mark.parametrize("count", [1, 3, 16])
def test_the_noise_levels_of_a_step_are_spread_out(count: int) -> None:
    for seed in range(20):
        draws = stratified(count, torch.Generator().manual_seed(seed))
        assert sorted((draws * count).long().clamp(max=count - 1).tolist()) == list(range(count))
