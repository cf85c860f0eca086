"""Regularisers: hand-computed values, ranges, and which inputs they pull on."""

from __future__ import annotations

import math

import pytest
import torch

from threedgen.representations import losses


def test_orientation_counts_visible_matter_facing_away():
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    normals = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-1.0, 0, 0]], requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0]] * 3)
    opacity = torch.tensor([[0.75], [1.0], [0.0]])
    loss = losses.orientation(losses.facing_away(weights, normals, directions), opacity)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.25 * 0.36) / 2)
    loss.backward()
    assert weights.grad is None, "matter must turn round, not vanish"
    assert normals.grad is not None and float(normals.grad[0, 0]) > 0 and float(normals.grad[2].abs().sum()) == 0


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


def test_distortion_is_the_double_sum_of_the_paper():
    """Three rays, the second without a sample; against pairs counted one by one, gradients included."""
    generator = torch.Generator().manual_seed(0)
    start, ray_index = torch.tensor([0, 4, 4]), torch.tensor([0, 0, 0, 0, 2, 2])
    edges = torch.tensor([1.0, 1.2, 1.5, 1.6, 2.0, 0.5, 0.9])
    t_start, t_end = torch.tensor([*edges[:4], 0.5, 1.3]), torch.tensor([*edges[1:5], 0.9, 1.4])
    weights = torch.rand(6, generator=generator, requires_grad=True)
    found = losses.distortion(weights, t_start, t_end, ray_index, start, span=2.0)
    middle, total = (t_start + t_end) / 4, torch.zeros(())
    for i in range(6):
        for j in range(6):
            if ray_index[i] == ray_index[j]:
                total = total + weights[i] * weights[j] * (middle[i] - middle[j]).abs()
        total = total + weights[i] ** 2 * (t_end[i] - t_start[i]) / 2 / 3
    assert found.item() == pytest.approx(total.item() / 3, rel=1e-5)
    mine, theirs = torch.autograd.grad(found, weights)[0], torch.autograd.grad(total / 3, weights)[0]
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_distortion_of_nothing_is_zero_and_one_surface_is_best():
    nothing = torch.zeros(0)
    assert float(losses.distortion(nothing, nothing, nothing, torch.zeros(0).long(), torch.zeros(2).long())) == 0
    t = torch.linspace(0, 1, 11)
    ray, first = torch.zeros(10).long(), torch.zeros(1).long()
    spread, surface = torch.full((10,), 0.1), torch.eye(10)[4]
    values = [float(losses.distortion(w, t[:-1], t[1:], ray, first)) for w in (spread, surface)]
    assert values[0] > 5 * values[1] > 0


def test_roughness_is_that_of_the_normals():
    """A plane has none, a ball little, a ball with dents more; what is away from the origin counts the same."""
    points = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    offsets = 0.02 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))

    def ball(x):
        return torch.nn.functional.normalize(x, dim=-1)

    def dented(x):
        return torch.nn.functional.normalize(x + 0.1 * torch.sin(40 * x), dim=-1)

    plane = losses.roughness(lambda x: torch.eye(3)[2].expand(len(x), 3), points, offsets)
    smooth, rough = (losses.roughness(normal, points, offsets) for normal in (ball, dented))
    assert plane == 0 and smooth == pytest.approx(2 * 0.02**2, rel=0.1) and rough > 5 * smooth
    assert losses.roughness(ball, points[:0], offsets[:0]) == 0
