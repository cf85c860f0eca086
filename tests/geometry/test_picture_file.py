"""Pictures of strangers: read whole, upright and in 8 bits, or refused in one sentence."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threedgen.config import ConfigError
from threedgen.geometry.picture_file import picture_shape, read_picture

NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)


def encoded(kind: str, **words: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, format=kind, **words)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_half_a_picture_is_refused(tmp_path: Path, kind: str) -> None:
    data = encoded(kind)
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match="half"):
        read_picture(tmp_path / "half")
    assert read_picture(data).size == (60, 40)


def test_a_camera_that_was_held_sideways(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG", exif=exif))
    assert read_picture(tmp_path / "a.jpg").size == (40, 60) and picture_shape(tmp_path / "a.jpg") == (60, 40)


def test_sixteen_bits_keep_their_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist()[0][0] == [128] * 3


def test_what_would_start_a_program_wait_or_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ConfigError, match="cannot be read as a picture"):
        read_picture(tmp_path / "a.png")
    bomb = tmp_path / "bomb.pgm"
    bomb.write_bytes(b"P5 9000 9000 255\n")
    with pytest.raises(ConfigError, match="far too large"):
        read_picture(bomb)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ConfigError, match="no ordinary file"):
            read_picture(tmp_path / "pipe.png")


def test_no_damage_raises_anything_else() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        data = bytearray(encoded(kind))
        for _ in range(40):
            mutant = bytearray(data)
            for place in rng.integers(0, len(mutant), 5):
                mutant[place] = rng.integers(256)
            try:
                assert read_picture(bytes(mutant), "mutant").mode in ("RGB", "RGBA")
            except ConfigError as error:
                assert "\n" not in str(error)
