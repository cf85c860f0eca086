"""Volume renderer: geometry, empty scenes, chunks, skipped samples, and recorded renders of the reference."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.support.errors import refused
from tests.support.nerfacc_stand_in import nerfacc_on_a_cpu  # noqa: F401
from tests.support.parity_files import recorded
from tests.support.volume_recording import Recorded
from threedgen.representations import losses
from threedgen.representations.options import MarchConfig, OccupancyConfig
from threedgen.representations.shading import DiffuseMaterial, NoMaterial, Shading
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.representations.volume.render import Render, render
from threedgen.run.seeding import generator

MARCH = MarchConfig(samples=200, bound="sphere")


class Ball(nn.Module):
    """Field of a ball of radius 0.5 with a soft edge, red above, blue below."""

    along_ray = None

    def __init__(self, density: float = 200.0):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(density))
        self.radius = nn.Parameter(torch.tensor(0.5))
        self.paint = nn.Parameter(torch.tensor([8.0, 0.0, -8.0]))

    def density(self, x: Tensor) -> Tensor:
        return self.strength * torch.sigmoid((self.radius - x.norm(dim=-1)) * 100)

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self(x), normalize(x * self.radius / self.radius.detach(), dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(x), x[:, 2:].sign() * self.paint


class Grey(nn.Module):
    """Trainable grey background that is random in training."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.25))

    def forward(self, directions: Tensor, *, training: bool = False, generator=None) -> Tensor:
        noise = torch.rand(1, generator=generator) * 0.1 if training else torch.zeros(1)
        return (self.level + noise).expand(len(directions), 3)


def camera_rays(size: int = 16) -> tuple[Tensor, Tensor]:
    """Return parallel rays (R, 3), (R, 3) from x = 3 along -x."""
    edge = torch.linspace(-0.9, 0.9, size)
    y, z = torch.meshgrid(edge, edge, indexing="xy")
    origins = torch.stack([torch.full_like(y, 3.0), y, -z], dim=-1).reshape(-1, 3)
    return origins, torch.tensor([[-1.0, 0.0, 0.0]]).expand_as(origins)


def grid(occupied: bool) -> OccupancyGrid:
    module = OccupancyGrid(OccupancyConfig(resolution=8), radius=1.0, step_size=0.01)
    module.binary.fill_(occupied)
    return module


def render_scene(field=None, occupancy=None, options=MARCH, background=None, material=None, **more) -> Render:
    """Render a ball on grey, or the given parts of the scene."""
    parts = (field or Ball(), background or Grey(), material or NoMaterial(), occupancy, options)
    return render(*parts, *camera_rays(), **more)


def test_render_of_a_ball_on_grey():
    result = render_scene(need_normals=True)
    origins, _ = camera_rays()
    offset = origins[:, 1:].norm(dim=-1)
    inside, outside = offset < 0.45, offset > 0.6
    assert (result.opacity[inside] > 0.99).all() and (result.opacity[outside] < 1e-3).all()
    depth = 3 - (0.25 - offset**2).clamp(min=0).sqrt()
    torch.testing.assert_close(result.depth[inside, 0], depth[inside], rtol=0, atol=0.03)
    torch.testing.assert_close(result.rgb[outside], torch.full_like(result.rgb[outside], 0.25), rtol=0, atol=1e-3)
    above = inside & (origins[:, 2] > 0.1)
    torch.testing.assert_close(result.rgb[above].mean(0), torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=0.01)
    centre = offset.argmin()
    assert result.normal is not None
    torch.testing.assert_close(result.normal[centre], torch.tensor([1.0, 0.5, 0.5]), rtol=0, atol=0.1)
    assert (result.z_variance[offset < 0.3] < 1e-3).all()
    torch.testing.assert_close(result.rgb, result.rgb_fg + result.background * (1 - result.opacity))
    torch.testing.assert_close(result.samples.sum(result.weights)[:, None], result.opacity)
    assert len(result.weights) == len(result.samples.ray_index) and render_scene().normal is None


def test_shown_sets_the_samples_of_evaluation_renders_only():
    coarse, fine = MARCH.model_copy(update={"samples": 20}), MARCH.model_copy(update={"samples": 20, "shown": 200})
    training = [render_scene(options=o, training=True, generator=generator(0, 0, "render")) for o in (coarse, fine)]
    assert len(training[0].samples) == len(training[1].samples)
    torch.testing.assert_close(render_scene(options=fine).rgb, render_scene().rgb)
    assert len(render_scene(options=coarse).samples) < 0.2 * len(render_scene(options=fine).samples)


def test_empty_scene_gives_background_and_zero_gradients():
    field, background = Ball(), Grey()
    training = {"training": True, "generator": generator(0, 0, "render")}
    result = render_scene(field, grid(False), background=background, need_normals=True, **training)
    torch.testing.assert_close(result.rgb, result.background)
    assert result.opacity.abs().max().item() == 0
    weighted = result.weights[:, None] * result.normals
    sum(t.sum() for t in (result.rgb, result.depth, result.z_variance, result.normal, weighted)).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in field.parameters())
    assert float(background.level.grad) == pytest.approx(3 * len(result.rgb))


def test_skipping_empty_cells_keeps_the_image():
    field, occupancy = Ball(), grid(True)
    occupancy.options = occupancy.options.model_copy(update={"threshold": 1e-6})
    for step in range(0, 320, 16):
        occupancy.update(field.density, step, generator(0, step, "occupancy"))
    plain, skipped = render_scene(field), render_scene(field, occupancy)
    assert len(skipped.samples) < 0.5 * len(plain.samples)
    torch.testing.assert_close(skipped.rgb, plain.rgb, rtol=0, atol=1e-3)


