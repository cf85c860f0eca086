"""Pictures and films on the disk."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from threedgen.geometry import images
from threedgen.geometry.images import grid, readable, to_linear, to_srgb, to_uint8, write_mp4, write_png


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_to_uint8_rounds_and_clips():
    values = [-1.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")]
    wanted = [0, 0, 128, 255, 255, 0, 255]
    assert to_uint8(np.array(values)).tolist() == wanted
    assert to_uint8(torch.tensor(values, requires_grad=True)).tolist() == wanted
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [128]
    already = np.array([3, 255], np.uint8)
    assert to_uint8(already) is already
    with pytest.raises(TypeError, match="int64"):
        to_uint8(np.array([1, 2]))


def test_linear_light_and_back():
    srgb = np.array([0.0, 0.04045, 0.5, 1.0])
    assert to_linear(srgb) == pytest.approx([0, 0.0031308, 0.2140411, 1], abs=1e-6)
    assert to_srgb(to_linear(srgb)) == pytest.approx(srgb, abs=1e-6)


def test_png_is_what_was_written(tmp_path):
    picture = noise(5, 7, 3)
    path = write_png(tmp_path / "new" / "a.png", torch.from_numpy(picture))
    assert np.array_equal(np.asarray(Image.open(path)), to_uint8(picture))
    grey = write_png(tmp_path / "grey.png", picture[..., :1])
    assert np.asarray(Image.open(grey)).shape == (5, 7, 3)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["grey.png"]


@pytest.mark.parametrize("shape", [(5, 7, 2), (2, 5, 7, 3), (0, 7, 3), (3,)])
def test_a_picture_of_another_shape_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match=r"shape \(H, W, 3\)"):
        write_png(tmp_path / "a.png", np.zeros(shape))


def test_small_pictures_are_enlarged_whole_times():
    pictures = noise(2, 3, 48, 3)
    large = readable(pictures)
    assert large.shape == (2, 9, 144, 3)
    assert np.array_equal(large[:, 1::3, 1::3], to_uint8(pictures))
    assert readable(noise(1, 3, 128, 3)).shape == (1, 3, 128, 3)


def test_grid_puts_each_picture_in_its_place():
    pictures = np.stack([np.full((6, 8, 3), n / 10, np.float32) for n in range(5)])
    sheet = grid(pictures, columns=3)
    assert sheet.shape == (2 * (6 + 2) + 2, 3 * (8 + 2) + 2, 3)
    for n in range(5):
        y, x = 2 + n // 3 * 8, 2 + n % 3 * 10
        assert np.array_equal(sheet[y : y + 6, x : x + 8], to_uint8(pictures[n]))
    assert (sheet[-8:-2, -10:-2] == 255).all()


def test_labels_are_under_their_pictures_and_nowhere_else():
    pictures = np.zeros((2, 40, 100, 3), np.float32)
    one = grid(pictures, 2, ["", ""])
    sheet = grid(pictures, 2, ["a blue dog wearing a red hat", "\x1b[31m\n[red]"])
    assert sheet.shape[1] == one.shape[1] and sheet.shape[0] > one.shape[0]  # the longer label takes two lines
    inked = (sheet != 255).any(axis=2)
    assert np.array_equal(sheet[:42], one[:42])
    assert inked[42:, 2:102].any() and inked[42:, 104:204].any() and not inked[42:, 102:104].any()


def test_a_label_of_any_length_takes_three_lines_at_most():
    pictures = np.zeros((1, 40, 100, 3), np.float32)
    heights = [grid(pictures, 1, ["word " * n]).shape[0] for n in (1, 30, 3000)]
    assert heights[0] < heights[1] == heights[2]


def test_a_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="needs pictures"):
        grid(np.zeros((0, 4, 4, 3)), 2)
    with pytest.raises(ValueError, match="is (longer|shorter) than"):
        grid(np.zeros((2, 4, 4, 3)), 2, ["one"])


def test_film_has_all_frames_and_even_sides(tmp_path):
    shades = np.linspace(0.1, 0.9, 12, dtype=np.float32)
    frames = (np.full((33, 41, 3), shade, np.float32) for shade in shades)
    path = write_mp4(frames, tmp_path / "new folder" / "film.mp4", fps=12)
    film = iio.imread(path)
    assert film.shape == (12, 34, 42, 3)
    assert np.abs(film.mean(axis=(1, 2, 3)) - 255 * shades).max() < 4
    meta = iio.immeta(path, plugin="FFMPEG")
    assert meta["fps"] == 12 and meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]
    assert [p.name for p in path.parent.iterdir()] == ["film.mp4"]


def test_equal_frames_give_equal_films(tmp_path):
    frames = noise(5, 32, 32, 3)
    one, other = write_mp4(frames, tmp_path / "a.mp4"), write_mp4(frames, tmp_path / "b.mp4")
    assert one.read_bytes() == other.read_bytes()


def test_a_failed_film_leaves_the_old_one(tmp_path):
    path = write_mp4(noise(2, 16, 16, 3), tmp_path / "film.mp4")
    before = path.read_bytes()

    def breaks():
        yield noise(16, 16, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(breaks(), path)
    with pytest.raises(ValueError, match="one size"):
        write_mp4([noise(16, 16, 3), noise(16, 18, 3)], path)
    with pytest.raises(ValueError, match="at least one frame"):
        write_mp4([], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("count, size", [(1, 16), (200, 64)])
def test_an_encoder_that_fails_is_an_os_error(tmp_path, monkeypatch, count, size):
    monkeypatch.setitem(images.H264, "codec", "no_such_codec")
    with pytest.raises(OSError, match="film.mp4 could not be written"):
        write_mp4(noise(count, size, size, 3), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


def test_a_film_that_lacks_frames_is_an_os_error(tmp_path, monkeypatch):
    """As after a full disk."""
    real = images.iio.imwrite

    def cut_short(path, frames, **options):
        real(path, frames, **options)
        path.write_bytes(path.read_bytes()[:600])

    monkeypatch.setattr(images.iio, "imwrite", cut_short)
    with pytest.raises(OSError, match="of 5 frames"):
        write_mp4(noise(5, 32, 32, 3), tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())
