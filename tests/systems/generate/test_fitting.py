"""An object is fitted to pictures: what they agree on wins, and what has the colour behind it is not lost."""

from __future__ import annotations

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
from threedgen.systems.generate.fitting import sharpened
from threedgen.systems.generate.system import GenerateSystem

SIDE, STEPS, GREY = 32, 100, 0.5
SMALL = [
    *("prompt=a ball", "field.encoding.n_levels=5", "field.encoding.log2_hashmap_size=12", "field.width=16"),
    *("march.samples=48", "occupancy=null", "fit.rays=1024", "fit.smooth=0", "refine.strengths=[]"),
]


def balls(n: int = 8) -> tuple[Cameras, Tensor]:
    """Cameras around a ball, and where it is in their pictures (n, SIDE, SIDE)."""
    cameras = orbit(n, 0.2, 2.6, math.radians(40), SIDE, SIDE)
    origins, directions = cameras.rays()
    nearest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    return cameras, (nearest.norm(dim=-1) < 0.5).float()


def fitted(images: Tensor, cameras: Cameras, *overrides: str) -> GenerateSystem:
    options: Any = config.load("quick-toybox", [*SMALL, f"trainer.max_steps={STEPS}", *overrides])
    prior: Any = SimpleNamespace(schedule=Schedule.scaled_linear(), unet=None, image_size=SIDE)
    system = GenerateSystem(options, prior, torch.zeros(2, 1, 1))
    found: Any = system.configure_optimizers()
    for step in range(STEPS):
        _, loss = system.fit(cameras, images, step, 0, STEPS)
        found["optimizer"].zero_grad()
        loss.backward()
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    return system.eval()


@torch.no_grad()
def seen(system: GenerateSystem, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Opacity (n, SIDE, SIDE) and colours (n, SIDE, SIDE, 3) of the object."""
    result = system.render(cameras, STEPS, training=False)
    shape = (len(cameras), SIDE, SIDE)
    return result.opacity.view(shape), result.rgb.view(*shape, 3)


@pytest.mark.parametrize("known", [True, False])
def test_what_has_the_colour_behind_it_is_solid_where_a_matte_says_so(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cameras, there = balls()
    images = torch.full((len(cameras), SIDE, SIDE, 3), GREY)
    matte: Any = SimpleNamespace(opacity=lambda pictures: there)
    monkeypatch.setattr(Matte, "load", lambda weights: matte)
    system = fitted(images, cameras, "fit.matte=toybox-matte" if known else "fit.matte=null")
    opacity, colours = seen(system, cameras)
    inside, outside = opacity[there > 0.5].mean(), opacity[there < 0.5].mean()
    assert (inside > 0.9 and outside < 0.1) if known else inside < 0.3
    torch.testing.assert_close(colours, images, atol=0.15, rtol=0)


def test_pictures_that_disagree_are_not_averaged() -> None:
    cameras, there = balls(24)
    red, green = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.9, 0.1])
    of_each = torch.where((torch.arange(24) % 4 == 0)[:, None], green, red)  # a quarter of the pictures is wrong
    share = there[..., None]
    images = share * of_each[:, None, None] + (1 - share) * GREY
    _, colours = seen(fitted(images, cameras, "fit.matte=null"), cameras)
    found = colours[there > 0.5].median(0).values
    mean = 0.75 * red + 0.25 * green
    assert (found - red).abs().amax() < 0.5 * (found - mean).abs().amax(), found


def test_light_does_not_go_deep_into_what_is_held_together() -> None:
    cameras, there = balls()
    images = there[..., None] * torch.tensor([0.9, 0.1, 0.1]) + (1 - there[..., None]) * GREY
    spread = []
    for weight in (0, 4):
        system = fitted(images, cameras, "fit.matte=null", f"fit.distortion={weight}")
        with torch.no_grad():
            result = system.render(cameras, STEPS, training=False)
        inside = there.flatten() > 0.5
        assert result.opacity[inside].mean() > 0.9
        spread.append(float((result.z_variance[inside] / result.opacity[inside].square()).median()))
    assert spread[1] < 0.6 * spread[0], spread


def test_a_matte_that_is_not_there_is_said_before_any_work() -> None:
    options = config.load("quick-toybox", ["prompt=a red dog", "fit.matte=outputs/nowhere"])
    with pytest.raises(config.ConfigError, match=r"fit\.matte.*'outputs/nowhere'; take toybox-matte") as caught:
        options.check()
    assert "\n" not in str(caught.value)


def test_sharpened_pictures_have_steeper_edges_and_the_same_flat_colours() -> None:
    side = 128
    edge = torch.linspace(-80, 80, side).sigmoid()[None, None, :, None].expand(2, side, side, 3) * 0.6 + 0.2
    sharp = sharpened(edge, 0.5)
    assert sharp.shape == edge.shape and torch.equal(sharpened(edge, 0.0), edge)
    steepest = [picture.diff(dim=2).max() for picture in (edge, sharp)]
    assert steepest[1] > 1.2 * steepest[0]
    assert torch.allclose(sharp[:, :, :8], edge[:, :, :8], atol=1e-3)
    assert sharpened(edge.round(), 4.0).min() >= 0 and sharpened(edge.round(), 4.0).max() <= 1
