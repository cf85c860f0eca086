"""Pixels of posed images as training rays."""

import math

import pytest
import torch

from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import OBJECT_FRACTION, Pixels, Views


def red_square(n: int = 3, side: int = 32) -> Views:
    """Create images of a centred 8 x 8 red square, each with another background."""
    images = torch.linspace(0.2, 0.8, n)[:, None, None, None].expand(n, side, side, 3).clone()
    images[:, 12:20, 12:20] = torch.tensor([1.0, 0.0, 0.0])
    return Views(images, orbit(n, 0.2, 2.5, math.radians(40), side, side))


def test_pixels_have_camera_rays_colours_and_background() -> None:
    views = red_square()
    pixels = Pixels(views)
    origins, directions = views.cameras.select([1]).rays()
    second = slice(32 * 32, 2 * 32 * 32)
    assert torch.equal(pixels.origins[second], origins.reshape(-1, 3))
    assert torch.equal(pixels.directions[second], directions.reshape(-1, 3))
    assert torch.equal(pixels.colours[second].view(32, 32, 3), views.images[1])
    assert torch.equal(pixels.background[second], torch.full((32 * 32, 3), 0.5))


def test_pixels_sample_prefers_the_object() -> None:
    pixels = Pixels(red_square())
    row, column = pixels.near % (32 * 32) // 32, pixels.near % 32
    assert torch.equal(pixels.near, (~pixels.empty).nonzero()[:, 0])
    assert len(pixels.near) == 3 * 10 * 10 and row.min() == column.min() == 11 and row.max() == column.max() == 20
    indices = pixels.sample(2000, torch.Generator().manual_seed(0))
    fraction = torch.isin(indices, pixels.near).float().mean()
    expected = OBJECT_FRACTION + (1 - OBJECT_FRACTION) * 100 / 32**2
    assert len(indices) == 2000 and fraction == pytest.approx(expected, abs=0.02)
    assert torch.equal(indices, pixels.sample(2000, torch.Generator().manual_seed(0)))


def test_pixels_sample_of_empty_images_is_uniform() -> None:
    empty = Views(torch.full((2, 16, 16, 3), 0.4), orbit(2, 0.2, 2.5, 0.7, 16, 16))
    indices = Pixels(empty).sample(500, torch.Generator().manual_seed(0))
    assert len(indices) == 500 and len(indices.unique()) > 250


def test_pixels_composite_uses_random_backgrounds_for_known_opacity() -> None:
    views, opacity = red_square(), torch.zeros(3, 32, 32)
    opacity[:, 12:20, 12:20], opacity[:, 12, 12:20] = 1.0, 0.25
    views.images[:, 12] = 0.25 * views.images[:, 13] + 0.75 * views.images[:, :1, 0]
    views.images[:, 15, 15] = views.images[:, 0, 0]  # an object pixel in the background colour
    pixels = Pixels(views, opacity)
    assert pixels.near.numel() == 3 * 10 * 10
    indices, rng = torch.arange(3 * 32 * 32), torch.Generator().manual_seed(0)
    (first, background1), (second, background2) = (pixels.composite(indices, rng) for _ in range(2))
    alpha = opacity.view(-1, 1)
    assert not torch.allclose(background1, background2, atol=0.1)
    foreground = (first - (1 - alpha) * background1)[alpha[:, 0] > 0]
    torch.testing.assert_close(foreground, (second - (1 - alpha) * background2)[alpha[:, 0] > 0])
    torch.testing.assert_close(first[alpha[:, 0] == 0], background1[alpha[:, 0] == 0])
    opaque = alpha[:, 0] == 1
    assert torch.equal(first[opaque], views.images.view(-1, 3)[opaque])
    red = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(foreground.view(3, 8, 8, 3)[:, 0], (0.25 * red).expand(3, 8, 3))


def test_pixels_composite_keeps_colours_for_unknown_opacity() -> None:
    pixels = Pixels(red_square())
    colours, background = pixels.composite(torch.arange(3 * 32 * 32), torch.Generator())
    assert torch.equal(colours, pixels.colours) and torch.equal(background, pixels.background)
