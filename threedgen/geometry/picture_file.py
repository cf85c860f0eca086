"""The one reader of pictures that are not our own: whole, upright, 8 bits a channel, of bounded size."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import ordinary

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Of PIL's readers; others (EPS) would start programs."""
MOST_PIXELS = 64_000_000
"""A camera's largest pictures; a file of a few bytes can claim any size (a decompression bomb)."""


def open_picture(file: Path | bytes, name: str = "", key: str = "") -> Image.Image:
    """The header of a picture, from a file or its bytes. Raises ConfigError that has the name, and a key of the config.

    Its pixels are not read yet: ``read_picture`` does.
    """
    name = name or str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(ordinary(file) if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ConfigError(f"{name} is far too large: more than {MOST_PIXELS:,} pixels", key) from None
    except FileNotFoundError:
        raise ConfigError(f"there is no file {short(name)}", key) from None
    except UnidentifiedImageError:
        raise ConfigError(f"{name} cannot be read as a picture; save it as PNG or JPEG", key) from None
    except Exception as error:  # a dozen kinds for damaged headers
        raise ConfigError(f"{name} cannot be read as a picture ({_reason(error)})", key) from None
    width, height = image.size
    if width * height > MOST_PIXELS:
        image.close()
        raise ConfigError(f"{name} is far too large: {width} x {height}, more than {MOST_PIXELS:,} pixels", key)
    return image


def picture_shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture that is held upright, from the beginning of its file. Raises ConfigError."""
    with open_picture(path) as image:
        try:
            sideways = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        except Exception:  # as exif_transpose, which leaves a picture with damaged metadata as it is
            sideways = False
        return image.size if sideways else (image.height, image.width)


def read_picture(file: Path | bytes, name: str = "", key: str = "", most: int | None = None) -> Image.Image:
    """A picture as RGB or, if anything in it is transparent, RGBA; upright, as its camera says that it was held.

    ``most``: pixels of the longer side, to which a larger one is reduced. Raises ConfigError as ``open_picture``, also
    for one that is cut off.
    """
    name = name or str(file)
    with open_picture(file, name, key) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata
        try:
            if most is not None:
                image.draft("RGB", (most, most))
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            elif image.mode == "F":
                raise ValueError("floating point numbers")
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        except Exception as error:  # OSError, SyntaxError, struct.error, zlib.error, ...: they all mean this
            raise ConfigError(f"{name} is damaged, cut off or of an odd kind ({_reason(error)})", key) from None
    if most is not None:
        image.thumbnail((most, most))
    return image


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
