import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.errors import refused
from threedgen.export.shape.from_field import FieldView, field_surface
from threedgen.representations import losses
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.field.ngp import NGP
from threedgen.representations.field.sdf import SDF
from threedgen.representations.options import NGPConfig, SDFConfig
from threedgen.representations.shading import Material
from threedgen.representations.volume.options import MarchConfig
from threedgen.representations.volume.render import Render, render
from threedgen.run.seeding import generator

ENCODING = {"n_levels": 3, "log2_hashmap_size": 9, "base_resolution": 4, "per_level_scale": 2.0, "backend": "torch"}
SMALL: dict[str, Any] = {"encoding": ENCODING, "width": 8}
MARCH = MarchConfig(samples=256, bound="sphere", backend="torch")


def ball(**options: Any) -> SDF:
    """Return an initial field: a ball of radius 0.5 with noise of 1e-5."""
    return SDF(SDFConfig(**(SMALL | {"normal_eps": 0.01} | options)), generator(0, 0, "field"))


def rays(offsets: list[float]) -> tuple[Tensor, Tensor]:
    """Return rays along -x from x = 3 at these heights."""
    height = torch.tensor(offsets)
    origins = torch.stack([torch.full_like(height, 3.0), torch.zeros_like(height), height], dim=-1)
    return origins, torch.tensor([[-1.0, 0.0, 0.0]]).expand(len(height), 3)


def render_rays(field: SDF, offsets: list[float], **options: Any) -> Render:
    parts = field, SolidBackground(), Material(), None, MARCH
    return render(*parts, *rays(offsets), need_normals=True, **options)


def test_sdf_is_initialised_as_a_ball() -> None:
    x = torch.randn(50, 3, generator=generator(0, 0, "x")).clamp(-1, 1) * 0.6
    field = ball()
    torch.testing.assert_close(field.distance(x), x.norm(dim=-1) - 0.5, atol=1e-3, rtol=0)
    gradient = field.gradient(x)
    torch.testing.assert_close(gradient.norm(dim=-1), torch.ones(50), atol=2e-2, rtol=0)
    assert (torch.nn.functional.normalize(x, dim=-1) * field.with_normal(x)[2]).sum(-1).min() > 0.99


def test_opacity_of_a_ray_through_the_surface() -> None:
    """The product of all intervals is Phi(s f_end) / Phi(s f_start) (NeuS, eq. 13)."""
    field, n = ball(log_sharpness=3.0), 40
    ends = torch.linspace(0.3, -0.3, n + 1)  # distances along a perpendicular ray
    change = ends[1:] - ends[:-1]
    opacity = field.opacity((ends[1:] + ends[:-1]) / 2, change)
    transmittance, s = float((1 - opacity).prod().detach()), math.exp(3.0)
    assert transmittance == pytest.approx((1 + math.exp(-s * 0.3)) / (1 + math.exp(s * 0.3)), rel=0.3)
    assert opacity.argmax() > n // 2, "largest behind the surface"
    assert (field.opacity((ends[1:] + ends[:-1]) / 2, -change) < 1e-3).all(), "zero for a ray that leaves the object"


def test_along_ray_density_depends_on_the_angle_and_on_cosine() -> None:
    field = ball(cosine={"0%": 0.0, "100%": 1.0})
    x, lengths = torch.tensor([[0.5, 0.0, 0.0]] * 3), torch.full((3,), 0.01)
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    soft = field.along_ray(x, directions, lengths)[0]
    assert soft[0] > soft[1] > soft[2] and soft[1] > 0.1 * soft[0]
    field.before_step(100, 100)
    hard = field.along_ray(x, directions, lengths)[0]
    torch.testing.assert_close(hard[0], soft[0], rtol=1e-3, atol=0)
    assert hard[1] < 0.05 * hard[0] and hard[2] < 0.05 * hard[0]
    torch.testing.assert_close(hard[0], field.density(x)[0], rtol=0.15, atol=0)


