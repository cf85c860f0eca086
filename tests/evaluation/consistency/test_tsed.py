"""TSED: recorded outputs of the reference, and images of known geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_files import parity_files
from threedgen.evaluation.consistency.tsed import (
    detect,
    fundamental,
    judge,
    match,
    neighbours,
    symmetric_epipolar_distance,
    tsed,
)
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views

FILES = parity_files("metric_tsed")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parity(file: Path) -> None:
    recorded = np.load(file, allow_pickle=False)
    poses, focal = recorded["in:poses_c2w"], 256 * float(recorded["in:focal_y"])
    K = torch.tensor([[focal, 0, 128], [0, focal, 128], [0, 0, 1]], dtype=torch.float64).expand(len(poses), 3, 3)
    at = Cameras(torch.from_numpy(poses).double(), Projection(K), 256, 256)
    found = []
    for k, F in enumerate(fundamental(at.select(slice(0, -1)), at.select(slice(1, None)))):
        found.append(symmetric_epipolar_distance(recorded[f"in:matches_{k}"], F))
        np.testing.assert_allclose(found[-1], recorded[f"out:sed_{k}"], atol=1e-6, rtol=0)
    pairs = judge(found, float(recorded["in:t_error"]), int(recorded["in:t_matches"]))
    wanted = np.where(recorded["out:median_sed"] > 1e10, np.inf, recorded["out:median_sed"])
    np.testing.assert_allclose(pairs.median_sed, wanted, atol=1e-6, rtol=0)
    assert (pairs.consistent, pairs.total) == (int(recorded["out:n_consistent"]), len(found))


def test_epipolar_distance_of_true_and_wrong_points() -> None:
    at = orbit(8, 0.4, 2.5, 0.8, 100, 60)
    c2w, K = at.c2w.double().numpy(), at.K.double().numpy()
    points = np.random.default_rng(0).normal(0, 0.3, (20, 3))

    def pixels(k: int) -> np.ndarray:
        x = (points - c2w[k, :3, 3]) @ c2w[k, :3, :3] @ np.diag([1.0, -1.0, -1.0]) @ K[k].T
        return x[:, :2] / x[:, 2:]

    matches = np.hstack([pixels(0), pixels(1)])
    right, wrong, same = fundamental(at.select([0, 0, 0]), at.select([1, 2, 0]))
    assert symmetric_epipolar_distance(matches, right).max() < 1e-4
    assert np.median(symmetric_epipolar_distance(matches, wrong)) > 1
    assert np.isinf(symmetric_epipolar_distance(matches, same)).all()  # no line between cameras in one place


def test_judge_counts_consistent_pairs() -> None:
    good, far, few, none = np.full(10, 1.9), np.full(30, 2.0), np.full(9, 0.1), np.zeros(0)
    pairs = judge([good, far, few, none], 2.0, 10)
    assert (pairs.consistent, pairs.total, pairs.matches) == (1, 4, (10, 30, 9, 0)) and pairs.share == 0.25
    assert judge([], 2.0, 10).share is None


def test_neighbours_are_evenly_spread() -> None:
    assert neighbours(4, 100) == [(0, 1), (1, 2), (2, 3)]
    assert neighbours(251, 3) == [(0, 1), (124, 125), (249, 250)]
    assert neighbours(251, 0) == neighbours(1, 5) == []


def shifted(step: int) -> Views:
    """A textured wall at distance 1 in three cameras ``step`` pixels apart."""
    size, focal = 64, 64.0
    wall = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    wall = torch.nn.functional.interpolate(wall, (size, 110), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
    c2w = torch.eye(4).repeat(3, 1, 1)
    c2w[:, 0, 3] = torch.arange(3) * step / focal
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]).expand(3, 3, 3)
    images = torch.stack([wall[:, k * step : k * step + size] for k in range(3)])
    return Views(images, Cameras(c2w, Projection(K), size, size))


def test_tsed_of_a_wall() -> None:
    views = shifted(8)
    assert tsed(views, 24).share == 1
    up = views.cameras.c2w.clone()
    up[:, :2, 3] = up[:, :2, 3].flip(-1)  # cameras that are said to climb, with the pictures of those that go right
    wrong = tsed(Views(views.images, Cameras(up, Projection(views.cameras.K), 64, 64)), 24)
    assert wrong.share == 0 and min(wrong.matches) >= 10


def test_blank_image_has_no_matches() -> None:
    blank = detect(np.full((32, 32, 3), 128, np.uint8))
    assert blank is None and match(blank, blank).shape == (0, 4)
