import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from threedgen import config
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import orbit
from threedgen.guidance.matte import Matte
from threedgen.guidance.schedule import Schedule
from threedgen.representations import losses
from threedgen.representations.base import Render
from threedgen.systems.generate import phases
from threedgen.systems.generate.phases import Fit, Refinement, sharpen
from threedgen.systems.generate.system import GenerateSystem

SIDE, STEPS, GREY = 32, 100, 0.5
SMALL = [
    *("prompt=a ball", "field.encoding.n_levels=5", "field.encoding.log2_hashmap_size=12", "field.width=16"),
    *("march.samples=48", "occupancy=null", "fit.rays=1024", f"trainer.max_steps={STEPS}"),
]


ROUGHNESS = Fit._roughness  # the fixture replaces it


@pytest.fixture(autouse=True)
def no_smoothness_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fit, "_roughness", lambda *args: torch.zeros(()))


def ball_views(n: int = 8) -> tuple[Cameras, Tensor]:
    """Return cameras around a ball and its masks (n, SIDE, SIDE)."""
    cameras = orbit(n, 0.2, 2.6, math.radians(40), SIDE, SIDE)
    origins, directions = cameras.rays()
    nearest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    return cameras, (nearest.norm(dim=-1) < 0.5).float()


def untrained(*overrides: str) -> GenerateSystem:
    options: Any = config.load("quick-toybox", [*SMALL, *overrides])
    parts = {"schedule": Schedule.scaled_linear(), "unet": None, "image_size": SIDE}
    prior: Any = SimpleNamespace(**parts, cast_networks=lambda lora: None)
    return GenerateSystem(options, prior, torch.zeros(2, 1, 1))


def fitted(images: Tensor, cameras: Cameras, *overrides: str) -> GenerateSystem:
    system = untrained("refine.strengths=[]", *overrides)
    found, fit = system.configure_optimizers(), Fit(system, cameras, images)
    for step in range(STEPS):
        loss = fit.losses(step, step, STEPS).loss
        found["optimizer"].zero_grad()
        loss.backward()
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    return system.eval()


