"""Pictures with their cameras, and their pixels as rays."""

from __future__ import annotations

import math

import pytest
import torch

from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import SHARE, Pixels, Views


def a_square(n: int = 3, side: int = 32) -> Views:
    """A red square of 8 x 8 pixels in the middle of pictures whose background differs from one to the next."""
    images = torch.linspace(0.2, 0.8, n)[:, None, None, None].expand(n, side, side, 3).clone()
    images[:, 12:20, 12:20] = torch.tensor([1.0, 0.0, 0.0])
    return Views(images, orbit(n, 0.2, 2.5, math.radians(40), side, side))


def test_pixels_are_the_rays_of_their_cameras_with_what_is_behind() -> None:
    views = a_square()
    pixels = Pixels(views)
    origins, directions = views.at.select([1]).rays()
    second = slice(32 * 32, 2 * 32 * 32)
    assert torch.equal(pixels.origins[second], origins.reshape(-1, 3))
    assert torch.equal(pixels.directions[second], directions.reshape(-1, 3))
    assert torch.equal(pixels.colours[second].view(32, 32, 3), views.images[1])
    assert torch.equal(pixels.behind[second], torch.full((32 * 32, 3), 0.5))


def test_most_of_the_pixels_drawn_are_near_the_object() -> None:
    pixels = Pixels(a_square())
    row, column = pixels.near % (32 * 32) // 32, pixels.near % 32
    assert torch.equal(pixels.near, (~pixels.empty).nonzero()[:, 0])
    assert len(pixels.near) == 3 * 10 * 10 and row.min() == column.min() == 11 and row.max() == column.max() == 20
    chosen = pixels.draw(2000, torch.Generator().manual_seed(0))
    share = torch.isin(chosen, pixels.near).float().mean()
    assert len(chosen) == 2000 and share == pytest.approx(SHARE + (1 - SHARE) * 100 / 32**2, abs=0.02)
    assert torch.equal(chosen, pixels.draw(2000, torch.Generator().manual_seed(0)))


def test_pictures_of_nothing_are_drawn_from_all_over() -> None:
    nothing = Views(torch.full((2, 16, 16, 3), 0.4), orbit(2, 0.2, 2.5, 0.7, 16, 16))
    chosen = Pixels(nothing).draw(500, torch.Generator().manual_seed(0))
    assert len(chosen) == 500 and len(chosen.unique()) > 250


def test_pixels_of_known_opacity_are_before_another_colour_each_time() -> None:
    views, opacity = a_square(), torch.zeros(3, 32, 32)
    opacity[:, 12:20, 12:20], opacity[:, 12, 12:20] = 1.0, 0.25
    views.images[:, 12] = 0.25 * views.images[:, 13] + 0.75 * views.images[:, :1, 0]
    views.images[:, 15, 15] = views.images[:, 0, 0]  # of the object, in the very colour that is behind it
    pixels = Pixels(views, opacity)
    assert pixels.near.numel() == 3 * 10 * 10
    every, rng = torch.arange(3 * 32 * 32), torch.Generator().manual_seed(0)
    (first, behind), (second, other) = (pixels.before(every, rng) for _ in range(2))
    share = opacity.view(-1, 1)
    assert not torch.allclose(behind, other, atol=0.1)
    own = (first - (1 - share) * behind)[share[:, 0] > 0]
    torch.testing.assert_close(own, (second - (1 - share) * other)[share[:, 0] > 0])
    torch.testing.assert_close(first[share[:, 0] == 0], behind[share[:, 0] == 0])
    solid = share[:, 0] == 1
    assert torch.equal(first[solid], views.images.view(-1, 3)[solid])
    red = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(own.view(3, 8, 8, 3)[:, 0], (0.25 * red).expand(3, 8, 3))
    plain = Pixels(views)
    colours, same = plain.before(every, rng)
    assert torch.equal(colours, plain.colours) and torch.equal(same, plain.behind)
