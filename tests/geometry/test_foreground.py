"""Foreground extraction by transparency and by uniform background."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.errors import refused
from threedgen.geometry.foreground import read_foreground


def box(name: Path, transparent: bool) -> str:
    """Save a red box on white or on transparency."""
    pixels = np.full((12, 20, 4), 255, np.uint8)
    pixels[3:9, 5:16, :3] = (200, 30, 30)
    pixels[..., 3] = 255 * (pixels[..., 1] < 100)
    Image.fromarray(pixels if transparent else pixels[..., :3]).save(name)
    return str(name)


def test_read_foreground_is_equal_for_transparent_and_white_background(tmp_path: Path) -> None:
    cut, plain = (read_foreground(box(tmp_path / f"{k}.png", bool(k))) for k in (1, 0))
    np.testing.assert_array_equal(cut, plain)
    assert cut.shape == (12, 20, 4) and cut[..., 3].sum() == 6 * 11


@pytest.mark.parametrize(
    ("pixels", "values"),
    [
        (np.full((8, 8, 3), 255, np.uint8), []),
        (np.zeros((8, 8, 4), np.uint8), []),
        (np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8), ["PNG"]),
    ],
    ids=["white", "transparent", "noise"],
)
def test_read_foreground_refuses_image(tmp_path: Path, pixels: np.ndarray, values: list[str]) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with refused("image", tmp_path / "a.png", *values):
        read_foreground(str(tmp_path / "a.png"))
