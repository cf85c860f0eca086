"""The signed distance field: NeuS's opacity, its gradient, and that it renders and meshes as a surface."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from threedgen import config
from threedgen.config import ConfigError
from threedgen.export.shape.mesh import extract
from threedgen.representations import losses
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.field.sdf import SDF
from threedgen.representations.options import MarchConfig, NGPConfig, SDFConfig
from threedgen.representations.shading import NoMaterial
from threedgen.representations.volume.render import Render, render
from threedgen.run.seeding import generator

SMALL: dict[str, Any] = {
    "encoding": {
        "n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 2.0, "backend": "torch",
    },
    "width": 8,
}  # fmt: skip
MARCH = MarchConfig(samples=256, bound="sphere", backend="torch")


def ball(**options: Any) -> SDF:
    """As it begins, but for noise of 1e-5: a ball of radius 0.5."""
    return SDF(SDFConfig(**(SMALL | {"normal_eps": 0.01} | options)), generator(0, 0, "field"))


def rays(offsets: list[float]) -> tuple[Tensor, Tensor]:
    """Rays along -x from x = 3 at these heights."""
    height = torch.tensor(offsets)
    origins = torch.stack([torch.full_like(height, 3.0), torch.zeros_like(height), height], dim=-1)
    return origins, torch.tensor([[-1.0, 0.0, 0.0]]).expand(len(height), 3)


def look(field: Any, offsets: list[float], **options: Any) -> Render:
    parts = field, SolidBackground(), NoMaterial(), None, MARCH
    return render(*parts, *rays(offsets), need_normals=True, **options)


def test_it_begins_as_a_ball() -> None:
    x = torch.randn(50, 3, generator=generator(0, 0, "x")).clamp(-1, 1) * 0.6
    field = ball()
    torch.testing.assert_close(field.distance(x), x.norm(dim=-1) - 0.5, atol=1e-3, rtol=0)
    gradient = field.gradient(x)
    torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(50), atol=2e-2, rtol=0)
    assert (torch.nn.functional.normalize(x, dim=-1) * field.with_normal(x)[2]).sum(-1).min() > 0.99


def test_a_ray_through_a_surface_loses_what_the_sigmoid_says() -> None:
    """Pieces telescope: what is left behind is Phi(s f_end) / Phi(s f_start) (NeuS, eq. 13)."""
    field, pieces = ball(log_sharpness=3.0), 40
    ends = torch.linspace(0.3, -0.3, pieces + 1)  # distances along a ray straight down
    change = ends[1:] - ends[:-1]
    opacity = field.opacity((ends[1:] + ends[:-1]) / 2, change)
    left, s = float((1 - opacity).prod()), math.exp(3.0)
    assert left == pytest.approx((1 + math.exp(-s * 0.3)) / (1 + math.exp(s * 0.3)), rel=0.3)
    assert opacity.argmax() > pieces // 2, "most of it behind the surface"
    assert (field.opacity((ends[1:] + ends[:-1]) / 2, -change) < 1e-3).all(), "nothing on the way out"


def test_a_grazing_piece_hides_less_and_training_begins_softer() -> None:
    field = ball(cosine={"0%": 0.0, "100%": 1.0})
    x, lengths = torch.tensor([[0.5, 0.0, 0.0]] * 3), torch.full((3,), 0.01)
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    soft = field.along(x, directions, lengths)[0]
    assert soft[0] > soft[1] > soft[2] and soft[1] > 0.1 * soft[0]
    field.at_step(100, 100)
    hard = field.along(x, directions, lengths)[0]
    torch.testing.assert_close(hard[0], soft[0], rtol=1e-3, atol=0)
    assert hard[1] < 0.05 * hard[0] and hard[2] < 0.05 * hard[0]
    torch.testing.assert_close(hard[0], field.density(x)[0], rtol=0.15, atol=0)


def test_it_is_seen_as_a_ball_with_a_hard_edge() -> None:
    field = ball(log_sharpness=5.0)
    field.at_step(1, 1)
    seen = look(field, [0.0, 0.3, 0.47, 0.53, 0.8])
    assert (seen.opacity[:3] > 0.95).all() and (seen.opacity[3:] < 0.05).all()
    torch.testing.assert_close(seen.depth[0] / seen.opacity[0], torch.tensor([2.5]), atol=0.02, rtol=0)
    front = 2 * seen.normal[0] - 1  # type: ignore[index]
    torch.testing.assert_close(front, torch.tensor([1.0, 0.0, 0.0]), atol=0.05, rtol=0)
    assert seen.eikonal is not None and losses.eikonal(seen.eikonal, len(seen.samples)) < 0.01


def test_chunks_give_the_same_picture_and_gradient() -> None:
    found = []
    for chunk in (None, 500):
        field = ball()
        seen = look(field, [0.0, 0.1, 0.2, 0.3, 0.45, 0.6], chunk=chunk)
        assert seen.eikonal is not None
        (seen.rgb.sum() + losses.eikonal(seen.eikonal, len(seen.samples))).backward()
        found.append([seen.rgb.detach(), seen.eikonal.detach(), *(p.grad for p in field.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_everything_learns_and_the_eikonal_loss_pulls_the_slope_to_one() -> None:
    field = ball()
    with torch.no_grad():
        field.sdf_mlp.layers[-1].weight.mul_(30)
        field.encoding.table.mul_(3000)
    optimiser = torch.optim.Adam(field.parameters(), 0.01)
    x = torch.rand(400, 3, generator=generator(0, 0, "x")) - 0.5
    errors = []
    for _ in range(15):
        error = (field.gradient(x).norm(dim=-1) - 1).square()
        loss = losses.eikonal(error, len(x))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.5 * errors[0], errors
    seen = look(field, [0.0, 0.3])
    seen.rgb.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in field.parameters())


def test_its_mesh_is_the_ball() -> None:
    field = ball(log_sharpness=4.5)
    mesh = extract(field.density, lambda x: torch.sigmoid(field(x)[1]), resolution=48)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).max() < 0.04


@pytest.mark.parametrize("kind", ["ngp", "sdf"])
def test_levels_come_in_one_after_the_other(kind: str) -> None:
    options: dict[str, Any] = SMALL | {"levels": {0: 1, 10: 1, 20: 3}}
    field: Any = NGP(NGPConfig(**options)) if kind == "ngp" else SDF(SDFConfig(**options))
    assert int(field.state_dict()["used_levels"]) == 1, "it travels with the field"
    x = torch.rand(5, 3, generator=generator(0, 0, "x")) - 0.5
    value = field.density if kind == "ngp" else field.distance
    with torch.no_grad():
        field.encoding.table.normal_(generator=generator(0, 0, "table"))
    learnt = {}
    for step, many in ((0, 1), (14, 1), (15, 2), (25, 3)):
        field.at_step(step, 100)
        assert int(field.used_levels) == many
        (grad,) = torch.autograd.grad(value(x).sum(), field.encoding.table)
        levels = field.encoding.levels
        ends = [int(offset) for offset in levels.offset]
        learnt[many] = [bool(grad[a:b].any()) for a, b in pairwise(ends)]
    assert learnt[1] == [True, False, False] and learnt[2] == [True, True, False] and all(learnt[3])
    if kind == "sdf":
        cell = SDF(SDFConfig(**options))
        assert cell._eps() == pytest.approx(2 / 4)
        cell.at_step(25, 100)
        assert cell._eps() == pytest.approx(2 / 16)
    plain = NGP(NGPConfig(**SMALL))
    assert "used_levels" not in plain.state_dict()


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ValidationError, match="levels are those of a hash grid"):
        NGPConfig(encoding={"name": "frequency"}, levels=2)
    with pytest.raises(ValidationError, match="no cells"):
        SDFConfig(encoding={"name": "frequency"})
    with pytest.raises(ValidationError, match="sphere 3 should be smaller"):
        SDFConfig(sphere=3.0)
    with pytest.raises(ConfigError, match="loss.eikonal is for fields of distances"):
        config.load("mvdream-toybox", ["loss.eikonal=1"])
