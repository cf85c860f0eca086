from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.frequency import Frequency
from tests.support.parity_files import close, recorded, tensors
from threedgen.config import registry
from threedgen.representations.field.background import NeuralBackground, SolidBackground, spherical_harmonics
from threedgen.representations.field.mlp import MLP
from threedgen.representations.field.ngp import NGP, exp_linear, finite_difference_normal
from threedgen.representations.options import NeuralBackgroundConfig, NGPConfig, SolidBackgroundConfig

GRID = {"name": "hashgrid", "n_levels": 4, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 1.6}


def build(**options: object) -> NGP:
    """Return a small field with table entries as large as trained ones."""
    field = NGP(NGPConfig(**{"encoding": GRID, "width": 16, **options}), torch.Generator().manual_seed(0))
    if "encoding" not in options:
        field.encoding.table.data.mul_(5000)
    return field


def points(n: int, seed: int = 1, radius: float = 1.0) -> Tensor:
    return radius * (2 * torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) - 1)


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


def test_mlp_computes_float32_under_autocast() -> None:
    network = MLP(8, 2, 16, 2, torch.Generator().manual_seed(0))
    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32 and torch.equal(y, network(x))


@pytest.mark.parametrize("shared", [False, True])
def test_normals_equal_finite_differences(shared: bool) -> None:
    field = build(shared_mlp=shared, encoding=GRID | {"n_levels": 12}, density_blob_scale=1.0, radius=1.5).double()
    x = points(300, radius=1.4).double()
    expected = finite_difference_normal(field.density, x, 1e-6, 1.5)
    agree = (field.with_normal(x)[2] - expected).abs().max(dim=-1).values < 1e-3
    assert agree.double().mean() > 0.98  # a step may cross a cell face


def test_encoding_of_a_plugin_needs_no_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = registry.Entry("tests.support.frequency:build", "tests.support.frequency:FrequencyConfig")
    monkeypatch.setitem(registry.TABLE["encoding"], "frequency", plugin)
    field = build(encoding={"name": "frequency"})
    assert isinstance(field.encoding, Frequency) and field.density(points(5)).shape == (5,)


def test_normal_of_constant_density_is_zero() -> None:
    field = build(density_blob="none")
    for weight in field.density_mlp.parameters():
        weight.data.zero_()
    assert not field.with_normal(points(10))[2].any()


def directions(*shape: int) -> Tensor:
    d = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(0))
    return d / d.norm(dim=-1, keepdim=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@recorded("hashgrid")
def test_spherical_harmonics_equal_tiny_cuda_nn(path: Path) -> None:
    data = tensors(path)
    close(spherical_harmonics(2 * data["dirs01"] - 1), data["sh_deg3"], 1e-6)


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


def test_neural_background_is_replaced_with_its_probability() -> None:
    background = NeuralBackground(NeuralBackgroundConfig(random_probability=0.3), generator())
    rays = directions(6)
    original = background(rays, training=False)
    colours, again = ([background(rays, generator(seed), training=True) for seed in range(300)] for _ in range(2))
    assert torch.equal(torch.stack(colours), torch.stack(again)), "it depends only on the generator"
    replaced = [c for c in colours if not torch.equal(c, original)]
    assert all((c == c[0]).all() for c in replaced), "one colour for the whole batch"
    assert 0.2 < len(replaced) / 300 < 0.4
