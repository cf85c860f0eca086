from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.errors import refused
from tests.support.frequency import Frequency
from tests.support.parity_files import close, recorded, tensors
from tests.support.volume_recording import Recorded
from threedgen.config import registry
from threedgen.representations.field.background import NeuralBackground, SolidBackground, spherical_harmonics
from threedgen.representations.field.mlp import MLP
from threedgen.representations.field.ngp import NGP, exp_linear, finite_difference_normal
from threedgen.representations.options import NeuralBackgroundConfig, NGPConfig, SolidBackgroundConfig

GRID = {"name": "hashgrid", "n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.6}


def build(seed: int = 0, **options: object) -> NGP:
    """Return a small field with table entries as large as trained ones."""
    field = NGP(NGPConfig(**{"encoding": GRID, "width": 16, **options}), torch.Generator().manual_seed(seed))
    if "encoding" not in options:
        field.encoding.table.data.mul_(5000)
    return field


def zero_density_mlp(field: NGP) -> NGP:
    for weight in field.density_mlp.parameters():
        weight.data.zero_()
    return field


def points(n: int, seed: int = 1, radius: float = 1.0) -> Tensor:
    return radius * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1)


@recorded("volume_")
def test_field_equals_the_recorded_reference(path: Path) -> None:
    file = Recorded(path)
    field = file.field()
    rays = file["ray_indices"]
    origins, directions = (file[key].view(-1, 3)[rays] for key in ("rays_o", "rays_d"))
    middle = (file["t_starts"] + file["t_ends"])[:, None] / 2
    with torch.no_grad():
        sigma, features, normal = field.with_normal(origins + middle * directions)
    close(sigma[:, None], file["out_density"], 1e-5)
    close(features, file["out_features"], 1e-5)
    if "out_normal" in file.data:
        error = (normal - file["out_normal"]).abs()
        assert float(error.max()) <= (1e-2 if file.one_sided else 1e-4)
        assert float(error.mean()) <= 1e-4


@pytest.mark.parametrize("shared", [False, True])
def test_density_equals_forward_without_computing_features(shared: bool) -> None:
    field, x = build(shared_mlp=shared), points(200)
    sigma, features = field(x)
    assert sigma.shape == (200,) and features.shape == (200, 3)
    density = field.density(x)
    torch.testing.assert_close(density, sigma)
    density.sum().backward()
    if shared:
        gradient = field.density_mlp.layers[-1].weight.grad
        assert gradient[0].any() and not gradient[1:].any()
    else:
        assert all(weight.grad is None for weight in field.feature_mlp.parameters())


@pytest.mark.parametrize(
    ("blob", "raw"),
    [
        ("blob_magic3d", [8, -2, -12]),
        ("blob_dreamfusion", [8, 10 * np.exp(-0.5) - 2, 10 * np.exp(-2) - 2]),
        ("none", [-2, -2, -2]),
    ],
)
def test_density_blob_adds_density_at_the_origin(blob: str, raw: list[float]) -> None:
    field = zero_density_mlp(build(density_blob=blob, density_bias=-2.0))
    x = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.4], [0.0, -1.0, 0.0]])
    torch.testing.assert_close(field.density(x), F.softplus(torch.tensor(raw, dtype=torch.float32)))


def test_density_options_scale_and_shift() -> None:
    options = {"density_scale": 7.0, "density_bias": 1.5, "density_activation": "exp", "density_blob": "none"}
    plain, changed = build(), build(**options)
    changed.load_state_dict(plain.state_dict())
    x = points(50)
    raw = changed.density_mlp(changed.encoding((x + 1) / 2))[:, 0]
    torch.testing.assert_close(changed.density(x), 7 * torch.exp(raw + 1.5))


def test_exp_linear_does_not_overflow() -> None:
    x = torch.tensor([-3.0, 0.0, 14.9, 15.1, 1e4], requires_grad=True)
    y = exp_linear(x)
    torch.testing.assert_close(y[:3], torch.exp(x[:3]))
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    torch.testing.assert_close(x.grad[-1], torch.exp(torch.tensor(15.0)))
    assert y[3] > torch.exp(torch.tensor(15.0))


def test_radius_scales_the_field() -> None:
    one, two = build(density_blob="none"), build(density_blob="none", radius=2.5)
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(two(2.5 * points(50))[0], one(points(50))[0], rtol=1e-4, atol=1e-5)


def test_empty_input_gives_empty_output() -> None:
    field = build()
    sigma, features, normal = field.with_normal(torch.empty(0, 3))
    assert sigma.shape == (0,) and features.shape == (0, 3) and normal.shape == (0, 3)
    (sigma.sum() + features.sum() + normal.sum()).backward()
    assert not field.encoding.table.grad.any()


def test_initial_weights_depend_only_on_the_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = build(3).state_dict(), build(3).state_dict(), build(4).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_mlp_computes_float32_under_autocast() -> None:
    network = MLP(8, 2, 16, 2, torch.Generator().manual_seed(0))
    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32 and torch.equal(y, network(x))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("encoding", [None, Frequency(4)], ids=["hashgrid", "plug-in"])
def test_normals_equal_finite_differences(encoding: Frequency | None, shared: bool) -> None:
    field = build(shared_mlp=shared, encoding=GRID | {"n_levels": 12}, density_blob_scale=1.0, radius=1.5).double()
    field.encoding = encoding or field.encoding
    x = points(300, radius=1.4).double()
    expected = finite_difference_normal(field.density, x, 1e-6, 1.5)
    agree = (field.with_normal(x)[2] - expected).abs().max(dim=-1).values < 1e-3
    assert agree.double().mean() > 0.98  # a step may cross a cell face


