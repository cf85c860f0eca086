"""Readers of untrusted images and depth images, and extraction of the foreground of an object."""

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from pillow_heif import register_heif_opener

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import require_regular_file
from threedgen.run.arrays import Array

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF", "TGA", "DDS")
"""Allowed PIL formats. Some other formats, such as EPS, start external programs."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
"""File name endings of user images."""
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".rw2", ".orf", ".raf")
"""File name endings of raw photos. Some are TIFF files, from which PIL would read a small preview."""
MAX_PIXELS = 70_000_000  # limit against decompression bombs, above textures of 8192 x 8192
MAX_BYTES, MAX_READS, MAX_STRIPS = 1 << 29, 1_000_000, 200_000
"""Limits of an image file: its size in bytes, the number of read calls until it is decoded (about three per chunk of a
PNG or GIF) and of segments of a JPEG, and the number of strips or tiles of a TIFF."""
MAX_SCANNED, MAX_SLOW_PIXELS = 4_000_000_000, 5_000_000
"""Limits of decoding time: pixels times scans of a JPEG, and pixels of an image in a format that PIL decodes in Python
code, which takes up to four seconds per million pixels."""
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Marker before a segment of a JPEG (two bytes of length, then data), or FF D9 at its end. Not restart markers."""
MAX_16_BITS = 65535
MAX_SRGB_ERROR = 2  # maximum change, of 255, by the conversion from a colour space that counts as sRGB
WORKING_SIZE = 1024  # maximum longer side in pixels of the images in which `read_foreground` works
COLOUR_TOLERANCE, MIN_BORDER_FRACTION = 0.08, 0.95
"""A background is uniform if at least MIN_BORDER_FRACTION of the border pixels differ from their median colour by less
than COLOUR_TOLERANCE in each channel, for channels in [0, 1]."""
MIN_ISLAND_FRACTION = 1e-3
"""Smallest area of a foreground region, as a fraction of the image. Smaller regions are removed as dust."""
MIN_OPAQUE_ALPHA = 0.99  # an image is opaque if all alpha values are above this one


class _Reader(io.BufferedReader):
    """Reader of the raw bytes of an image file, for PIL.

    It raises ConfigError after a million calls of `read` (`MAX_READS`), because a file with more parts takes very long
    to decode. `name` and `key` are the file name and the config key that errors name.
    """

    def __init__(self, raw: io.RawIOBase | io.BytesIO, name: str, key: str) -> None:
        super().__init__(raw)
        self.title, self.key, self.reads = name, key, 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise self.refusal("has too many parts")
        return super().read(size)

    def refusal(self, problem: str) -> ConfigError:
        advice = f"Save it as PNG or JPEG of at most {MAX_PIXELS:,} pixels."
        return ConfigError(f"{self.title} {problem}. {advice}", self.key)

    def check_strips(self) -> None:
        """Raise ConfigError for a TIFF with too many strips or tiles, because PIL creates an object for each one."""
        head = self.read(16)
        order, large = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
        if head[:4] in (b"II*\0", b"MM\0*") or large:
            number, entry = struct.Struct(order + ("Q" if large else "H")), order + ("HHQ8x" if large else "HHI4x")
            self.seek(struct.unpack_from(order + ("Q" if large else "I"), head, 8 if large else 4)[0])
            entries = self.read(number.unpack(self.read(number.size))[0] * struct.calcsize(entry))
            counts = {tag: count for tag, _, count in struct.iter_unpack(entry, entries)}
            if max(counts.get(tag, 0) for tag in (273, 324)) > MAX_STRIPS:
                raise self.refusal(f"has more than {MAX_STRIPS:,} strips or tiles")
        self.seek(0)

    def check_effort(self, image: Image.Image) -> None:
        """Raise ConfigError if `image`, which was opened from this file, is too large or very slow to decode.

        The limits are 70 million pixels (`MAX_PIXELS`), 5 million pixels for an image that PIL decodes in Python code
        (`MAX_SLOW_PIXELS`), and 4 billion for the pixels of a JPEG times its number of scans (`MAX_SCANNED`).
        """
        pixels, position = image.width * image.height, self.tell()
        if pixels > MAX_PIXELS:
            raise self.refusal("is too large")
        if pixels > MAX_SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ())):
            raise self.refusal(f"is a large image in a kind of {image.format} that is slow to read")
        if image.format in ("JPEG", "MPO"):
            scans = self.count_scans()
            self.seek(position)
            if scans * pixels > MAX_SCANNED:
                raise self.refusal(f"has {scans:,} scans")

    def count_scans(self) -> int:
        """Return the number of scans of a JPEG, without those of further images or a video after it in the file."""
        self.seek(0)
        data, scans, start = self.read(), 0, 0
        for _ in range(MAX_READS):
            marker = _SEGMENT.search(data, start)
            if marker is None or marker[0] == b"\xff\xd9":
                return scans
            scans += marker[0] == b"\xff\xda"
            start = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
        raise self.refusal("has too many parts")


