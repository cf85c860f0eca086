"""Image conversion, PNG, contact sheets, MP4 and pixels of views."""

import math
import os
from unittest.mock import Mock

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.errors import refused
from threedgen.geometry import images
from threedgen.geometry.images import grid, to_linear, to_srgb, to_uint8, write_mp4, write_png
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import OBJECT_FRACTION, Pixels, Views, centred, framed


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_to_uint8_rounds_and_clips():
    values = [-1.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")]
    expected = [0, 0, 128, 255, 255, 0, 255]
    assert to_uint8(np.array(values)).tolist() == expected
    assert to_uint8(torch.tensor(values, requires_grad=True)).tolist() == expected
    assert to_uint8(torch.tensor([0.5], dtype=torch.bfloat16)).tolist() == [128]
    unchanged = np.array([3, 255], np.uint8)
    assert to_uint8(unchanged) is unchanged


def test_to_srgb_inverts_to_linear():
    srgb = np.array([0.0, 0.04045, 0.5, 1.0])
    assert to_linear(srgb) == pytest.approx([0, 0.0031308, 0.2140411, 1], abs=1e-6)
    assert to_srgb(to_linear(srgb)) == pytest.approx(srgb, abs=1e-6)


def test_write_png_writes_rgb_and_grey(tmp_path):
    image = noise(5, 7, 3)
    path = write_png(tmp_path / "new" / "a.png", torch.from_numpy(image))
    assert np.array_equal(np.asarray(Image.open(path)), to_uint8(image))
    grey = write_png(tmp_path / "grey.png", image[..., :1])
    assert np.asarray(Image.open(grey)).shape == (5, 7, 3)


def test_grid_places_images_row_by_row():
    cells = np.stack([np.full((6, 8, 3), n / 10, np.float32) for n in range(5)])
    sheet = grid(cells, columns=3)
    assert sheet.shape == (2 * (6 + 2) + 2, 3 * (8 + 2) + 2, 3)
    for n in range(5):
        y, x = 2 + n // 3 * 8, 2 + n % 3 * 10
        assert np.array_equal(sheet[y : y + 6, x : x + 8], to_uint8(cells[n]))
    assert (sheet[-8:-2, -10:-2] == 255).all()


def test_write_mp4_writes_all_frames_and_even_sides(tmp_path):
    shades = np.linspace(0.1, 0.9, 12, dtype=np.float32)
    frames = [np.full((33, 41, 3), shade, np.float32) for shade in shades]
    path = write_mp4(iter(frames), tmp_path / "new folder" / "video.mp4", fps=12)
    assert write_mp4(frames, tmp_path / "again.mp4", fps=12).read_bytes() == path.read_bytes()
    video = iio.imread(path)
    assert video.shape == (12, 34, 42, 3)
    assert np.abs(video.mean(axis=(1, 2, 3)) - 255 * shades).max() < 4
    meta = iio.immeta(path, plugin="FFMPEG")
    assert meta["fps"] == 12 and meta["codec"] == "h264" and "yuv420p" in meta["pix_fmt"]
    assert [p.name for p in path.parent.iterdir()] == ["video.mp4"]


def test_write_mp4_failure_keeps_the_old_file(tmp_path):
    path = write_mp4(noise(2, 16, 16, 3), tmp_path / "video.mp4")
    before = path.read_bytes()

    def interrupted():
        yield noise(16, 16, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_mp4(interrupted(), path)
    for frames in ([noise(16, 16, 3), noise(16, 18, 3)], []):
        with pytest.raises((ValueError, OSError)):
            write_mp4(frames, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["video.mp4"]


def no_encoder(monkeypatch) -> None:
    monkeypatch.setitem(images.H264, "codec", "no_such_codec")


def no_program(monkeypatch) -> None:
    search = Mock(side_effect=RuntimeError("No ffmpeg exe could be found."))
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", search)


def full_disk(monkeypatch) -> None:
    imwrite = images.iio.imwrite

    def truncated(path, frames, **options):
        imwrite(path, frames, **options)
        os.truncate(path, 600)

    monkeypatch.setattr(images.iio, "imwrite", truncated)


@pytest.mark.parametrize(
    ("failure", "frames", "value"), [(no_encoder, 200, ""), (no_program, 2, "No ffmpeg"), (full_disk, 5, "of 5")]
)
def test_write_mp4_failure_is_os_error(tmp_path, monkeypatch, failure, frames, value):
    failure(monkeypatch)
    with refused(None, "video.mp4", value, kind=OSError):
        write_mp4(noise(frames, 32, 32, 3), tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())


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


def test_pixels_composite_replaces_the_background_behind_translucent_pixels() -> None:
    views, opacity = red_square(), torch.zeros(3, 32, 32)
    opacity[:, 12:20, 12:20], opacity[:, 12, 12:20] = 1.0, 0.25
    views.images[:, 12] = 0.25 * views.images[:, 13] + 0.75 * views.images[:, :1, 0]
    indices = torch.arange(3 * 32 * 32)
    colours, background = Pixels(views, opacity).composite(indices, torch.Generator().manual_seed(0))
    assert background.std() > 0.2, "random"
    expected = opacity.view(-1, 1) * torch.tensor([1.0, 0.0, 0.0]) + (1 - opacity.view(-1, 1)) * background
    torch.testing.assert_close(colours, expected)


def test_pixels_sample_prefers_the_object() -> None:
    pixels = Pixels(red_square())
    row, column = pixels.near % (32 * 32) // 32, pixels.near % 32
    assert len(pixels.near) == 3 * 10 * 10 and row.min() == column.min() == 11 and row.max() == column.max() == 20
    indices = pixels.sample(2000, torch.Generator().manual_seed(0))
    fraction = torch.isin(indices, pixels.near).float().mean()
    expected = OBJECT_FRACTION + (1 - OBJECT_FRACTION) * 100 / 32**2
    assert len(indices) == 2000 and fraction == pytest.approx(expected, abs=0.02)
    empty = Views(torch.full((2, 16, 16, 3), 0.4), orbit(2, 0.2, 2.5, 0.7, 16, 16))
    assert len(Pixels(empty).sample(500, torch.Generator().manual_seed(0))) == 500


def test_faint_background_does_not_move_the_object() -> None:
    cut = torch.zeros(40, 60, 4)
    cut[5:15, 30:50] = torch.tensor([1.0, 0.2, 0.1, 1.0])
    faint = cut.clone()
    faint[..., 3] = faint[..., 3].clamp(min=1e-6)
    torch.testing.assert_close(framed(faint, 32, 32), framed(cut, 32, 32), atol=1e-3, rtol=0)
    assert float(centred(0.01 * faint, 32, 32)[..., 3].max()) > 0, "an object that is faint as a whole is found too"
