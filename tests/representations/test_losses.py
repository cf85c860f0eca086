from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.errors import refused
from threedgen.representations import backends, losses
from threedgen.representations.base import Render
from threedgen.representations.march import Samples, pack
from threedgen.representations.options import DiffuseMaterialConfig
from threedgen.representations.shading import DiffuseMaterial, Shading


def rendered(opacity: Any, **channels: Any) -> Render:
    """Return a render of R rays with the given opacities (R,) and further attributes."""
    opacity = torch.as_tensor(opacity, dtype=torch.float32).reshape(-1, 1)
    black = torch.zeros(len(opacity), 3)
    return Render(black, black, black, opacity, **({"depth": opacity, "z_variance": opacity} | channels))


def test_orientation_penalises_normals_facing_away() -> None:
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    normals = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-1.0, 0, 0]], requires_grad=True)
    terms = losses.orientation_terms(weights, normals, torch.tensor([[1.0, 0, 0]] * 3))
    loss = losses.orientation(rendered([0.75, 1.0, 0.0], orientation=terms[:, None]))
    assert loss.item() == pytest.approx((0.5 * 1 + 0.25 * 0.36) / 2)
    loss.backward()
    assert weights.grad is None, "the loss must rotate normals, not remove density"
    assert normals.grad is not None and float(normals.grad[0, 0]) > 0 and float(normals.grad[2].abs().sum()) == 0
    assert float(losses.orientation(rendered([0.0] * 4, orientation=torch.zeros(4, 1)))) == 0
    with refused(None, "normals", kind=ValueError):
        losses.orientation(rendered([1.0]))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([[0.8, 0.0], [0.4, 0.0]], 0.0),  # a thin translucent surface; the second ray is not solid
        ([[0.3, 0.3], [0.5, 0.5]], 0.25),  # half of the weight at each of two distances, 1 apart
        ([[0.45, 0.15], [0.2, 0.1]], 0.75 * 0.25),
        ([[0.0, 0.0], [0.0, 0.0]], 0.0),
    ],
)
def test_z_variance_is_the_mean_over_solid_rays(weights: Any, expected: float) -> None:
    weight, distance = torch.tensor(weights, requires_grad=True), torch.tensor([1.5, 2.5])
    depth = (weight * distance).sum(-1, keepdim=True)
    spread = (weight * (distance - depth).square()).sum(-1, keepdim=True)
    loss = losses.z_variance(rendered(weight.sum(-1), depth=depth, z_variance=spread))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


def distortion(weights: Tensor, samples: Samples, span: float = 1.0) -> Tensor:
    loss = losses.distortion(rendered(torch.ones(samples.n_rays), weights=weights, samples=samples), span)
    assert loss is not None
    return loss


def test_distortion_equals_the_double_sum() -> None:
    """Compare values and gradients with explicit pairs, for three rays, the second without samples."""
    edges = torch.tensor([1.0, 1.2, 1.5, 1.6, 2.0])
    t_start, t_end = torch.tensor([*edges[:4], 0.5, 1.3]), torch.tensor([*edges[1:], 0.9, 1.4])
    samples = pack(torch.tensor([0, 0, 0, 0, 2, 2]), t_start, t_end, 3)
    weights = torch.rand(6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = distortion(weights, samples, span=2.0)
    middle, total = (t_start + t_end) / 4, torch.zeros(())
    for i in range(6):
        for j in range(6):
            if samples.ray_index[i] == samples.ray_index[j]:
                total = total + weights[i] * weights[j] * (middle[i] - middle[j]).abs()
        total = total + weights[i] ** 2 * (t_end[i] - t_start[i]) / 2 / 3
    assert loss.item() == pytest.approx(total.item() / 3, rel=1e-5)
    gradient, expected = (torch.autograd.grad(value, weights)[0] for value in (loss, total / 3))
    assert torch.allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize(("function", "tolerance"), [(torch.cumsum, 1e-4), (backends.deterministic_cumsum, 1e-3)])
def test_distortion_of_many_rays_in_float32_equals_float64(function: Any, tolerance: float, monkeypatch: Any) -> None:
    """As on a GPU. Thin surfaces far from the camera; sums over all rays are about 4000 times as large as of a ray."""
    monkeypatch.setattr(losses, "cumsum", function)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    rays, steps = 4000, 40
    t = 27 + torch.rand(rays, generator=torch.Generator().manual_seed(0))[:, None] + 0.01 * torch.arange(steps)
    peak = torch.exp(-(torch.arange(steps) - 20.0).square() / 2)
    weights = torch.rand(rays, 1, generator=torch.Generator().manual_seed(1)) * peak / peak.sum()
    ray_index = torch.arange(rays).repeat_interleave(steps)
    samples = pack(ray_index, t.flatten(), t.flatten() + 0.01, rays + 1)  # the last ray has no samples
    flat = weights.flatten().requires_grad_()
    loss = distortion(flat, samples, span=2.0)
    (gradient,) = torch.autograd.grad(loss, flat)
    w = weights.double().requires_grad_()
    middle, length = samples.t_mid.double().view(rays, steps) / 2, (samples.t_end - samples.t_start).double() / 2
    pairs = torch.einsum("ri,rj,rij->", w, w, (middle[:, :, None] - middle[:, None]).abs())
    expected = (pairs + (w.square().flatten() * length).sum() / 3) / (rays + 1)
    (expected_gradient,) = torch.autograd.grad(expected, w)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    error = (gradient - expected_gradient.flatten()).abs().max()
    assert float(error) < tolerance * float(expected_gradient.abs().max())


def test_distortion_is_zero_without_samples() -> None:
    empty = torch.zeros(0)
    for weights in (empty, torch.zeros(1)):  # a render without samples has one weight
        assert float(distortion(weights, pack(empty, empty, empty, 2))) == 0
    assert losses.distortion(rendered([1.0]), 1.0) is None


def test_normal_smoothness_grows_with_bumps() -> None:
    points = normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    offsets = 0.02 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(1))

    def ball(x: Tensor) -> Tensor:
        return normalize(x, dim=-1)

    def bumpy(x: Tensor) -> Tensor:
        return normalize(x + 0.1 * torch.sin(40 * x), dim=-1)

    plane = losses.normal_smoothness(lambda x: torch.eye(3)[2].expand(len(x), 3), points, offsets)
    smooth, rough = (losses.normal_smoothness(normal, points, offsets) for normal in (ball, bumpy))
    assert plane == 0 and smooth == pytest.approx(2 * 0.02**2, rel=0.1) and rough > 5 * smooth
    assert losses.normal_smoothness(ball, points[:0], offsets[:0]) == 0


