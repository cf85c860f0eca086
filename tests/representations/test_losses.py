"""Regularisation losses: hand-computed values, ranges and gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from threedgen.representations import losses


def test_orientation_penalises_normals_facing_away():
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    normals = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-1.0, 0, 0]], requires_grad=True)
    directions = torch.tensor([[1.0, 0, 0]] * 3)
    opacity = torch.tensor([[0.75], [1.0], [0.0]])
    loss = losses.orientation(losses.orientation_terms(weights, normals, directions), opacity)
    assert loss.item() == pytest.approx((0.5 * 1 + 0.25 * 0.36) / 2)
    loss.backward()
    assert weights.grad is None, "the loss must rotate normals, not remove density"
    assert normals.grad is not None and float(normals.grad[0, 0]) > 0 and float(normals.grad[2].abs().sum()) == 0
    empty = losses.orientation_terms(torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))
    assert float(losses.orientation(empty, torch.zeros(4, 1))) == 0


@pytest.mark.parametrize(("opacity", "expected"), [(0.0, 0.1), (1.0, math.sqrt(1.01))])
def test_sparsity_of_constant_opacity(opacity, expected):
    assert float(losses.sparsity(torch.full((5, 1), opacity))) == pytest.approx(expected)


def test_opaque_is_largest_at_one_half_and_finite_at_the_ends():
    values = [float(losses.opaque(torch.full((3, 1), o))) for o in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert values[2] == max(values) == pytest.approx(math.log(2))
    assert values[1] == pytest.approx(values[3], rel=1e-5) and values[0] == pytest.approx(values[4], rel=1e-4)
    assert 0 < values[0] < 0.01


@pytest.mark.parametrize(
    ("opacity", "expected", "gradient"), [((0.6, 1, 0.4), 0.2, (0.5, 0.5, 0)), ((0, 0, 0), 0, (0, 0, 0))]
)
def test_z_variance_is_the_mean_over_solid_rays(opacity, expected, gradient):
    variance = torch.tensor([[0.1], [0.3], [9.0]], requires_grad=True)
    loss = losses.z_variance(variance, torch.tensor(opacity)[:, None])
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert variance.grad[:, 0].tolist() == list(gradient)


def test_distortion_equals_the_double_sum():
    """Compare values and gradients with explicit pairs, for three rays, the second without samples."""
    generator = torch.Generator().manual_seed(0)
    start, ray_index = torch.tensor([0, 4, 4]), torch.tensor([0, 0, 0, 0, 2, 2])
    edges = torch.tensor([1.0, 1.2, 1.5, 1.6, 2.0, 0.5, 0.9])
    t_start, t_end = torch.tensor([*edges[:4], 0.5, 1.3]), torch.tensor([*edges[1:5], 0.9, 1.4])
    weights = torch.rand(6, generator=generator, requires_grad=True)
    loss = losses.distortion(weights, t_start, t_end, ray_index, start, span=2.0)
    middle, total = (t_start + t_end) / 4, torch.zeros(())
    for i in range(6):
        for j in range(6):
            if ray_index[i] == ray_index[j]:
                total = total + weights[i] * weights[j] * (middle[i] - middle[j]).abs()
        total = total + weights[i] ** 2 * (t_end[i] - t_start[i]) / 2 / 3
    assert loss.item() == pytest.approx(total.item() / 3, rel=1e-5)
    gradient, expected = (torch.autograd.grad(value, weights)[0] for value in (loss, total / 3))
    assert torch.allclose(gradient, expected, atol=1e-6)


def test_distortion_is_zero_without_samples_and_small_for_a_surface():
    empty = torch.zeros(0)
    assert float(losses.distortion(empty, empty, empty, torch.zeros(0).long(), torch.zeros(2).long())) == 0
    t = torch.linspace(0, 1, 11)
    ray, first = torch.zeros(10).long(), torch.zeros(1).long()
    spread, surface = torch.full((10,), 0.1), torch.eye(10)[4]
    values = [float(losses.distortion(w, t[:-1], t[1:], ray, first)) for w in (spread, surface)]
    assert values[0] > 5 * values[1] > 0


def test_normal_smoothness_grows_with_bumps():
    points = normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    offsets = 0.02 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))

    def ball(x):
        return normalize(x, dim=-1)

    def bumpy(x):
        return normalize(x + 0.1 * torch.sin(40 * x), dim=-1)

    plane = losses.normal_smoothness(lambda x: torch.eye(3)[2].expand(len(x), 3), points, offsets)
    smooth, rough = (losses.normal_smoothness(normal, points, offsets) for normal in (ball, bumpy))
    assert plane == 0 and smooth == pytest.approx(2 * 0.02**2, rel=0.1) and rough > 5 * smooth
    assert losses.normal_smoothness(ball, points[:0], offsets[:0]) == 0
