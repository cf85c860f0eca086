import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from tests.support.errors import refused
from threedgen.config import registry
from threedgen.representations.base import Representation
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.gaussians.field import MAX_FEATURE, Gaussians
from threedgen.representations.gaussians.points import SH_0
from threedgen.representations.options import DMTetConfig, GaussiansConfig, NGPConfig
from threedgen.representations.shading import Material
from threedgen.testing import CAMERAS, check_representation, seeded

SMALL: dict[str, Any] = {"encoding": {"n_levels": 2, "log2_hashmap_size": 8}, "width": 8}


def field(**values: Any) -> Gaussians:
    return Gaussians(GaussiansConfig(**({"count": 50} | values)), seeded(0))


@pytest.mark.parametrize("densify", ["adaptive", "mcmc", "none"])
@pytest.mark.parametrize("more", [{"backend": "torch", "sh_degree": 1}, {"backend": "numba"}])
def test_interface(densify: str, more: dict[str, Any]) -> None:
    values = {"count": 60, "max_count": 90, "interval": 2, "split_gradient": 1e-9, "reset_interval": 3}
    options = GaussiansConfig(**values, densify=densify, densify_range=(0, 1), **more)
    check_representation(lambda rng: Gaussians(options, rng))


def test_ball_has_the_requested_density_and_opacity() -> None:
    made = field(count=20_000, sphere=0.5, opacity=0.1)
    assert made.means.norm(dim=-1).max().item() <= 0.5
    spacing = (4 / 3 * math.pi * 0.5**3 / 20_000) ** (1 / 3)
    torch.testing.assert_close(made.log_scales.exp(), torch.full((20_000, 3), spacing / 2))
    torch.testing.assert_close(made.opacity_logits.sigmoid(), torch.full((20_000,), 0.1))


def test_render_has_distance_variance_and_background() -> None:
    """One opaque Gaussian in the centre, and one behind it."""
    made = field(count=2, backend="torch")
    with torch.no_grad():
        made.means[:] = torch.tensor([[0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]])
        made.log_scales[:], made.opacity_logits[:] = math.log(0.1), torch.tensor([0.5]).logit()
        made.features[:, 0] = torch.tensor([[0.4, 0.0, -0.4], [0.0, 0.0, 0.0]]) / SH_0
    at = CAMERAS.select([0]).with_size(33, 33)
    position = torch.tensor([[2.6, 0.0, 0.0]])
    at.c2w[0, :3, 3], at.c2w[0, :3, :3] = position, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
    result = made.render(at, SolidBackground(), Material())
    middle = 16 * 33 + 16
    weights = torch.tensor([0.5, 0.25])
    distance = (weights * torch.tensor([2.6, 3.1])).sum()
    torch.testing.assert_close(result.opacity[middle, 0], weights.sum())
    torch.testing.assert_close(result.depth[middle, 0], distance)
    variance = (weights * (torch.tensor([2.6, 3.1]) - distance) ** 2).sum()
    torch.testing.assert_close(result.z_variance[middle, 0], variance, atol=1e-4, rtol=1e-4)
    expected = 0.5 * torch.tensor([0.9, 0.5, 0.1]) + 0.25 * 0.5
    torch.testing.assert_close(result.rgb_fg[middle], expected)
    torch.testing.assert_close(result.rgb[middle], expected + 0.25 * 0.5)


