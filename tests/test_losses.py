"""Regularisers: hand-computed values, ranges, and which inputs they pull on."""

from __future__ import annotations

import math

import pytest
import torch

from threedgen import losses


def test_orientation_counts_visible_matter_facing_away():
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    normals = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-1.0, 0, 0]], requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0]] * 3)
    opacity = torch.tensor([[0.75], [1.0], [0.0]])
    loss = losses.orientation(losses.facing_away(weights, normals, directions), opacity)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.25 * 0.36) / 2)
    loss.backward()
    assert weights.grad is None, "matter must turn round, not vanish"
    assert (
        normals.grad is not None and float(normals.grad[0, 0]) > 0 and float(normals.grad[2].abs().sum()) == 0
    )


def test_orientation_without_matter_is_zero():
    nothing = losses.facing_away(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))
    assert float(losses.orientation(nothing, torch.zeros(4, 1))) == 0


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, 0.1), (1.0, math.sqrt(1.01))])
def test_sparsity(opacity, expected):
    assert float(losses.sparsity(torch.full((5, 1), opacity))) == pytest.approx(expected)


def test_opaque_is_largest_for_half_and_finite_at_the_ends():
    values = [float(losses.opaque(torch.full((3, 1), o))) for o in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert values[2] == max(values) == pytest.approx(math.log(2))
    assert values[1] == pytest.approx(values[3], rel=1e-5) and values[0] == pytest.approx(values[4], rel=1e-4)
    assert 0 < values[0] < 0.01


def test_z_variance_looks_at_solid_rays_only():
    variance = torch.tensor([[0.1], [0.3], [9.0]], requires_grad=True)
    loss = losses.z_variance(variance, torch.tensor([[0.6], [1.0], [0.4]]))
    assert loss.item() == pytest.approx(0.2)
    loss.backward()
    torch.testing.assert_close(variance.grad, torch.tensor([[0.5], [0.5], [0.0]]))


def test_z_variance_of_fog_is_zero_and_differentiable():
    variance = torch.ones(3, 1, requires_grad=True)
    loss = losses.z_variance(variance, torch.zeros(3, 1))
    loss.backward()
    assert loss.item() == 0 and float(variance.grad.abs().sum()) == 0
