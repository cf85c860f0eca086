import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.support.nerfacc_stand_in import nerfacc_on_a_cpu  # noqa: F401
from tests.support.parity_files import recorded
from tests.support.volume_recording import Recorded, unnormalised_z_variance
from threedgen.representations import losses
from threedgen.representations.shading import Material
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.render import OccupancyGrid, Render, render
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
    parts = (field or Ball(), background or Grey(), material or Material(), occupancy, options)
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
    coarse, fine = (
        MARCH.model_copy(update={"samples": 20}),
        MARCH.model_copy(update={"samples": 20, "eval_samples": 200}),
    )
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


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    actual, expected = actual.detach(), expected.reshape(actual.shape)
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-6)


@recorded("volume_")
def test_render_equals_the_recorded_reference(path, monkeypatch):
    file = Recorded(path)
    result = file.render(file.field(), monkeypatch)
    names = {"rgb": "comp_rgb", "rgb_fg": "comp_rgb_fg"}
    for name in ("rgb", "rgb_fg", "opacity", "depth", "z_variance", "weights"):
        assert_near(getattr(result, name), file["out_" + names.get(name, name)], 1e-5)
    if result.normals is not None and result.normal is not None:
        # finite differences amplify rounding errors, most at low density
        tolerance = 1e-4 if file.one_sided else 1e-5
        assert_near(result.normals, file["out_normal"], 10 * tolerance)
        assert_near(result.normal, file["out_comp_normal"], tolerance)
        assert_near(losses.orientation(result), file["loss_orient"], tolerance)
    assert_near(losses.sparsity(result), file["loss_sparsity"], 1e-5)
    assert_near(losses.opaque(result), file["loss_opaque"], 1e-5)
    assert_near(unnormalised_z_variance(result), file["loss_z_variance"], 1e-5)


@recorded("volume_")
def test_gradients_equal_the_recorded_reference(path, monkeypatch):
    file = Recorded(path)
    field = file.field()
    loss = file.loss(file.render(field, monkeypatch))
    assert_near(loss, file["total_loss"], 1e-5)
    loss.backward()
    for name, parameter in field.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_near(grad, file["grad." + name.replace("_mlp", "_network")], 1e-3)


def cells(radius: float = 1.0, **options) -> OccupancyGrid:
    return OccupancyGrid(OccupancyConfig(**{"resolution": 16} | options), radius, step_size=0.02)


def ball_density(x: Tensor) -> Tensor:
    """Density of a solid ball of radius 0.4 at (0.3, 0, -0.2)."""
    return (x - x.new_tensor([0.3, 0.0, -0.2])).norm(dim=-1).lt(0.4).float() * 50


def centres(size: int, radius: float) -> Tensor:
    c = ((torch.arange(size) + 0.5) * 2 / size - 1) * radius
    return torch.stack(torch.meshgrid(c, c, c, indexing="ij"), dim=-1)


def update(module: OccupancyGrid, density, steps: range) -> None:
    for step in steps:
        module.update(density, step, generator(0, step, "occupancy"))


@pytest.mark.parametrize(("warmup", "radius"), [(256, 1.0), (0, 1.0), (256, 2.0)])
def test_update_finds_exactly_the_occupied_cells(warmup, radius):
    module = cells(radius, warmup=warmup)
    assert module.binary.all(), "all cells are sampled before the first update"
    update(module, ball_density, range(0, 16 * 30, 16))
    distance = (centres(16, radius) - torch.tensor([0.3, 0.0, -0.2])).norm(dim=-1)
    half = 3**0.5 / 16 * radius  # half the diagonal of a cell
    assert module.binary[distance < 0.4 - half].all()
    assert not module.binary[distance > 0.4 + half].any()


def test_values_decay_after_density_disappears():
    module = cells(decay=0.5)
    update(module, lambda x: torch.ones(len(x)), range(0, 16, 16))
    assert float(module.values.max()) == pytest.approx(0.02)
    update(module, lambda x: torch.zeros(len(x)), range(16, 48, 16))
    torch.testing.assert_close(module.values, torch.full((16, 16, 16), 0.02 / 4))


def test_low_density_lowers_the_threshold():
    module = cells()
    update(module, lambda x: (x[:, 0] > 0).float() * 0.01, range(0, 16, 16))
    assert 0.4 < module.binary.float().mean() < 0.6
