"""The volume renderer: geometry, empty scenes, chunks, thinning, and the reference's pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

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
    """A ball of radius 0.5 with a soft edge; red above, blue below; all parameters learnable."""

    along = None

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
    """A learnable grey background that is random in training."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.25))

    def forward(self, directions: Tensor, *, training: bool = False, generator=None) -> Tensor:
        noise = torch.rand(1, generator=generator) * 0.1 if training else torch.zeros(1)
        return (self.level + noise).expand(len(directions), 3)


def picture(size: int = 16, height: float = 0.5) -> tuple[Tensor, Tensor]:
    """A camera at x = 3 that looks along -x, raised a little; parallel rays (R, 3), (R, 3)."""
    edge = torch.linspace(-0.9, 0.9, size)
    y, z = torch.meshgrid(edge, edge, indexing="xy")
    origins = torch.stack([torch.full_like(y, 3.0), y, -z], dim=-1).reshape(-1, 3)
    return origins, torch.tensor([[-1.0, 0.0, 0.0]]).expand_as(origins)


def grid(fill: bool) -> OccupancyGrid:
    module = OccupancyGrid(OccupancyConfig(resolution=8), radius=1.0, step_size=0.01)
    module.binary.fill_(fill)
    return module


def look(field=None, occupancy=None, options=MARCH, background=None, material=None, **more) -> Render:
    """The picture of a ball in front of grey, or of what is given instead."""
    parts = (field or Ball(), background or Grey(), material or NoMaterial(), occupancy, options)
    return render(*parts, *picture(), **more)


def test_a_ball_in_front_of_grey():
    seen = look(need_normals=True)
    origins, _ = picture()
    off = origins[:, 1:].norm(dim=-1)
    inside, outside = off < 0.45, off > 0.6
    assert (seen.opacity[inside] > 0.99).all() and (seen.opacity[outside] < 1e-3).all()
    depth = 3 - (0.25 - off**2).clamp(min=0).sqrt()
    torch.testing.assert_close(seen.depth[inside, 0], depth[inside], rtol=0, atol=0.03)
    torch.testing.assert_close(seen.rgb[outside], torch.full_like(seen.rgb[outside], 0.25), rtol=0, atol=1e-3)
    above = inside & (origins[:, 2] > 0.1)
    torch.testing.assert_close(seen.rgb[above].mean(0), torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=0.01)
    centre = off.argmin()
    assert seen.normal is not None
    torch.testing.assert_close(seen.normal[centre], torch.tensor([1.0, 0.5, 0.5]), rtol=0, atol=0.1)
    assert (seen.z_variance[off < 0.3] < 1e-3).all()


def test_pictures_have_finer_steps_than_what_learns():
    coarse, fine = MARCH.model_copy(update={"samples": 20}), MARCH.model_copy(update={"samples": 20, "shown": 200})
    learns = [look(options=options, training=True, generator=generator(0, 0, "render")) for options in (coarse, fine)]
    assert len(learns[0].samples) == len(learns[1].samples)
    torch.testing.assert_close(look(options=fine).rgb, look().rgb)
    assert len(look(options=coarse).samples) < 0.2 * len(look(options=fine).samples)


def test_colours_add_up():
    seen = look()
    torch.testing.assert_close(seen.rgb, seen.rgb_fg + seen.background * (1 - seen.opacity))
    torch.testing.assert_close(seen.samples.sum(seen.weights)[:, None], seen.opacity)
    assert len(seen.weights) == len(seen.samples.ray_index) and seen.normal is None


def test_no_samples_gives_the_background_and_zero_gradients():
    field, background = Ball(), Grey()
    draws = {"training": True, "generator": generator(0, 0, "render")}
    seen = look(field, grid(False), background=background, need_normals=True, **draws)
    torch.testing.assert_close(seen.rgb, seen.background)
    assert seen.opacity.abs().max().item() == 0
    facing = seen.weights[:, None] * seen.normals
    sum(t.sum() for t in (seen.rgb, seen.depth, seen.z_variance, seen.normal, facing)).backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) == 0 for p in field.parameters())
    assert float(background.level.grad) == pytest.approx(3 * len(seen.rgb))


def test_skipping_empty_cells_changes_nothing():
    field, occupancy = Ball(), grid(True)
    occupancy.options = occupancy.options.model_copy(update={"threshold": 1e-6})
    for step in range(0, 320, 16):
        occupancy.update(field.density, step, generator(0, step, "occupancy"))
    plain, quick = look(field), look(field, occupancy)
    assert len(quick.samples) < 0.5 * len(plain.samples)
    torch.testing.assert_close(quick.rgb, plain.rgb, rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [7, 100, 10**6])
def test_chunks_give_the_same_picture(chunk):
    lit = {"material": DiffuseMaterial(), "light": picture()[0] + 0.5, "shading": Shading("diffuse", 0.3, 0.7)}
    whole, parts = (look(chunk=c, **lit) for c in (None, chunk))
    for name in ("rgb", "rgb_fg", "background", "opacity", "depth", "z_variance", "normal"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name))
    assert parts.samples.n_rays == len(whole.rgb)