@torch.no_grad()
def renders(system: GenerateSystem, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Return opacity (n, SIDE, SIDE) and colours (n, SIDE, SIDE, 3) of the object."""
    result = system.render(cameras, STEPS, training=False)
    shape = (len(cameras), SIDE, SIDE)
    return result.opacity.view(shape), result.rgb.view(*shape, 3)


@pytest.mark.parametrize("has_matte", [True, False])
def test_fit_with_a_matte_makes_background_coloured_pixels_solid(has_matte: bool, monkeypatch) -> None:
    cameras, mask = ball_views()
    images = torch.full((len(cameras), SIDE, SIDE, 3), GREY)
    matte: Any = SimpleNamespace(opacity=lambda images: mask)
    monkeypatch.setattr(Matte, "load", lambda weights: matte)
    system = fitted(images, cameras, "fit.matte=toybox-matte" if has_matte else "fit.matte=null")
    opacity, colours = renders(system, cameras)
    inside, outside = opacity[mask > 0.5].mean(), opacity[mask < 0.5].mean()
    assert (inside > 0.9 and outside < 0.1) if has_matte else inside < 0.3
    torch.testing.assert_close(colours, images, atol=0.15, rtol=0)


def test_fit_follows_the_majority_of_inconsistent_views() -> None:
    cameras, mask = ball_views(24)
    red, green = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.9, 0.1])
    colour_of_view = torch.where((torch.arange(24) % 4 == 0)[:, None], green, red)  # a quarter of the views is wrong
    share = mask[..., None]
    images = share * colour_of_view[:, None, None] + (1 - share) * GREY
    _, colours = renders(fitted(images, cameras, "fit.matte=null"), cameras)
    found = colours[mask > 0.5].median(0).values
    mean = 0.75 * red + 0.25 * green
    assert (found - red).abs().amax() < 0.5 * (found - mean).abs().amax(), found


def test_fit_removes_grain_and_keeps_the_border_of_two_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fit, "_roughness", ROUGHNESS)
    cameras, mask = ball_views()
    high = torch.linspace(1, -1, SIDE)[:, None].sign()  # upper half red, lower half blue
    flat = torch.stack([0.5 + 0.4 * high, 0 * high + 0.1, 0.5 - 0.4 * high], dim=-1).expand(-1, SIDE, -1)
    grain = 0.08 * torch.randn(len(mask), SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    images = torch.where(mask[..., None] > 0.5, (flat + grain).clamp(0, 1), torch.tensor(GREY))
    errors, contrasts = [], []
    for weight in (0.0, phases.GRAIN_WEIGHT):
        monkeypatch.setattr(phases, "GRAIN_WEIGHT", weight)
        colours = renders(fitted(images, cameras, "fit.matte=null"), cameras)[1]
        top, bottom = colours[:, 12:15, 13:19], colours[:, 18:21, 13:19]
        errors.append(float(torch.stack([part - part.mean((1, 2), keepdim=True) for part in (top, bottom)]).std()))
        contrasts.append(float((top - bottom).mean((0, 1, 2)).abs().amax()))
    assert errors[1] < 0.9 * errors[0] and contrasts[1] > 0.9 * contrasts[0], (errors, contrasts)


def test_weight_of_the_distortion_follows_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras, mask = ball_views()
    system = untrained("refine.strengths=[]", "fit.matte=null", "fit.distortion={0%: 0, 50%: 4}")
    fit, distortion = Fit(system, cameras, mask[..., None].expand(-1, -1, -1, 3)), losses.distortion
    found = []
    for factor in (0, 1):

        def spread(render: Render, span: float, factor: int = factor) -> Tensor:
            value = distortion(render, span)
            assert value is not None and value > 0
            return factor * value

        monkeypatch.setattr(losses, "distortion", spread)
        found.append([fit.losses(0, done, STEPS).loss.item() for done in (0, 25, 50)])
    at_start, halfway, later = (with_spread - without for without, with_spread in zip(*found, strict=True))
    assert at_start == 0 < halfway and later == pytest.approx(2 * halfway, rel=1e-2)


ROUNDS = ["fit.matte=null", "refine.strengths=[0.5,0.3]"]


def test_last_round_has_the_steps_that_rounding_leaves_over() -> None:
    def ranges(*words: str) -> list[tuple[int, int]]:
        return [(phase.start, phase.steps) for phase in untrained(*ROUNDS, *words).phases]

    assert ranges("refine.share=0.5", "trainer.max_steps=101") == [(0, 50), (50, 51)]
    assert ranges("refine.share=0.4", "trainer.max_steps=101") == [(0, 21), (21, 40), (61, 40)]
    assert ranges("refine.share=0.5", "trainer.max_steps=1") == [(0, 1)]


def test_cameras_of_refinement_are_those_of_the_config() -> None:
    words = ("camera.elevation_range=[-20, 10]", "result.turntable.distance=5", "result.turntable.fov=10")
    rig = untrained(*words, "preview.distance=3", "preview.fov=30").refinement.rig
    focal_length = rig.cameras.projection.K[0, 1, 1].item()
    assert rig.distance[0] == 3 and focal_length == pytest.approx(SIDE / 2 / math.tan(math.radians(15)))
    elevation = rig.elevation.rad2deg()
    assert elevation[0].item() == pytest.approx(-5) and elevation.min() >= -20 and elevation.max() < 10


def test_resumed_round_is_fitted_to_its_own_views(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, checkpoint = list[int](), {"global_step": 30}
    monkeypatch.setattr(Refinement, "resample", lambda self, number, rng, first: sampled.append(number))
    monkeypatch.setattr(Fit, "losses", lambda *args: None)
    monkeypatch.setattr(GenerateSystem, "clear_optimizer_state", lambda self: None)

    def resumed(*steps: int) -> list[int]:
        sampled.clear()
        system = untrained(*ROUNDS, "refine.share=0.4")  # the rounds start at steps 20 and 60
        system.on_load_checkpoint(checkpoint)
        for step in steps:
            system.phase_at(step).losses(step)
        system.on_save_checkpoint(checkpoint)
        return sampled

    untrained(*ROUNDS, "refine.share=0.4").on_save_checkpoint(checkpoint)
    assert resumed(30, 31) == [0], "a run that had no refinement at step 30"
    assert resumed(32) == []
    assert resumed(70, 71) == [1], "the images are those of round 0"


def test_sharpen_steepens_edges_and_keeps_flat_colours() -> None:
    side = 128
    edge = torch.linspace(-80, 80, side).sigmoid()[None, None, :, None].expand(2, side, side, 3) * 0.6 + 0.2
    sharp = sharpen(edge, 0.5)
    assert sharp.shape == edge.shape and torch.equal(sharpen(edge, 0.0), edge)
    steepest = [image.diff(dim=2).max() for image in (edge, sharp)]
    assert steepest[1] > 1.2 * steepest[0]
    assert torch.allclose(sharp[:, :, :8], edge[:, :, :8], atol=1e-3)
    assert sharpen(edge.round(), 4.0).min() >= 0 and sharpen(edge.round(), 4.0).max() <= 1
    red = edge * torch.tensor([1.0, 0.5, 0.5])
    change = sharpen(red, 0.5) - red  # of the brightness: equal in all channels
    assert change.abs().max() > 0.01 and torch.allclose(change[..., :1].expand_as(change), change, atol=1e-5)
