"""Materials: light obeys Lambert's law, and the random choice of shading obeys its options."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from threedgen.config import registry
from threedgen.representations.options import DiffuseMaterialConfig, NoMaterialConfig
from threedgen.representations.shading import DiffuseMaterial, NoMaterial, Shading, shade

UP = torch.tensor([[0.0, 0.0, 1.0]])


def draws(step: int, many: int = 400, **options) -> list[Shading]:
    material, g = DiffuseMaterial(DiffuseMaterialConfig(**options)), torch.Generator().manual_seed(0)
    return [material.draw(step, True, g) for _ in range(many)]


@pytest.mark.parametrize(("angle", "expected"), [(0, 1.0), (60, 0.5), (90, 0.0), (180, 0.0)])
def test_lambert(angle, expected):
    a = math.radians(angle)
    light = 3 * torch.tensor([math.sin(a), 0.0, math.cos(a)])
    bright = shade(UP, UP, torch.zeros(1, 3), light, Shading("textureless", 0.0, 1.0))
    assert bright[0].tolist() == pytest.approx([expected] * 3, abs=1e-6)


def test_ambient_light_reaches_the_far_side():
    behind = torch.tensor([0.0, 0.0, -2.0])
    bright = shade(UP, UP, torch.zeros(1, 3), behind, Shading("textureless", 0.3, 0.7))
    assert bright[0].tolist() == pytest.approx([0.3] * 3)


def test_modes():
    features, light, at = torch.tensor([[0.0, 2.0, -2.0]]), torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(1, 3)
    colour = torch.sigmoid(features)
    torch.testing.assert_close(
        shade(features, UP, at, light, Shading("textureless", 0.1, 0.6)), torch.full((1, 3), 0.7)
    )
    torch.testing.assert_close(shade(features, UP, at, light, Shading("diffuse", 0.1, 0.6)), colour * 0.7)
    material = DiffuseMaterial()
    torch.testing.assert_close(material(features), colour)
    torch.testing.assert_close(NoMaterial()(features, UP, at, light, Shading("diffuse", 0.2, 0.8)), colour)
    assert not NoMaterial().draw(10**6, True).lit


def test_lit_shading_without_normals_is_refused():
    with pytest.raises(ValueError, match="normals"):
        DiffuseMaterial()(torch.zeros(1, 3), shading=Shading("diffuse", 0.5, 0.5))


def test_nothing_is_lit_at_first():
    assert {s.mode for s in draws(step=99, ambient_only_steps=100)} == {"albedo"}


def test_later_the_modes_have_their_probabilities():
    modes = Counter(s.mode for s in draws(step=100, ambient_only_steps=100, many=4000))
    assert modes["albedo"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert modes["textureless"] / 4000 == pytest.approx(0.375, abs=0.03)


def test_soft_shading_shares_one_unit_of_light():
    lit = [s for s in draws(step=0, ambient_only_steps=0) if s.lit]
    assert all(s.ambient + s.diffuse == pytest.approx(1) for s in lit)
    assert min(s.ambient for s in lit) < 0.05 and max(s.ambient for s in lit) > 0.95
    hard = [s for s in draws(step=0, ambient_only_steps=0, soft_shading=False, ambient=0.1, diffuse=0.9) if s.lit]
    assert hard and all(s[1:] == (0.1, 0.9) for s in hard)


def test_evaluation_draws_nothing():
    g = torch.Generator().manual_seed(3)
    before = g.get_state()
    material = DiffuseMaterial(DiffuseMaterialConfig(ambient=0.1, diffuse=0.9))
    assert material.draw(4999, False, g) == Shading()
    assert material.draw(5000, False, g) == Shading("diffuse", 0.1, 0.9)
    assert DiffuseMaterial().draw(9999, False, g) == Shading(), "no point light, so no need for normals"
    assert torch.equal(g.get_state(), before)


def test_probabilities_do_not_shift_the_stream():
    first, second = (draws(step=0, ambient_only_steps=0, diffuse_probability=p) for p in (0.75, 1.0))
    assert all(a == b for a, b in zip(first, second, strict=True) if a.lit)


def test_built_by_name():
    assert isinstance(registry.build("material", NoMaterialConfig()), NoMaterial)
    assert isinstance(registry.build("material", DiffuseMaterialConfig()), DiffuseMaterial)
