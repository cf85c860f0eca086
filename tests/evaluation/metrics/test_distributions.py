"""FID, KID and Inception score: recorded outputs, and cases with known results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_files import parity_files
from threedgen.evaluation.metrics.distributions import fid, inception_score, kid

FILES = parity_files("metric_distribution")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_distribution_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    x, y = found["in:features_x"], found["in:features_y"]
    assert fid(x, y) == pytest.approx(float(found["out:fid"]), rel=1e-6)
    count = min(len(x), len(y))
    assert kid(x[:count], y[:count], 1, count)[0] == pytest.approx(float(found["out:kid"]), rel=1e-6)
    splits = int(json.loads(str(found["meta_json"]))["is_splits"])
    expected = float(found["out:is_mean"]), float(found["out:is_std"])
    assert inception_score(found["in:logits"], splits) == pytest.approx(expected, rel=1e-6)


def test_distances_of_equal_and_shifted_features() -> None:
    x = np.random.default_rng(0).normal(size=(400, 6))
    assert fid(x, x) == pytest.approx(0, abs=1e-9) and fid(x, x + 2) == pytest.approx(24)
    assert fid(x[:, :1], 3 * x[:, :1]) == pytest.approx(4 * (x[:, 0].mean() ** 2 + x[:, 0].var(ddof=1)))
    y = np.random.default_rng(1).normal(size=(300, 6))
    assert abs(kid(x[:300], y, 1, 300)[0]) < 0.1 < kid(x[:300], y + 1, 1, 300)[0]  # about 0 for the same distribution
    mean, deviation = kid(x, y + 1, subsets=20, size=100)
    assert mean == pytest.approx(kid(x[:300], y + 1, 1, 300)[0], rel=0.15) and deviation > 0
    state = torch.get_rng_state()
    assert kid(x, y, 2, 100) == kid(x, y, 2, 100) != kid(x, y, 2, 100, seed=1)
    assert torch.equal(state, torch.get_rng_state())


def test_inception_score_of_certain_and_uniform_logits() -> None:
    certain = 50 * np.eye(5)[np.arange(40) % 5]
    assert inception_score(certain, 1) == pytest.approx((5, 0)) and inception_score(np.zeros((40, 5)), 4)[0] == 1
    assert inception_score(certain[np.arange(40) // 8 * 8 % 5 == 0], 1)[0] < 5
