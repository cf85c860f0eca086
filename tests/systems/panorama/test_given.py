"""A picture of a world that is known in all directions has to be, in each view, what the view would see."""

from __future__ import annotations

from math import pi, radians
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

from tests.geometry.test_panorama import colours, photograph
from threedgen.geometry.panorama import intrinsics, ring
from threedgen.geometry.warp import pixel_grid
from threedgen.systems.panorama.given import given_views, read_image

K, R, SIZE = intrinsics(pi / 2, 64, 64), ring(8), 64


def shot(fov: float, height: int, width: int) -> torch.Tensor:
    """A picture (height,width,3) straight ahead."""
    rays = pad(pixel_grid(height, width), (0, 1), value=1.0) @ torch.linalg.inv(intrinsics(fov, height, width)).T
    return colours(rays).float()


@pytest.mark.parametrize(("fov", "height", "width"), [(67, 30, 40), (90, 200, 150), (110, 90, 160), (30, 300, 400)])
def test_a_picture_is_where_its_angle_of_view_says(fov: float, height: int, width: int) -> None:
    views, shown = given_views(shot(radians(fov), height, width), radians(fov), K, R, SIZE)
    expected = photograph(R, SIZE).permute(0, 2, 3, 1)
    assert (views - expected)[shown].abs().max() < 0.02 and not views[~shown].any()
    half = np.tan(radians(fov / 2))
    sides = [min(1.0, half), min(1.0, half * height / width)]
    assert shown[0].double().mean() == pytest.approx(sides[0] * sides[1], abs=0.05)
    assert shown[1:].any() == (fov > 90)
    assert torch.equal(shown[1].flip(-1), shown[7]) and not shown[4].any()


def test_a_picture_is_held_upright(tmp_path: Path) -> None:
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: its left side is up
    Image.fromarray(pixels).save(tmp_path / "held.png", exif=exif)
    found = read_image(str(tmp_path / "held.png"))
    assert found.shape == (20, 10, 3) and found[:10].min() == 1 and found[10:].max() == 0
