"""Backgrounds: spherical harmonics, and random colours per batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.parity_files import close, recorded, tensors
from threedgen.representations.field.background import NeuralBackground, SolidBackground, spherical_harmonics
from threedgen.representations.options import NeuralBackgroundConfig, SolidBackgroundConfig


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
    samples = torch.stack([background(rays, generator(seed), training=True) for seed in range(50)])
    assert (samples == samples[:, :1, :1]).all(), "one colour for the whole batch"
    assert samples.min() >= 0.2 and samples.max() <= 0.4
    assert samples.min() < 0.22 and samples.max() > 0.38
    assert (samples[..., 0] == samples[..., 1]).all() == (kind == "grey")
    assert torch.equal(background(rays, training=False), torch.full((3, 7, 3), 0.5))


@pytest.mark.parametrize(
    "background", [SolidBackground(SolidBackgroundConfig(random="color")), NeuralBackground()], ids=["solid", "neural"]
)
def test_random_background_depends_only_on_the_generator(background: torch.nn.Module) -> None:
    state = torch.get_rng_state()
    first, again = (background(directions(4), generator(2), training=True) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())


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
    colours = [background(rays, generator(seed), training=True) for seed in range(300)]
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
