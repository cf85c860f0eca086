"""Materials: Lambert's law, and the random choice of the shading mode."""

import math
from collections import Counter

import pytest
import torch

from threedgen.representations.options import DiffuseMaterialConfig
from threedgen.representations.shading import DiffuseMaterial, Material, Shading

UP = torch.tensor([[0.0, 0.0, 1.0]])


def sample(step: int, n: int = 400, **options) -> list[Shading]:
    material, g = DiffuseMaterial(DiffuseMaterialConfig(**options)), torch.Generator().manual_seed(0)
    return [material.sample_shading(step, True, g) for _ in range(n)]


@pytest.mark.parametrize(
    ("angle", "ambient", "expected"), [(0, 0, 1.0), (60, 0, 0.5), (90, 0, 0.0), (180, 0, 0.0), (180, 0.3, 0.3)]
)
def test_shade_follows_lambert_plus_ambient(angle, ambient, expected):
    a = math.radians(angle)
    light = 3 * torch.tensor([math.sin(a), 0.0, math.cos(a)])
    colour = DiffuseMaterial()(UP, UP, torch.zeros(1, 3), light, Shading("textureless", ambient, 1 - ambient))
    assert colour[0].tolist() == pytest.approx([expected] * 3, abs=1e-6)


def test_materials_apply_albedo_per_mode():
    features, light, at = torch.tensor([[0.0, 2.0, -2.0]]), torch.tensor([[0.0, 0.0, 5.0]]), torch.zeros(1, 3)
    colour, material = torch.sigmoid(features), DiffuseMaterial()
    textureless, diffuse = (Shading(mode, 0.1, 0.6) for mode in ("textureless", "diffuse"))
    torch.testing.assert_close(material(features, UP, at, light, textureless), torch.full((1, 3), 0.7))
    torch.testing.assert_close(material(features, UP, at, light, diffuse), colour * 0.7)
    torch.testing.assert_close(material(features), colour)
    torch.testing.assert_close(Material()(features, UP, at, light, diffuse), colour)
    assert not Material().sample_shading(10**6, True).lit


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


def test_options_do_not_shift_the_random_stream():
    first, second = (sample(step=0, ambient_only_steps=0, diffuse_probability=p) for p in (0.75, 1.0))
    assert all(a == b for a, b in zip(first, second, strict=True) if a.lit)
