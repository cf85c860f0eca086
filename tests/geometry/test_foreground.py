"""What of a picture is the thing: the same by transparency as before white; and pictures that do not tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen.config import ConfigError
from threedgen.geometry.foreground import read_cut_out


def box(name: Path, transparent: bool) -> str:
    """A red box in front of white, or of nothing."""
    pixels = np.full((12, 20, 4), 255, np.uint8)
    pixels[3:9, 5:16, :3] = (200, 30, 30)
    pixels[..., 3] = 255 * (pixels[..., 1] < 100)
    Image.fromarray(pixels if transparent else pixels[..., :3]).save(name)
    return str(name)


def test_a_thing_is_cut_out_alike(tmp_path: Path) -> None:
    cut, plain = (read_cut_out(box(tmp_path / f"{k}.png", bool(k))) for k in (1, 0))
    np.testing.assert_array_equal(cut, plain)
    assert cut.shape == (12, 20, 4) and cut[..., 3].sum() == 6 * 11


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [
        (np.full((8, 8, 3), 255, np.uint8), "image: .* shows nothing but its background"),
        (np.zeros((8, 8, 4), np.uint8), "image: .* shows nothing but its background"),
        (np.random.default_rng(0).integers(0, 255, (12, 20, 3), np.uint8), "image: .* transparent background"),
    ],
)
def test_pictures_that_do_not_tell(tmp_path: Path, pixels: np.ndarray, problem: str) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=problem):
        read_cut_out(str(tmp_path / "a.png"))