def test_thresholds_drop_samples_and_keep_the_image():
    options = MARCH.model_copy(update={"alpha_threshold": 0.01, "early_stop": 1e-4})
    full, reduced = render_scene(), render_scene(options=options)
    assert len(reduced.samples) < 0.2 * len(full.samples)
    torch.testing.assert_close(reduced.rgb, full.rgb, rtol=0, atol=0.05)
    haze = Ball(density=0.3)
    assert float(render_scene(haze, options=options).opacity.detach().max()) == 0
    occupancy = grid(True)
    occupancy.values.fill_(1e-4)
    opacity = render_scene(haze, occupancy, options=options).opacity
    assert float(opacity.detach().max()) > 0.2, "low density must be able to grow"


@pytest.mark.usefixtures("nerfacc_on_a_cpu")
def test_nerfacc_gives_the_same_image_and_gradient():
    occupancy, results = grid(True), []
    occupancy.binary[::3, :, 4:] = False
    for name in ("nerfacc", "torch"):
        options = MARCH.model_copy(update={"backend": name, "alpha_threshold": 0.01, "early_stop": 1e-4})
        field = Ball(density=20.0)
        result = render_scene(
            field, occupancy, options, training=True, generator=generator(0, 0, "render"), need_normals=True
        )
        (result.rgb.square().sum() + result.depth.sum() + result.orientation.sum() + result.z_variance.sum()).backward()
        results.append([result.samples.t_start, result.rgb, result.depth, *(p.grad for p in field.parameters())])
    assert torch.equal(results[0][0], results[1][0]) and len(results[0][0]) > 1000
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_render_is_random_only_in_training_and_by_its_generator():
    state = torch.get_rng_state()
    first, second, other = (render_scene(training=True, generator=generator(seed, 0, "render")) for seed in (0, 0, 1))
    assert torch.equal(first.rgb, second.rgb) and not torch.equal(first.rgb, other.rgb)
    assert torch.equal(render_scene().rgb, render_scene().rgb)
    with refused(None, "generator", kind=ValueError):
        render_scene(training=True)
    assert torch.equal(torch.get_rng_state(), state)
    fixed = MARCH.model_copy(update={"jitter": False})
    training = render_scene(options=fixed, training=True, generator=generator(0, 0, "render"))
    assert torch.equal(training.depth, render_scene(options=fixed).depth)


def test_point_light_brightens_its_side():
    light, shading = torch.tensor([3.0, 3.0, 0.0]), Shading("textureless", 0.1, 0.9)
    result, (origins, _) = render_scene(material=DiffuseMaterial(), light=light, shading=shading), camera_rays()
    body = result.opacity[:, 0] > 0.99
    left, right = (body & (sign * origins[:, 1] > 0.2) for sign in (1, -1))
    assert result.rgb[left].mean().item() > 2 * result.rgb[right].mean().item()


def test_gradients_reach_all_parameters_and_equal_finite_differences():
    field, background = Ball(density=20.0), Grey()
    result = render_scene(field, background=background, need_normals=True)
    (result.rgb.square().sum() + result.normal.sum() + result.z_variance.sum()).backward()
    assert all(torch.isfinite(p.grad).all() and float(p.grad.abs().sum()) > 0 for p in field.parameters())
    assert float(background.level.grad) > 0
    middle, above, below = (Ball(density) for density in (20.0, 20.2, 19.8))
    loss = [render_scene(field).rgb.square().sum() for field in (middle, above, below)]
    loss[0].backward()
    assert float(middle.strength.grad) == pytest.approx((loss[1] - loss[2]).item() / 0.4, rel=0.02)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare with a tolerance relative to the largest value."""
    actual, expected = actual.detach(), expected.reshape(actual.shape)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


@recorded("volume_")
def test_render_equals_the_recorded_reference(path):
    file = Recorded(path)
    result = file.render(file.field())
    assert_near(result.samples.t_start, file["t_starts"], 1e-6)
    assert_near(result.samples.t_end, file["t_ends"], 1e-6)
    assert torch.equal(result.samples.ray_index, file["ray_indices"])
    names = {"rgb": "comp_rgb", "rgb_fg": "comp_rgb_fg"}
    for name in ("rgb", "rgb_fg", "opacity", "depth", "z_variance", "weights"):
        assert_near(getattr(result, name), file["out_" + names.get(name, name)], 1e-5)
    if result.normals is not None and result.normal is not None:
        # finite differences amplify rounding errors, most at low density
        tolerance = 1e-4 if file.meta["normal"].startswith("finite") else 1e-5
        assert_near(result.normals, file["out_normal"], 10 * tolerance)
        assert_near(result.normal, file["out_comp_normal"], tolerance)
        assert_near(losses.orientation(result.orientation, result.opacity), file["loss_orient"], tolerance)
    assert_near(losses.sparsity(result.opacity), file["loss_sparsity"], 1e-5)
    assert_near(losses.opaque(result.opacity), file["loss_opaque"], 1e-5)
    assert_near(losses.z_variance(result.z_variance, result.opacity), file["loss_z_variance"], 1e-5)


@recorded("volume_")
def test_gradients_equal_the_recorded_reference(path):
    file = Recorded(path)
    field = file.field()
    loss = file.loss(file.render(field))
    assert_near(loss, file["total_loss"], 1e-5)
    loss.backward()
    for name, parameter in field.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_near(grad, file["grad." + name.replace("_mlp", "_network")], 1e-3)
