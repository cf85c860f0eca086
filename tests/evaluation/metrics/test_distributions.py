"""FID, KID, Inception score, T3Bench's quality, Elo ratings: against recorded outputs, and on cases known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_files import parity_files
from threedgen.data.coloured_mesh import ColouredMesh, Part
from threedgen.evaluation.metrics.distributions import fid, inception_score, kid, r_precision
from threedgen.evaluation.metrics.elo import ratings, wins
from threedgen.evaluation.metrics.figures import Share
from threedgen.evaluation.metrics.t3bench import cameras, icosphere, quality, quality_of, smoothed

PREFIXES = ("metric_distribution", "metric_elo", "metric_t3bench_quality")


def recorded(prefix: str) -> list[Path]:
    return parity_files(prefix)


def test_parity_files_are_there() -> None:
    assert all(recorded(prefix) for prefix in PREFIXES)


# --- FID, KID, IS ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", recorded("metric_distribution"), ids=lambda file: file.stem)
def test_distribution_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    x, y = found["in:features_x"], found["in:features_y"]
    assert fid(x, y) == pytest.approx(float(found["out:fid"]), rel=1e-6)
    count = min(len(x), len(y))
    assert kid(x[:count], y[:count], 1, count)[0] == pytest.approx(float(found["out:kid"]), rel=1e-6)
    splits = int(json.loads(str(found["meta_json"]))["is_splits"])
    wanted = float(found["out:is_mean"]), float(found["out:is_std"])
    assert inception_score(found["in:logits"], splits) == pytest.approx(wanted, rel=1e-6)


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


def test_inception_score_counts_the_classes_that_are_seen() -> None:
    crisp = 50 * np.eye(5)[np.arange(40) % 5]
    assert inception_score(crisp, 1) == pytest.approx((5, 0)) and inception_score(np.zeros((40, 5)), 4)[0] == 1
    assert inception_score(crisp[np.arange(40) // 8 * 8 % 5 == 0], 1)[0] < 5
    with pytest.raises(ValueError, match="splits"):
        inception_score(crisp, 41)


def test_r_precision() -> None:
    similarity = [[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.1, 0.2, 0.3]]
    assert r_precision(np.array(similarity)) == Share(2, 3)
    assert r_precision(np.array(similarity + [[0.0, 1.0, 0.0]]), [0, 1, 2, 1]) == Share(3, 4)
    with pytest.raises(ValueError, match="a row for each asset"):
        r_precision(np.array(similarity)[:, :2])


# --- Elo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", recorded("metric_elo"), ids=lambda file: file.stem)
def test_elo_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    table = wins(found["in:comparisons"], len(found["out:wins"]))
    np.testing.assert_array_equal(table, found["out:wins"])
    np.testing.assert_allclose(ratings(table), found["out:elo_minus_first"], atol=1.0)


def test_two_methods_have_the_odds_that_they_won_by() -> None:
    table = wins(np.array([[0, 1, -1]] * 30 + [[0, 1, 1]] * 8 + [[1, 0, -1]] * 2 + [[0, 1, 0]] * 5))
    assert table.tolist() == [[0, 35], [15, 0]]
    assert ratings(table) == pytest.approx([0, -400 * np.log10(35 / 15)], abs=1e-3)
    assert ratings(table, {1: 1000.0}) == pytest.approx([1000 + 400 * np.log10(35 / 15), 1000], abs=1e-3)


def test_a_new_method_leaves_the_others_where_they_are() -> None:
    old = {0: 1000.0, 1: 1200.0}
    table = np.zeros((3, 3))
    table[2, 0], table[0, 2], table[2, 1], table[1, 2] = 20, 10, 8, 12
    found = ratings(table, old)
    assert found[:2].tolist() == [1000, 1200] and 1000 < found[2] < 1200
    slope = sum(
        table[2, k] * (1 - win) - table[k, 2] * win for k in old if (win := 1 / (1 + 10 ** ((old[k] - found[2]) / 400)))
    )
    assert slope == pytest.approx(0, abs=1e-6)


def test_who_never_lost_stays_finite_and_mistakes_are_named() -> None:
    found = ratings(wins(np.array([[0, 1, -1]] * 10 + [[1, 2, -1], [2, 1, -1]])))
    assert np.isfinite(found).all() and found[0] > found[1] + 1000 and found[1] == pytest.approx(found[2], abs=1)
    for wrong in ([[0, 1, 2]], [[0, -1, 1]]):
        with pytest.raises(ValueError, match="rows"):
            wins(np.array(wrong))
    with pytest.raises(ValueError, match="square"):
        ratings(np.zeros((2, 3)))


# --- T3Bench -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", recorded("metric_t3bench_quality"), ids=lambda file: file.stem)
def test_t3bench_parity(file: Path) -> None:
    found = np.load(file, allow_pickle=False)
    rewards, edges = found["in:rewards"], found["in:edges"]
    rounds = int(json.loads(str(found["meta_json"]))["rounds"])
    np.testing.assert_allclose(smoothed(rewards.max(1), edges, rounds), found["out:smoothed"], atol=1e-9, rtol=0)
    assert quality(rewards, edges, rounds) == pytest.approx(float(found["out:quality"]), abs=1e-9)
    if len(found["in:vertices"]) == 162:  # its corners and edges are the ones that we would take
        ours, between = icosphere()
        theirs = found["in:vertices"] / np.linalg.norm(found["in:vertices"], axis=1, keepdims=True)  # of radius 2.2
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        assert {tuple(sorted(edge)) for edge in between.tolist()} == {tuple(sorted(edge)) for edge in edges.tolist()}


def test_one_good_side_among_bad_ones_loses() -> None:
    corners, edges = icosphere()
    assert corners.shape == (162, 3) and len(edges) == 480
    lone, region = np.full((162, 5), -1.0), np.full((162, 5), -1.0)
    lone[10, 2] = 1.0
    region[corners @ corners[10] > 0.7, 2] = 1.0
    assert quality(np.zeros((162, 5)), edges) == 50 and quality(np.ones((162, 5)), edges) == pytest.approx(70)
    assert quality(lone, edges) < 40 < 60 < quality(region, edges)


def test_cameras_look_at_the_middle_with_z_up() -> None:
    poses = cameras(np.array([[1.0, 0, 0], [0, 0, 1], [0.6, 0, 0.8]]))
    for pose in poses:
        np.testing.assert_allclose(pose[:3, 3], 2.2 * pose[:3, 2], atol=1e-5)
    assert poses[0, :3, 1].tolist() == pytest.approx([0, 0, 1]) and poses[1, :3, 1].tolist() == pytest.approx([0, 1, 0])
    assert poses[2, 2, 1] > 0


def test_a_mesh_is_scored_from_all_around_at_all_zooms() -> None:
    corners = np.array([[[0.0, -1, -1], [0, 1, -1], [0, 0, 1]]]) * 3 + 5
    thing = ColouredMesh((Part(corners, np.ones((1, 3, 3))),))
    sizes: list[float] = []

    def reward(picture: np.ndarray) -> float:
        assert picture.shape == (16, 16, 3) and picture[0, 0].tolist() == [0, 0, 0]
        sizes.append(float(picture.mean()))
        return sizes[-1]

    found = quality_of(thing, reward, size=16, subdivisions=0)
    assert len(sizes) == 12 * 5 and sizes[4] > sizes[0] and 50 < found < 70