@contextmanager
def open_image(file: Path | bytes, name: str = "", key: str = "") -> Iterator[Image.Image]:
    """Context manager: open an image, given by its path or bytes, as a PIL image. Only the header is decoded.

    `name` is the file name in error messages; empty: the path. Raises ConfigError with the config key `key` if the file
    is missing, has an unknown format or more than 70 million pixels, is damaged, or takes very long to decode.
    """
    name = name or str(file)
    if isinstance(file, Path) and file.suffix.lower() in RAW_SUFFIXES:
        raise ConfigError(f"{name} is a raw photo, which cannot be read. Develop it and save it as JPEG.", key)
    register_heif_opener()
    with ExitStack() as stack:
        try:
            raw = (
                io.BytesIO(file)
                if isinstance(file, bytes)
                else open(require_regular_file(file, MAX_BYTES), "rb", buffering=0)
            )
            reader = stack.enter_context(_Reader(raw, name, key))
            reader.check_strips()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = stack.enter_context(Image.open(reader, formats=FORMATS))
            reader.check_effort(image)
        except ConfigError:
            raise
        except Image.DecompressionBombError:
            raise ConfigError(f"{name} is too large. Use at most {MAX_PIXELS:,} pixels.", key) from None
        except FileNotFoundError:
            raise ConfigError(f"there is no file {name}", key) from None
        except Exception as error:  # PIL raises many types for damaged headers
            raise ConfigError(
                f"{name} cannot be read as an image ({_reason(error)}). Save it as PNG or JPEG.", key
            ) from None
        yield image


