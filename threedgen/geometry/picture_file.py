"""Safe reader for user images. It returns complete, upright images of limited size with 8 bits per channel."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import ordinary

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF")
"""Allowed PIL formats. Some other formats (EPS) start external programs."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
"""File name endings of user images."""
MAX_PIXELS = 64_000_000
"""Largest number of pixels. A small file can declare any size (decompression bomb)."""


def open_image(file: Path | bytes, name: str = "", key: str = "") -> Image.Image:
    """Open an image from a path or bytes and read only its header. ``load_image`` also reads the pixels.

    Raises ConfigError with ``name`` (default: the path) and the config ``key``.
    """
    name = name or str(file)
    register_heif_opener()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(ordinary(file) if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ConfigError(f"{name} is too large. Use at most {MAX_PIXELS:,} pixels.", key) from None
    except FileNotFoundError:
        raise ConfigError(f"there is no file {short(name)}", key) from None
    except UnidentifiedImageError:
        raise ConfigError(f"{name} cannot be read as an image. Save it as PNG or JPEG.", key) from None
    except Exception as error:  # PIL raises many types for damaged headers
        raise ConfigError(f"{name} cannot be read as an image ({_reason(error)})", key) from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ConfigError(f"{name} is too large: {width} x {height}. Use at most {MAX_PIXELS:,} pixels.", key)
    return image


def image_shape(path: Path) -> tuple[int, int]:
    """Read height and width in pixels from the file header, after rotation upright by EXIF. Raises ConfigError."""
    with open_image(path) as image:
        try:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        except Exception:  # damaged metadata: exif_transpose ignores it too
            sideways = False
        return image.size if sideways else (image.height, image.width)


def load_image(file: Path | bytes, name: str = "", key: str = "", max_side: int | None = None) -> Image.Image:
    """Load an image as RGB, or as RGBA if it has transparency. It is rotated upright according to its EXIF data.

    A larger image is reduced to ``max_side`` pixels on the longer side. Raises ConfigError with ``name`` and ``key``.
    """
    name = name or str(file)
    with open_image(file, name, key) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata
        try:
            if max_side is not None:
                image.draft("RGB", (max_side, max_side))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            elif image.mode == "F":
                raise ValueError("floating-point pixels")
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
            raise ConfigError(f"{name} is damaged, incomplete or unsupported ({_reason(error)})", key) from None
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
