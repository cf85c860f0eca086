import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.Image import Transpose as Flip
from pillow_heif import register_heif_opener

from tests.support.colour_profile import SRGB, grey_profile, rgb_profile
from tests.support.errors import refused
from threedgen.geometry.image_file import image_shape, load_image, read_depth, read_foreground
from threedgen.geometry.images import to_srgb, write_depth

QUADRANTS = np.array([[[220, 30, 30], [30, 200, 30]], [[30, 60, 220], [240, 220, 40]]], np.uint8)
NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)


def encoded(kind: str, pixels: np.ndarray = NOISE) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


REFUSED = {
    "half.jpg": (encoded("JPEG")[:500], ""),
    "half.png": (encoded("PNG")[:500], ""),
    "half.tif": (encoded("TIFF")[:500], ""),
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PNG"),
    "bomb.pgm": (b"P5 9000 9000 255\n", "70,000,000"),
    "floats.tif": (encoded("TIFF", np.ones((4, 4), np.float32)), "32-bit"),
    "integers.tif": (encoded("TIFF", np.full((4, 4), 65536, np.int32)), "32-bit"),
    "a.dng": (encoded("TIFF"), "raw"),  # PIL would read the small preview in it
    "b.CR2": (encoded("TIFF"), "raw"),
}
"""File name -> content, value in the message."""


@pytest.mark.parametrize("name", REFUSED)
def test_load_image_refuses_file(tmp_path: Path, name: str) -> None:
    content, value = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with refused("photos", tmp_path / name, value):
        load_image(tmp_path / name, key="photos")


def test_image_of_64_megapixels_is_opened(tmp_path: Path) -> None:
    (tmp_path / "large.pgm").write_bytes(b"P5 9248 6936 255\n")
    assert image_shape(tmp_path / "large.pgm") == (6936, 9248)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_load_image_refuses_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with refused(None, tmp_path / "pipe.png"):
        load_image(tmp_path / "pipe.png")


UPRIGHT = [("jpg", orientation) for orientation in range(1, 9)]
UPRIGHT += [(kind, 6) for kind in ("png", "webp", "tif", "avif", "heic")]


@pytest.mark.parametrize(("kind", "orientation"), UPRIGHT)
def test_load_image_applies_exif_rotation(tmp_path: Path, kind: str, orientation: int) -> None:
    register_heif_opener()
    upright, exif, path = np.kron(QUADRANTS, np.ones((32, 48, 1), np.uint8)), Image.Exif(), tmp_path / f"a.{kind}"
    exif[0x0112] = orientation
    undo = [None, Flip.FLIP_LEFT_RIGHT, Flip.ROTATE_180, Flip.FLIP_TOP_BOTTOM]
    undo += [Flip.TRANSPOSE, Flip.ROTATE_90, Flip.TRANSVERSE, Flip.ROTATE_270]
    turn = None if kind == "heic" else undo[orientation - 1]  # HEIC files have their own rotation instead
    image = Image.fromarray(upright)
    (image if turn is None else image.transpose(turn)).save(path, exif=exif)
    found = np.asarray(load_image(path)).astype(int)
    assert found.shape == upright.shape and image_shape(path) == upright.shape[:2]
    assert np.abs(found - upright)[16::32, 24::48].max() < 12


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "CMYK", {"quality": 100}),
        ("a.tif", "LAB", {}),
        ("a.png", "P", {"transparency": 0}),
        ("a.png", "LA", {}),
        ("a.gif", "P", {"save_all": True}),
        ("a.PNG", "RGB", {"save_all": True}),
    ],
)
def test_load_image_converts_all_modes(tmp_path: Path, name: str, mode: str, options: dict[str, Any]) -> None:
    """The first image of several, with transparency where the file has it."""
    rgb = Image.fromarray(QUADRANTS).resize((4, 4), Image.Resampling.NEAREST)
    image = rgb.quantize(4) if mode == "P" else rgb.convert(mode)
    more = {"append_images": [rgb.rotate(180)]} if "save_all" in options else {}
    image.save(tmp_path / name, **options, **more)
    expected = np.asarray((rgb.convert("L") if mode == "LA" else rgb).convert("RGB")).astype(int)
    found = load_image(tmp_path / name)
    assert found.mode == ("RGBA" if "transparency" in options or mode == "LA" else "RGB")
    pixels = np.asarray(found).astype(int)
    assert np.abs(pixels[..., :3] - expected).max() <= 9
    if "transparency" in options:
        assert sorted(np.unique(pixels[..., 3], return_counts=True)[1].tolist()) == [4, 12]