def image_shape(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels, after EXIF rotation, from the header of an image.

    Raises ConfigError if the header cannot be read.
    """
    with open_image(path) as image:
        try:
            sideways = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        except Exception:  # damaged metadata: exif_transpose ignores it too
            sideways = False
        return image.size if sideways else (image.height, image.width)


def load_image(
    file: Path | bytes,
    name: str = "",
    key: str = "",
    max_side: int | None = None,
    upright: bool = True,
    profile: bool = True,
) -> Image.Image:
    """Load an image, from a path or its bytes, as 8-bit RGB, or as RGBA if it has transparency.

    Args:
        name: file name in error messages; empty: the path.
        key: config key that errors name.
        max_side: longer side in pixels to which larger images are reduced; None: keep the size.
        upright: apply the EXIF rotation.
        profile: convert colours to sRGB by the ICC profile.

    Raises:
        ConfigError: if the file is missing, damaged, too large, or has an unsupported format.
    """
    name = name or str(file)
    with open_image(file, name, key) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata
        try:
            if max_side is not None:
                image.draft("RGB", (max_side, max_side))
            image.load()
            image = ImageOps.exif_transpose(image) if upright else image
            image = _to_srgb(image) if profile and "icc_profile" in image.info else image
            if image.mode == "F" or image.mode == "I" and np.asarray(image).max() > MAX_16_BITS:
                raise ConfigError(f"{name} has 32-bit pixels. Save it with 8 or 16 bits per channel.", key)
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        except ConfigError:
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
            raise ConfigError(f"{name} is damaged, incomplete or unsupported ({_reason(error)})", key) from None
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    return image


def _to_srgb(image: Image.Image) -> Image.Image:
    # converts by the ICC profile, such as Display P3 of phones or CMYK; if the profile does not fit, nothing changes
    opaque = image.convert({"LA": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB"}.get(image.mode, image.mode))
    try:
        source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"])), ImageCms.createProfile("sRGB")
        to_srgb = ImageCms.buildTransform(source, srgb, opaque.mode, "RGB")
        if opaque.mode in ("L", "RGB"):
            levels = np.arange(256, dtype=np.uint8)[:, None, None] * np.vstack([np.ones(3), np.eye(3)]).astype(np.uint8)
            ramps = Image.fromarray(levels).convert(opaque.mode)  # grey, red, green, blue
            before, after = (np.asarray(each.convert("RGB"), np.int16) for each in (ramps, to_srgb.apply(ramps)))
            if np.abs(after - before).max() <= MAX_SRGB_ERROR:
                return image
        found = to_srgb.apply(opaque)
        if image.has_transparency_data:
            found.putalpha(image.convert("RGBA").getchannel("A"))
        return found
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "unknown format, or damaged"
    return getattr(error, "strerror", None) or type(error).__name__


def read_depth(path: Path, key: str = "") -> Array:
    """Read depth (H, W), float32 in metres, 0 = unknown, from a 16-bit PNG in millimetres.

    Raises ConfigError with the config key `key` if the file cannot be read or is not such a depth image.
    """
    with open_image(path, key=key) as image:
        try:
            image.load()
        except Exception:  # PIL raises many types for damaged files
            raise ConfigError(f"{path} is damaged or incomplete", key) from None
        millimetres = np.asarray(image)
    if millimetres.ndim != 2 or millimetres.dtype.itemsize < 2:
        actual = f"{millimetres.dtype} {millimetres.shape}"
        raise ConfigError(f"{path} is not a depth image: {actual}. Use a 16-bit one-channel PNG in millimetres.", key)
    return millimetres.astype(np.float32) * np.float32(1e-3)


# --- foreground by transparency or, in opaque images, by a uniform background at the image border


def read_foreground(path: str, opacity: Callable[[Array], Array] | None = None) -> Array:
    """Read an image; return sRGB and alpha (H, W, 4), float32 in [0, 1], where alpha is the foreground's opacity.

    Larger images are reduced to `WORKING_SIZE` (1024) pixels on the longer side. `opacity` is a function for images
    without transparency, from pixels (H, W, 3) in [0, 1] to the foreground's opacity (H, W). None: such an image needs
    a background of one colour, which becomes transparent. Raises ConfigError if the image cannot be read, if no
    background is found, or if all pixels are background.
    """
    image = load_image(Path(path).expanduser(), key="image", max_side=WORKING_SIZE).convert("RGBA")
    pixels = np.asarray(image, np.float32) / 255
    if opacity is not None and pixels[..., 3].min() > MIN_OPAQUE_ALPHA:
        pixels = np.dstack([pixels[..., :3], opacity(pixels[..., :3])]).astype(np.float32)
    return extract_foreground(pixels, path)


def extract_foreground(pixels: Array, name: str) -> Array:
    """Return RGBA `pixels` (H, W, 4) in [0, 1] with the opacity of the foreground in alpha.

    An image with transparency is returned unchanged. In an opaque image, alpha becomes 0 in the background, which has
    one colour and touches the image border, and 1 elsewhere. Raises ConfigError if all pixels are background, or if an
    opaque image has no uniform background; `name` is the file name in the message.
    """
    if pixels[..., 3].min() > MIN_OPAQUE_ALPHA:
        pixels = np.dstack([pixels[..., :3], foreground_mask(pixels[..., :3])]).astype(np.float32)
        if pixels[..., 3].min() > MIN_OPAQUE_ALPHA:
            raise ConfigError(
                f"{name} has no transparent or uniform background. Save it as PNG with transparency, use a photo with "
                "a background of one colour, or remove the background with matte=grabcut.",
                "image",
            )
    if not pixels[..., 3].any():
        raise ConfigError(f"{name} shows only background. Use an image with an object.", "image")
    return pixels


def foreground_mask(rgb: Array) -> Array:
    """Return the foreground (H, W) of an image (H, W, 3) in [0, 1]: 0 in the background, 1 elsewhere, float64.

    The background consists of the regions that have the border's colour and touch the image border, and of dust:
    connected foreground regions smaller than 1/1000 of the image (`MIN_ISLAND_FRACTION`). If the border has no uniform
    colour, all pixels are foreground.
    """
    from skimage.measure import label

    edge = max(1, min(rgb.shape[:2]) // 50)
    border = np.ones(rgb.shape[:2], bool)
    border[edge:-edge, edge:-edge] = False
    colour = np.median(rgb[border], axis=0)
    similar = np.abs(rgb - colour).max(-1) < COLOUR_TOLERANCE
    if similar[border].mean() < MIN_BORDER_FRACTION:
        return np.ones(rgb.shape[:2])
    regions = label(similar, connectivity=1)
    background = np.isin(regions, np.setdiff1d(regions[border], [0]))
    islands = label(~background, connectivity=1)
    large = np.bincount(islands.ravel()) >= MIN_ISLAND_FRACTION * background.size
    large[0] = False
    return large[islands].astype(np.float64)