def test_render_of_a_sharp_ball() -> None:
    field = ball(log_sharpness=5.0)
    field.before_step(1, 1)
    result = render_rays(field, [0.0, 0.3, 0.47, 0.53, 0.8])
    assert (result.opacity[:3] > 0.95).all() and (result.opacity[3:] < 0.05).all()
    torch.testing.assert_close(result.depth[0] / result.opacity[0], torch.tensor([2.5]), atol=0.02, rtol=0)
    front = 2 * result.normal[0] - 1  # type: ignore[index]
    torch.testing.assert_close(front, torch.tensor([1.0, 0.0, 0.0]), atol=0.05, rtol=0)
    assert result.eikonal is not None and losses.eikonal(result) < 0.01


def test_chunks_give_the_same_image_and_gradient() -> None:
    results = []
    for chunk in (None, 500):
        field = ball()
        result = render_rays(field, [0.0, 0.1, 0.2, 0.3, 0.45, 0.6], chunk=chunk)
        assert result.eikonal is not None
        (result.rgb.sum() + losses.eikonal(result)).backward()
        results.append([result.rgb.detach(), result.eikonal.detach(), *(p.grad for p in field.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_eikonal_loss_trains_the_distance_and_colours_train_all_parameters() -> None:
    field = ball()
    result = render_rays(field, [0.0, 0.3])
    distance = [field.encoding.table, *field.sdf_mlp.parameters()]
    eikonal = torch.autograd.grad(losses.eikonal(result), distance, retain_graph=True)
    colours = torch.autograd.grad(result.rgb.sum(), list(field.parameters()))
    assert all(gradient.any() for gradient in (*eikonal, *colours))


def test_sharpness_has_its_own_group_only_with_a_learning_rate() -> None:
    field = ball(lr_sharpness=0.02)
    *others, own = field.parameter_groups()
    assert own.parameters[0] is field.log_sharpness and getattr(field.options, own.learning_rate) == 0.02
    grouped = [id(p) for group in [*others, own] for p in group.parameters]
    assert sorted(grouped) == sorted(id(p) for p in field.parameters())
    assert [group.name for group in ball().parameter_groups()] == ["encoding", "networks"], "as in older checkpoints"


def test_extracted_mesh_is_the_ball() -> None:
    field = ball(log_sharpness=4.5)
    mesh = field_surface(FieldView(field.density, lambda x: torch.sigmoid(field(x)[1])), 48)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).max() < 0.04


def test_levels_schedule_activates_levels_in_order() -> None:
    options: dict[str, Any] = SMALL | {"levels": {0: 1, 10: 1, 20: 3}}
    field = NGP(NGPConfig(**options))
    assert int(field.state_dict()["used_levels"]) == 1, "saved with the field"
    x = torch.rand(5, 3, generator=generator(0, 0, "x")) - 0.5
    with torch.no_grad():
        field.encoding.table.normal_(generator=generator(0, 0, "table"))
    trained = {}
    for step, n in ((0, 1), (14, 1), (15, 2), (25, 3)):
        field.before_step(step, 100)
        assert int(field.used_levels) == n
        (grad,) = torch.autograd.grad(field.density(x).sum(), field.encoding.table)
        levels = field.encoding.levels
        ends = [int(offset) for offset in levels.offset]
        trained[n] = [bool(grad[a:b].any()) for a, b in pairwise(ends)]
    assert trained[1] == [True, False, False] and trained[2] == [True, True, False] and all(trained[3])
    cell = SDF(SDFConfig(**options))
    assert cell._eps() == pytest.approx(2 / 4)
    cell.before_step(25, 100)
    assert cell._eps() == pytest.approx(2 / 16)


def test_config_refuses_a_ball_beyond_the_cube() -> None:
    with refused(None, "sphere", 3, "radius", 1, kind=ValidationError):
        SDFConfig(sphere=3.0)