def test_load_image_converts_16_bits_to_8(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(load_image(tmp_path / "a.png")).tolist()[0][0] == [128] * 3


SLOW: dict[str, tuple[str, int, dict[str, Any]]] = {
    "scans.jpg": ("MAX_SCANNED", 60 * 40 * 9, {"progressive": True}),
    "parts.png": ("MAX_READS", 500, {}),
    "strips.tif": ("MAX_STRIPS", 39, {"tiffinfo": {278: 1}}),
    "strips.big.tif": ("MAX_STRIPS", 39, {"tiffinfo": {278: 1}, "big_tiff": True}),
    "levels.ppm": ("MAX_SLOW_PIXELS", 60 * 40 - 1, {}),
    "size.webp": ("MAX_BYTES", 2_000_000, {}),
}
"""File name -> limit that the image exceeds, value below which it is read, options of PIL."""


@pytest.mark.parametrize("name", SLOW)
def test_images_that_take_very_long_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, value, options = SLOW[name]
    Image.fromarray(NOISE).save(tmp_path / name, **options)
    if name == "parts.png":
        data, chunk = (tmp_path / name).read_bytes(), bytes(4) + b"abCd" + zlib.crc32(b"abCd").to_bytes(4)
        (tmp_path / name).write_bytes(data[:33] + 500 * chunk + data[33:])
    elif name == "levels.ppm":
        (tmp_path / name).write_bytes(b"P6 60 40 254\n" + bytes(7200))
    elif name == "size.webp":
        os.truncate(tmp_path / name, 3_000_000)
    assert load_image(tmp_path / name).size == (60, 40)
    monkeypatch.setattr(f"threedgen.geometry.image_file.{limit}", value)
    with refused("photos", tmp_path / name):
        load_image(tmp_path / name, key="photos")


def test_read_depth_returns_what_was_written(tmp_path: Path) -> None:
    depth, path = np.array([[0.0, 1.234], [70.0, 65.5]]), tmp_path / "new" / "0.png"
    write_depth(path, depth)
    assert np.allclose(read_depth(path), [[0, 1.234], [0, 65.5]], atol=1e-6)
    for data in (encoded("PNG"), path.read_bytes()[:45]):
        path.write_bytes(data)
        with refused("rig", path):
            read_depth(path, "rig")


def box(name: Path, transparent: bool) -> str:
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


P3_CASES = [("png", "RGB"), ("jpg", "RGB"), ("heic", "RGB"), ("png", "RGBA"), ("png", "P")]


@pytest.mark.parametrize(("kind", "mode"), P3_CASES)
def test_load_image_converts_display_p3_to_srgb(tmp_path: Path, kind: str, mode: str) -> None:
    """Expected: the matrix of Display P3 to linear sRGB."""
    register_heif_opener()
    colour = np.array([200, 60, 40])
    image = Image.new("RGBA", (8, 8), (*colour.tolist(), 128)).convert("RGBA" if mode == "RGBA" else "RGB")
    image = image.quantize(4) if mode == "P" else image
    image.save(tmp_path / f"a.{kind}", icc_profile=rgb_profile(), quality=100)
    matrix = np.array([[1.2249, -0.2249, 0], [-0.0420, 1.0420, 0], [-0.0197, -0.0786, 1.0983]])
    linear = matrix @ (colour / 255) ** 2.2
    pixel = np.asarray(load_image(tmp_path / f"a.{kind}"))[4, 4].astype(int)
    assert np.abs(pixel[:3] - 255 * to_srgb(linear)).max() < 4 and pixel[3:].tolist() == [128] * (mode == "RGBA")
    raw = np.asarray(load_image(tmp_path / f"a.{kind}", profile=False))[4, 4].astype(int)
    assert np.abs(raw[:3] - colour).max() < 4


@pytest.mark.parametrize(("mode", "profile"), [("L", rgb_profile()), ("RGB", b"damaged"), ("LA", rgb_profile())])
def test_load_image_ignores_profiles_that_do_not_fit(tmp_path: Path, mode: str, profile: bytes) -> None:
    Image.new("RGB", (8, 8), (90, 90, 90)).convert(mode).save(tmp_path / "a.png", icc_profile=profile)
    assert np.asarray(load_image(tmp_path / "a.png"))[4, 4].tolist() == [90, 90, 90] + [255] * (mode == "LA")


@pytest.mark.parametrize(
    ("mode", "transparency"), [("LA", None), ("L", 60), ("L", None), ("RGB", (200, 60, 40)), ("P", 0), ("I;16", None)]
)
def test_load_image_keeps_transparency_beside_a_profile(tmp_path: Path, mode: str, transparency: Any) -> None:
    """Left half: colour (200, 60, 40) or grey 60, transparent if the file can say so; right half: white and opaque."""
    colour, grey = mode in ("RGB", "P"), np.full((8, 8), 60, np.uint8)
    grey[:, 4:] = 255
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    if colour:
        image = Image.new("RGB", (8, 8), (200, 60, 40))
        image.paste((255, 255, 255), (4, 0, 8, 8))
        image = image.quantize(2) if mode == "P" else image
        transparency = image.getpixel((0, 0))
    if mode == "LA":
        image.putalpha(Image.fromarray(np.where(grey == 60, 0, 255).astype(np.uint8)))
    profile = rgb_profile(SRGB, 1.0) if colour else grey_profile(1.0)
    image.save(tmp_path / "a.png", icc_profile=profile, transparency=transparency)
    found = load_image(tmp_path / "a.png")
    clear = mode == "LA" or transparency is not None
    assert found.mode == ("RGBA" if clear else "RGB")
    expected = 255 * to_srgb(np.array([200, 60, 40] if colour else [60] * 3) / 255)
    left, right = (np.asarray(found)[4, x].astype(int) for x in (1, 6))
    assert np.abs(left[:3] - expected).max() <= 2 and left[3:].tolist() == [0] * clear
    assert right.min() >= 254


def test_load_image_returns_srgb_unchanged_and_converts_linear_profiles(tmp_path: Path) -> None:
    """Whatever the name of the profile."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=srgb)
    assert np.array_equal(load_image(tmp_path / "a.png"), NOISE)
    Image.fromarray(NOISE).save(tmp_path / "b.png", icc_profile=rgb_profile(SRGB, 1.0, b"Linear sRGB"))
    assert np.abs(np.asarray(load_image(tmp_path / "b.png")) - 255 * to_srgb(NOISE / 255)).max() < 4