def test_encoding_of_a_plugin_needs_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = registry.Entry("tests.support.frequency:build", "tests.support.frequency:FrequencyConfig")
    monkeypatch.setitem(registry.TABLE["encoding"], "frequency", plugin)
    field = build(encoding={"name": "frequency"})
    assert isinstance(field.encoding, Frequency) and field.density(points(5)).shape == (5,)


@pytest.mark.parametrize("shared", [False, True])
def test_loss_on_analytic_normals_has_gradients_of_all_density_weights(shared: bool) -> None:
    field, x = build(shared_mlp=shared, density_blob_scale=1.0), points(100)
    target = F.normalize(points(100, seed=5), dim=-1)

    def gradients(normal: Tensor) -> list[Tensor]:
        parameters = [field.encoding.table, *field.density_mlp.parameters()]
        return list(torch.autograd.grad((normal - target).square().mean(), parameters))

    leaf = x.clone().requires_grad_()
    sigma, _ = field(leaf)
    (slope,) = torch.autograd.grad(sigma.sum(), leaf, create_graph=True)
    expected = gradients(-F.normalize(slope, dim=-1))
    for actual, reference in zip(gradients(field.with_normal(x)[2]), expected, strict=True):
        assert reference.abs().max() > 0
        assert float((actual - reference).abs().max()) <= 1e-4 * float(reference.abs().max())


def test_finite_differences_stay_inside_the_cube() -> None:
    queries = []

    def density(x: Tensor) -> Tensor:
        queries.append(x)
        return -x.square().sum(dim=-1)

    normal = finite_difference_normal(density, torch.tensor([[1.0, 0.5, -1.0], [0.2, 0.4, 0.1]]), 0.05, 1.0)
    assert max(float(x.abs().max()) for x in queries) <= 1.0
    border = F.normalize(torch.tensor([0.975, 0.5, -0.975]), dim=0)  # of the middle between the two neighbours
    torch.testing.assert_close(normal[0], border, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normal[1], F.normalize(torch.tensor([0.2, 0.4, 0.1]), dim=0), rtol=1e-3, atol=1e-3)


def test_normal_of_constant_density_is_zero() -> None:
    assert not zero_density_mlp(build(density_blob="none")).with_normal(points(10))[2].any()


def directions(*shape: int) -> Tensor:
    d = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(0))
    return d / d.norm(dim=-1, keepdim=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@recorded("hashgrid")
def test_spherical_harmonics_equal_tiny_cuda_nn(path: Path) -> None:
    data = tensors(path)
    close(spherical_harmonics(2 * data["dirs01"] - 1), data["sh_deg3"], 1e-6)


def test_solid_background_has_one_colour() -> None:
    background = SolidBackground(SolidBackgroundConfig(color=(0.1, 0.2, 0.3)))
    colours = background(directions(2, 5, 4), training=True)
    assert torch.equal(colours, torch.tensor([0.1, 0.2, 0.3]).expand(2, 5, 4, 3))
    assert SolidBackgroundConfig(color=0.25).color == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("options", [{"color": 2}, {"random_range": (0.9, 0.1)}], ids=str)
def test_solid_config_refuses_values_out_of_range(options: dict[str, Any]) -> None:
    with refused(None, *options, kind=ValueError):
        SolidBackgroundConfig(**options)


@pytest.mark.parametrize("kind", ["grey", "color"])
def test_solid_background_is_random_only_in_training(kind: str) -> None:
    background = SolidBackground(SolidBackgroundConfig(random=kind, random_range=(0.2, 0.4)))
    rays = directions(3, 7)
    samples, again = (
        torch.stack([background(rays, generator(seed), training=True) for seed in range(50)]) for _ in range(2)
    )
    assert torch.equal(samples, again), "it depends only on the generator"
    assert (samples == samples[:, :1, :1]).all(), "one colour for the whole batch"
    assert samples.min() >= 0.2 and samples.max() <= 0.4
    assert samples.min() < 0.22 and samples.max() > 0.38
    assert (samples[..., 0] == samples[..., 1]).all() == (kind == "grey")
    assert torch.equal(background(rays, training=False), torch.full((3, 7, 3), 0.5))


def test_neural_background_depends_on_the_direction() -> None:
    background = NeuralBackground(generator=generator())
    colours = background(directions(2, 3, 4), training=False)
    assert colours.shape == (2, 3, 4, 3)
    assert colours.min() > 0 and colours.max() < 1 and colours.std(dim=(0, 1, 2)).min() > 1e-3
    assert [name for name, _ in background.named_parameters()] == [f"mlp.layers.{i}.weight" for i in (0, 2, 4)]
    assert [tuple(w.shape) for w in background.parameters()] == [(16, 9), (16, 16), (3, 16)]


def test_neural_background_is_replaced_with_its_probability() -> None:
    background = NeuralBackground(NeuralBackgroundConfig(random_probability=0.3), generator())
    rays = directions(6)
    original = background(rays, training=False)
    colours, again = ([background(rays, generator(seed), training=True) for seed in range(300)] for _ in range(2))
    assert torch.equal(torch.stack(colours), torch.stack(again)), "it depends only on the generator"
    replaced = [c for c in colours if not torch.equal(c, original)]
    assert all((c == c[0]).all() for c in replaced), "one colour for the whole batch"
    assert 0.2 < len(replaced) / 300 < 0.4


def test_replaced_background_has_zero_gradients() -> None:
    background = NeuralBackground(NeuralBackgroundConfig(random_probability=1.0), generator())
    background(directions(5), generator(3), training=True).sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in background.parameters())
    kept = NeuralBackground(NeuralBackgroundConfig(random_probability=0.0), generator())
    kept(directions(5), training=True).sum().backward()
    assert all(weight.grad.any() for weight in kept.parameters())
