"""FID and KID: against recorded outputs, and on cases known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_files import parity_files
from threedgen.evaluation.metrics.distributions import fid, kid


def test_parity_files_are_there() -> None:
    assert parity_files("metric_distribution")


@pytest.mark.parametrize("file", parity_files("metric_distribution"), ids=lambda file: file.stem)
def test_distribution_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    x, y = found["in:features_x"], found["in:features_y"]
    assert fid(x, y) == pytest.approx(float(found["out:fid"]), rel=1e-6)
    count = min(len(x), len(y))
    assert kid(x[:count], y[:count], 1, count)[0] == pytest.approx(float(found["out:kid"]), rel=1e-6)


def test_distances_of_equal_and_of_shifted_features() -> None:
    x = np.random.default_rng(0).normal(size=(400, 6))
    assert fid(x, x) == pytest.approx(0, abs=1e-9) and fid(x, x + 2) == pytest.approx(24)
    assert fid(x[:, :1], 3 * x[:, :1]) == pytest.approx(4 * (x[:, 0].mean() ** 2 + x[:, 0].var(ddof=1)))
    y = np.random.default_rng(1).normal(size=(300, 6))
    assert abs(kid(x[:300], y, 1, 300)[0]) < 0.1 < kid(x[:300], y + 1, 1, 300)[0]  # about 0 for the same distribution
    mean, spread = kid(x, y + 1, subsets=20, size=100)
    assert mean == pytest.approx(kid(x[:300], y + 1, 1, 300)[0], rel=0.15) and spread > 0
    state = torch.get_rng_state()
    assert kid(x, y, 2, 100) == kid(x, y, 2, 100) != kid(x, y, 2, 100, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="subsets of 1000"):
        kid(x, y)
    for wrong in (x[:1], x[:, :3], x[0]):
        with pytest.raises(ValueError, match="features should be"):
            fid(x, wrong)