def test_degree_1_colours_depend_on_the_direction() -> None:
    made = field(count=1, sh_degree=1)
    made.features.data.zero_()
    made.features.data[0, 3, 0] = 0.5  # coefficient of -x
    directions = torch.tensor([[[1.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
    change = 0.5 * math.sqrt(3 / (4 * math.pi))
    expected = torch.tensor([0.5 - change, 0.5 + change, 0.5])
    torch.testing.assert_close(made.colours(directions)[:, 0, 0], expected)


def test_sizes_and_colours_stay_in_range() -> None:
    made = field(max_size=0.1, radius=2.0)
    with torch.no_grad():
        made.log_scales[0], made.features[:25], made.features[25:] = 3.0, 9.0, -9.0
    made.before_step(0, 10)
    made.after_step(0, torch.optim.Adam(made.parameters()))
    assert made.log_scales.exp().max().item() == pytest.approx(0.2)
    assert made.features.abs().max().item() == pytest.approx(MAX_FEATURE)
    assert made.colours(torch.zeros(1, 50, 3)).unique().tolist() == pytest.approx([0.001, 0.999], abs=1e-6)


# --- where they start


def test_point_cloud_file_gives_positions_colours_and_spacing(tmp_path: Path) -> None:
    axis = np.linspace(-0.4, 0.4, 5)
    points = np.stack(np.meshgrid(axis, axis, axis), axis=-1).reshape(-1, 3)
    colours = np.tile(np.array([[255, 51, 0, 255]], np.uint8), (125, 1))
    trimesh.PointCloud(points, colors=colours).export(tmp_path / "points.ply")
    made = field(count=7)
    made.init_from_file(tmp_path / "points.ply")
    torch.testing.assert_close(made.means.detach(), torch.from_numpy(points).float())
    torch.testing.assert_close(
        made.log_scales.exp(), torch.full((125, 3), 0.1)
    )  # half of the spacing 0.2, and max_size
    torch.testing.assert_close(made.colours(torch.zeros(1, 125, 3))[0, 0], torch.tensor([0.999, 0.2, 0.001]))
    assert len(made.gradient_sum) == 125 and made.features.shape == (125, 1, 3)


@pytest.mark.parametrize("kind", ["obj", "glb", "xyz"])
def test_points_of_meshes_and_texts(tmp_path: Path, kind: str) -> None:
    mesh, path = trimesh.creation.box(extents=(0.2, 0.4, 0.6)), tmp_path / f"points.{kind}"
    mesh.visual.vertex_colors = [255, 51, 0, 255]
    if kind == "xyz":
        path.write_text("".join(f"{x} {y} {z} 255 51 0\n" for x, y, z in mesh.vertices))
    else:
        mesh.export(path)
    made = field(count=7)
    made.init_from_file(path)
    assert np.unique(made.means.detach().numpy().round(5), axis=0).shape == (8, 3)
    world = [0.3, 0.1, 0.2] if kind == "glb" else [0.1, 0.2, 0.3]  # glTF is y up, front +z
    assert made.means.abs().amax(0).tolist() == pytest.approx(world)
    green = 0.4845 if kind == "glb" else 0.2  # colours of glTF are linear
    colour = made.colours(torch.zeros(1, len(made.means), 3))[0, 0].tolist()
    assert colour == pytest.approx([0.999, green, 0.001], abs=0.01)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("far.ply", trimesh.PointCloud(3.0 * np.eye(3)).export(file_type="ply"), "field.radius"),
        ("nan.ply", trimesh.PointCloud(np.nan * np.eye(3)).export(file_type="ply"), "not finite"),
    ],
    ids=["far", "nan"],
)
def test_unusable_point_clouds_are_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused("start", problem):
        field().init_from_file(tmp_path / name)


@pytest.mark.parametrize("name", ["ngp", "dmtet"])
def test_starts_on_the_surface_of_another_representation(name: str) -> None:
    options: Any = DMTetConfig(resolution=12, sphere=0.6, paint=SMALL)
    if name == "ngp":
        options = NGPConfig(**SMALL, density_scale=100, density_blob="blob_magic3d", density_blob_std=0.5)
    other: Representation = registry.build("representation", options, generator=seeded(3))
    made = field(count=400)
    made.init_from(other)
    assert len(made.means) == 400
    distance = made.means.detach().norm(dim=-1)
    low, high = {"dmtet": (0.5, 0.62), "ngp": (0.3, 0.9)}[name]
    assert low < float(distance.min()) and float(distance.max()) < high
    with torch.no_grad():
        expected = other(made.means)[1][:, :3].sigmoid()
        torch.testing.assert_close(made.colours(torch.zeros(1, 400, 3))[0], expected, atol=2e-3, rtol=0)


def test_points_are_computed_on_the_device_of_the_field() -> None:
    class Elsewhere(Representation):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def density(self, x: torch.Tensor) -> torch.Tensor:
            assert x.device == self.weight.device
            return torch.rand(len(x))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.density(x), torch.zeros(len(x), 3)

    made = field(count=7)
    made.init_from(Elsewhere())
    assert made.means.device.type == "cpu" and made.means.abs().max() > 0


def test_other_gaussians_are_copied() -> None:
    made, other = field(count=7), field(count=30)
    made.init_from(other)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), other.state_dict().values(), strict=True))


def test_initial_ball_beyond_the_cube_is_refused() -> None:
    with pytest.raises(ValueError, match="sphere"):
        GaussiansConfig(sphere=2.0)