def test_thinning_shades_fewer_samples_and_keeps_the_picture():
    thin = MARCH.model_copy(update={"alpha_threshold": 0.01, "early_stop": 1e-4})
    full, few = look(), look(options=thin)
    assert len(few.samples) < 0.2 * len(full.samples)
    torch.testing.assert_close(few.rgb, full.rgb, rtol=0, atol=0.05)
    fog = Ball(density=0.3)
    assert float(look(fog, options=thin).opacity.detach().max()) == 0
    occupancy = grid(True)
    occupancy.values.fill_(1e-4)
    assert float(look(fog, occupancy, options=thin).opacity.detach().max()) > 0.2, "fog must be able to grow"


@pytest.mark.usefixtures("nerfacc_on_a_cpu")
def test_nerfacc_renders_the_same_picture_and_gradient():
    occupancy, results = grid(True), []
    occupancy.binary[::3, :, 4:] = False
    for name in ("nerfacc", "torch"):
        options = MARCH.model_copy(update={"backend": name, "alpha_threshold": 0.01, "early_stop": 1e-4})
        field = Ball(density=20.0)
        seen = look(field, occupancy, options, training=True, generator=generator(0, 0, "render"), need_normals=True)
        (seen.rgb.square().sum() + seen.depth.sum() + seen.away.sum() + seen.z_variance.sum()).backward()
        results.append([seen.samples.t_start, seen.rgb, seen.depth, *(p.grad for p in field.parameters())])
    assert torch.equal(results[0][0], results[1][0]) and len(results[0][0]) > 1000
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_only_training_is_random_and_only_by_its_generator():
    state = torch.get_rng_state()
    first, second, other = (look(training=True, generator=generator(seed, 0, "render")) for seed in (0, 0, 1))
    assert torch.equal(first.rgb, second.rgb) and not torch.equal(first.rgb, other.rgb)
    assert torch.equal(look().rgb, look().rgb)
    with pytest.raises(ValueError, match="generator"):
        look(training=True)
    assert torch.equal(torch.get_rng_state(), state)
    still = MARCH.model_copy(update={"jitter": False})
    drawn = look(options=still, training=True, generator=generator(0, 0, "render"))
    assert torch.equal(drawn.depth, look(options=still).depth)


def test_light_falls_from_its_own_side():
    light, shading = torch.tensor([3.0, 3.0, 0.0]), Shading("textureless", 0.1, 0.9)
    seen, (origins, _) = look(material=DiffuseMaterial(), light=light, shading=shading), picture()
    body = seen.opacity[:, 0] > 0.99
    left, right = (body & (sign * origins[:, 1] > 0.2) for sign in (1, -1))
    assert seen.rgb[left].mean().item() > 2 * seen.rgb[right].mean().item()


def test_gradients_reach_everything_that_is_seen():
    field, background = Ball(density=20.0), Grey()
    seen = look(field, background=background, need_normals=True)
    (seen.rgb.square().sum() + seen.normal.sum() + seen.z_variance.sum()).backward()
    assert all(torch.isfinite(p.grad).all() and float(p.grad.abs().sum()) > 0 for p in field.parameters())
    assert float(background.level.grad) > 0


def test_the_gradient_is_the_slope():
    middle, above, below = (Ball(density) for density in (20.0, 20.2, 19.8))
    brightness = [look(field).rgb.square().sum() for field in (middle, above, below)]
    brightness[0].backward()
    slope = (brightness[1] - brightness[2]).item() / 0.4
    assert float(middle.strength.grad) == pytest.approx(slope, rel=0.02)


def near(mine: Tensor, reference: Tensor, tolerance: float) -> None:
    """Equal up to a part of the largest value."""
    mine, reference = mine.detach(), reference.reshape(mine.shape)
    assert (mine - reference).abs().max() <= tolerance * reference.abs().max().clamp(min=1e-6)


@recorded("volume_")
def test_pictures_of_the_reference(path):
    file = Recorded(path)
    seen = file.render(file.field())
    near(seen.samples.t_start, file["t_starts"], 1e-6)
    near(seen.samples.t_end, file["t_ends"], 1e-6)
    assert torch.equal(seen.samples.ray_index, file["ray_indices"])
    names = {"rgb": "comp_rgb", "rgb_fg": "comp_rgb_fg"}
    for name in ("rgb", "rgb_fg", "opacity", "depth", "z_variance", "weights"):
        near(getattr(seen, name), file["out_" + names.get(name, name)], 1e-5)
    if seen.normals is not None and seen.normal is not None:
        # rounding is divided by the step of a finite difference, and most where the density is small
        tolerance = 1e-4 if file.meta["normal"].startswith("finite") else 1e-5
        near(seen.normals, file["out_normal"], 10 * tolerance)
        near(seen.normal, file["out_comp_normal"], tolerance)
        near(losses.orientation(seen.away, seen.opacity), file["loss_orient"], tolerance)
    near(losses.sparsity(seen.opacity), file["loss_sparsity"], 1e-5)
    near(losses.opaque(seen.opacity), file["loss_opaque"], 1e-5)
    near(losses.z_variance(seen.z_variance, seen.opacity), file["loss_z_variance"], 1e-5)


@recorded("volume_")
def test_gradients_of_the_reference(path):
    """Through the normals these are second derivatives of the field."""
    file = Recorded(path)
    field = file.field()
    loss = file.loss(file.render(field))
    near(loss, file["total_loss"], 1e-5)
    loss.backward()
    for name, parameter in field.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        near(grad, file["grad." + name.replace("_mlp", "_network")], 1e-3)