def test_total_variation_of_colours() -> None:
    points = torch.linspace(0, 1, 2001)[:, None].repeat(1, 3)
    offsets = torch.tensor([0.1, 0.0, 0.0]).expand_as(points)

    def variation(colour: Callable[[Tensor], Tensor], limit: float) -> float:
        return float(losses.total_variation(colour, points, offsets, limit))

    def sharp(x: Tensor) -> Tensor:
        return (x > 0.5).float()

    def gradual(x: Tensor) -> Tensor:
        return ((x - 0.3) / 0.4).clamp(0, 1)

    for border in (sharp, gradual):  # one of three channels changes from 0 to 1 over a length of 1
        assert variation(border, 1.0) == pytest.approx(0.1 / 3, rel=0.01)
    assert variation(sharp, 0.2) == pytest.approx(0.02 / 3, rel=0.01)
    assert variation(gradual, 0.2) > 3 * variation(sharp, 0.2)  # a limit favours sharp borders
    assert variation(lambda x: x * 0 + 0.3, 1.0) == 0
    assert losses.total_variation(sharp, points[:0], offsets[:0], 1.0) == 0


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 9)])
def test_sum_of_shifts_equals_cumsum(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for dim in range(len(shape)):
        weights = torch.rand(shape, dtype=torch.float64)
        results = [function(values, dim) for function in (backends.deterministic_cumsum, torch.cumsum)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad((r * weights).sum(), values)[0] for r in results))


UP = torch.tensor([[0.0, 0.0, 1.0]])


def sample(step: int, n: int = 400, **options) -> list[Shading]:
    material, g = DiffuseMaterial(DiffuseMaterialConfig(**options)), torch.Generator().manual_seed(0)
    return [material.sample_shading(step, True, g) for _ in range(n)]


def test_sample_shading_is_unlit_first_then_follows_probabilities():
    assert {s.mode for s in sample(step=99, ambient_only_steps=100)} == {"albedo"}
    modes = Counter(s.mode for s in sample(step=100, ambient_only_steps=100, n=4000))
    assert modes["albedo"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert modes["textureless"] / 4000 == pytest.approx(0.375, abs=0.03)


def test_soft_shading_splits_one_unit_of_light():
    lit = [s for s in sample(step=0, ambient_only_steps=0) if s.lit]
    assert all(s.ambient + s.diffuse == pytest.approx(1) for s in lit)
    assert min(s.ambient for s in lit) < 0.05 and max(s.ambient for s in lit) > 0.95
    hard = [s for s in sample(step=0, ambient_only_steps=0, soft_shading=False, ambient=0.1, diffuse=0.9) if s.lit]
    assert hard and all(s[1:] == (0.1, 0.9) for s in hard)


def test_sample_shading_uses_no_random_numbers_in_evaluation():
    g = torch.Generator().manual_seed(3)
    before = g.get_state()
    material = DiffuseMaterial(DiffuseMaterialConfig(ambient=0.1, diffuse=0.9))
    assert material.sample_shading(4999, False, g) == Shading()
    assert material.sample_shading(5000, False, g) == Shading("diffuse", 0.1, 0.9)
    assert DiffuseMaterial().sample_shading(9999, False, g) == Shading(), "no normals needed without a point light"
    assert torch.equal(g.get_state(), before)
