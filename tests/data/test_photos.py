from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pillow_heif import register_heif_opener

from tests.support.errors import refused
from threedgen.data import photos

RED, GREEN = (200, 30, 30), (30, 160, 60)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def on_paper() -> np.ndarray:
    """Return a photo of a red box, 20 wide and 40 high, at the left on paper."""
    photo = np.full((90, 160, 3), 240, np.uint8)
    photo[30:70, 10:30] = RED
    return photo


def extent(image: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first and last row and column that are not grey."""
    mask = (np.abs(image.astype(int) - 128) > 30).any(-1)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1], columns[0], columns[-1]


def test_subject_on_paper_is_centred_on_grey(tmp_path: Path) -> None:
    (image,) = photos.read([save(tmp_path / "a.png", on_paper())], 64)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert np.abs(image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) - 128).max() <= 1
    top, bottom, left, right = extent(image)
    assert abs((bottom - top + 1) - 48) <= 2 and abs((right - left + 1) - 24) <= 2
    assert abs(top + bottom - 63) <= 2 and abs(left + right - 63) <= 2
    assert np.abs(image[32, 32].astype(int) - RED).max() <= 3


def test_alpha_channel_separates_the_subject(tmp_path: Path) -> None:
    """Also from a background of its own colour; half transparent pixels become half grey."""
    photo = np.zeros((50, 50, 4), np.uint8)
    photo[..., :3] = GREEN
    photo[10:40, 10:40, 3] = 255
    photo[20:30, 20:30, 3] = 128
    (image,) = photos.read([save(tmp_path / "a.png", photo)], 40)
    top, bottom, left, right = extent(image)
    assert abs((bottom - top + 1) - 30) <= 2 and abs((right - left + 1) - 30) <= 2
    assert np.abs(image[20, 20].astype(int) - (np.add(GREEN, 128) / 2)).max() <= 4


def test_photo_with_a_busy_background_is_cropped_to_its_middle_square(tmp_path: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (60, 120, 3)).astype(np.uint8)
    photo[:, 30:90] = GREEN
    (image,) = photos.read([save(tmp_path / "a.png", photo)], 30)
    assert np.abs(image[:, 2:-2].astype(int) - GREEN).max() <= 2


def test_find_sorts_a_folder_and_names_skipped_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = (".hidden.png", "notes.txt", "broken.jpg", *(f"{k}.doc" for k in range(30)))
    for name in ("b.png", "a.JPG"):
        save(tmp_path / name, on_paper())
    for name in ("._a.JPG", *names):
        (tmp_path / name).write_text("x")
    assert [path.name for path in photos.find([str(tmp_path)])] == ["a.JPG", "b.png"]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.args is not None
    assert all(name in record.getMessage() for name in names) and "._a.JPG" not in record.getMessage()


@pytest.mark.parametrize("name", ["a.HEIF", "a.avif"])
def test_find_reads_formats_of_cameras_and_browsers(tmp_path: Path, name: str) -> None:
    register_heif_opener()
    paths = [save(tmp_path / name, on_paper()), save(tmp_path / "b.png", on_paper())]
    assert photos.find([str(tmp_path)]) == paths
    read, exact = photos.read(paths, 64).astype(float)
    assert np.abs(read - exact).mean() < 4


def test_unusable_photos_are_refused(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", on_paper())
    (tmp_path / "empty").mkdir()
    save(tmp_path / "blank.png", np.full((20, 20, 3), 255, np.uint8))
    cases: list[tuple[Sequence[Path | str], object]] = [
        ([tmp_path / "empty"], tmp_path / "empty"),
        (["\0"], "'\\x00'"),
        ([good] * 101, 101),
        ([good, tmp_path / "blank.png"], "blank.png"),
    ]
    for paths, named in cases:
        with refused("photos", named):
            photos.read(photos.find([str(path) for path in paths]), 16)
