"""Photos of a subject: any size and kind becomes a square portrait on grey, and what is no photo is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen.config.errors import ConfigError
from threedgen.data import photos

RED, GREEN = (200, 30, 30), (30, 160, 60)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def on_paper() -> np.ndarray:
    """A red box, 20 wide and 40 high, towards the left, on paper."""
    picture = np.full((90, 160, 3), 240, np.uint8)
    picture[30:70, 10:30] = RED
    return picture


def extent(portrait: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row and column that are not grey."""
    there = (np.abs(portrait.astype(int) - 128) > 30).any(-1)
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


def test_a_subject_on_paper_is_cut_out_and_put_into_the_middle(tmp_path: Path) -> None:
    (portrait,) = photos.read([save(tmp_path / "a.png", on_paper())], 64, fill=0.75)
    assert portrait.shape == (64, 64, 3) and portrait.dtype == np.uint8
    assert np.abs(portrait[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) - 128).max() <= 1
    top, bottom, left, right = extent(portrait)
    assert abs((bottom - top + 1) - 48) <= 2 and abs((right - left + 1) - 24) <= 2
    assert abs(top + bottom - 63) <= 2 and abs(left + right - 63) <= 2
    assert np.abs(portrait[32, 32].astype(int) - RED).max() <= 3


def test_transparency_says_what_the_subject_is(tmp_path: Path) -> None:
    """Also where its colour is that of what is behind it; half transparent is half grey."""
    picture = np.zeros((50, 50, 4), np.uint8)
    picture[..., :3] = GREEN
    picture[10:40, 10:40, 3] = 255
    picture[20:30, 20:30, 3] = 128
    (portrait,) = photos.read([save(tmp_path / "a.png", picture)], 40, fill=0.75)
    top, bottom, left, right = extent(portrait)
    assert abs((bottom - top + 1) - 30) <= 2 and abs((right - left + 1) - 30) <= 2
    assert np.abs(portrait[20, 20].astype(int) - (np.add(GREEN, 128) / 2)).max() <= 4


def test_a_busy_background_stays_and_the_middle_square_is_taken(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (60, 120, 3)).astype(np.uint8)
    picture[:, 30:90] = GREEN
    (portrait,) = photos.read([save(tmp_path / "a.png", picture)], 30)
    assert np.abs(portrait[:, 2:-2].astype(int) - GREEN).max() <= 2


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "LA", "1"])
def test_every_kind_of_picture_is_read(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        array = (on_paper()[..., 0].astype(np.uint16)) * 256
        Image.fromarray(array).save(tmp_path / "a.png")
        path = tmp_path / "a.png"
    else:
        path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
        picture = Image.fromarray(on_paper())
        (picture.quantize(8) if mode == "P" else picture.convert(mode)).save(path)
    (portrait,) = photos.read([path], 32)
    assert portrait.shape == (32, 32, 3)
    assert extent(portrait)[0] > 0 if mode != "1" else True


def test_a_camera_that_was_held_sideways(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    (upright,) = photos.read([save(tmp_path / "a.png", on_paper())], 64)
    (turned,) = photos.read([save(tmp_path / "b.jpg", on_paper(), exif=exif, quality=95)], 64)
    one, other = extent(upright), extent(turned)
    assert abs((one[1] - one[0]) - (other[3] - other[2])) <= 2 and abs((one[3] - one[2]) - (other[1] - other[0])) <= 2


def test_a_folder_is_read_in_order_and_other_files_are_left_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).write_text("x") if name.endswith("txt") else save(tmp_path / name, on_paper())
    assert [path.name for path in photos.find([str(tmp_path)])] == ["a.JPG", "b.png"]


def refused(*paths: Path | str) -> str:
    with pytest.raises(ConfigError) as caught:
        photos.read(photos.find([str(path) for path in paths]), 16)
    assert str(caught.value).startswith("photos: ") and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_photo_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = save(tmp_path / "good.png", on_paper())
    (tmp_path / "empty").mkdir()
    assert "there is no picture" in refused() and "there is no picture" in refused(tmp_path / "empty")
    assert "there is no file or folder" in refused(tmp_path / "none") and "there is no file" in refused("\0")
    assert "one picture cannot tell" in refused(good)
    assert "at most 100" in refused(*[good] * 101)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert "text.png cannot be read as a picture" in refused(good, text)
    torn = tmp_path / "torn.png"
    noise = save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    torn.write_bytes(noise.read_bytes()[:3000])
    assert "torn.png is damaged" in refused(good, torn)
    blank = save(tmp_path / "blank.png", np.full((20, 20, 3), 255, np.uint8))
    assert "nothing but its background" in refused(good, blank)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", on_paper())
    for side in (9000, 30000):  # beyond our limit, beyond Pillow's own
        bomb = tmp_path / "bomb.png"
        content = bytearray(good.read_bytes())
        content[16:24] = side.to_bytes(4, "big") * 2
        import zlib

        content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
        bomb.write_bytes(content)
        assert "far too large" in refused(good, bomb)
