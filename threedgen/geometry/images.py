"""Pictures and films on the disk: PNG, contact sheets, MP4; how bright a colour is, and how alike two pictures are.

Images are (H, W, 3), sRGB, floats in [0, 1] or uint8, arrays or tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs  # type: ignore[import-untyped]
from PIL import Image, ImageDraw, ImageFont

from threedgen.run.arrays import Array
from threedgen.run.disk import unfinished, write_atomic

GAP = 2
"""Pixels of paper around each picture of a contact sheet."""
CEILING = 100.0
"""PSNR of pictures that are equal, in dB."""
H264: dict[str, Any] = {
    "codec": "libx264",
    "pixelformat": "yuv420p",
    "macro_block_size": 2,
    "output_params": ["-crf", "18", "-preset", "medium", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"],
}
"""What every player shows; one thread, so that equal frames give equal bytes."""
_PAPER, _INK = 255, (20, 20, 20)


def to_uint8(images: Any) -> Array:
    """Images of any shape, array or tensor, as uint8; floats are clipped to [0, 1], NaN becomes 0."""
    if hasattr(images, "detach"):
        images = images.detach().float().cpu().numpy()
    array = np.asarray(images)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"images should be floats in [0, 1] or uint8 (got {array.dtype})")
    return np.round(np.clip(np.nan_to_num(array.astype(np.float32), nan=0.0), 0, 1) * 255).astype(np.uint8)


def to_linear(srgb: Array) -> Array:
    """sRGB in [0, 1] to linear light, which glTF's vertex colours are (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Array) -> Array:
    """The way back."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def psnr(truth: Array, image: Array) -> float:
    """-10 log10 of the mean squared error of two arrays of values in [0, 1], in dB, at most ``CEILING``."""
    error = float(np.square(np.asarray(truth, np.float64) - image).mean())
    return min(CEILING, -10 * float(np.log10(max(error, 1e-30))))


def _rgb(image: Any) -> Array:
    """One picture as uint8 (H, W, 3); grey ones (H, W) or (H, W, 1) get three equal channels."""
    array = to_uint8(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"an image should have the shape (H, W, 3), (H, W, 1) or (H, W) (got {array.shape})")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def write_png(path: Path | str, image: Any) -> Path:
    """Writes one picture, whole or not at all. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png(_rgb(image)))
    return path


def png(pixels: Array) -> bytes:
    """Encodes uint8 pixels (H, W), (H, W, 3) or (H, W, 4) as a PNG file."""
    encoded: bytes = iio.imwrite("<bytes>", pixels, extension=".png")
    return encoded


def readable(images: Any) -> Array:
    """(N, H, W, 3) enlarged whole times to a width of 128 or more, as uint8: room for what a sheet has below them."""
    factor = -(-128 // np.shape(images)[-2])
    return to_uint8(images).repeat(factor, axis=-3).repeat(factor, axis=-2)


def grid(images: Any, columns: int, labels: Sequence[str] | None = None) -> Array:
    """A contact sheet, uint8 (H', W', 3): pictures (N, H, W, 3) row by row, a label under each.

    Labels are broken into as many lines as the longest needs, three at most; what is left is cut off. Raises
    ValueError for no picture or a wrong number of labels.
    """
    pictures = [_rgb(image) for image in images]
    if not pictures or columns < 1:
        raise ValueError(f"a sheet needs pictures and columns (got {len(pictures)} and {columns})")
    if labels is not None:
        strips = _strips(labels, pictures[0].shape[1])
        pictures = [np.concatenate([picture, strip]) for picture, strip in zip(pictures, strips, strict=True)]
    height, width = pictures[0].shape[:2]
    columns = min(columns, len(pictures))
    rows, step_y, step_x = -(-len(pictures) // columns), height + GAP, width + GAP
    sheet = np.full((rows * step_y + GAP, columns * step_x + GAP, 3), _PAPER, np.uint8)
    for n, picture in enumerate(pictures):
        y, x = GAP + n // columns * step_y, GAP + n % columns * step_x
        sheet[y : y + height, x : x + width] = picture
    return sheet


def one_size(cells: Sequence[Array]) -> list[Array]:
    """uint8 pictures on white of the largest height and width."""
    height, width = max(c.shape[0] for c in cells), max(c.shape[1] for c in cells)
    room = [((0, height - c.shape[0]), (0, width - c.shape[1]), (0, 0)) for c in cells]
    return [np.pad(cell, sides, constant_values=_PAPER) for cell, sides in zip(cells, room, strict=True)]


def _strips(labels: Sequence[str], width: int) -> list[Array]:
    """Labels as pictures (h, width, 3) of one height."""
    font: Any = ImageFont.load_default(size=max(9, min(16, width // 10)))
    step = int(np.ceil(font.getbbox("Ág")[3])) + 3
    texts = [_lines(label, width, font) for label in labels]
    strips = [Image.new("RGB", (width, step * max(map(len, texts))), (_PAPER,) * 3) for _ in texts]
    for strip, lines in zip(strips, texts, strict=True):
        for n, line in enumerate(lines):
            ImageDraw.Draw(strip).text((2, 1 + n * step), line, fill=_INK, font=font)
    return [np.asarray(strip) for strip in strips]


def _lines(text: str, width: int, font: Any, most: int = 3) -> list[str]:
    """Words of a label in lines that fit ``width`` pixels, at least one and at most ``most``."""
    lines = [""]
    for word in "".join(c if c.isprintable() else " " for c in text[: most * width]).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:most]


def write_mp4(frames: Iterable[Any], path: Path | str, fps: int = 30) -> Path:
    """Encodes frames of one size, (H, W, 3), taken one by one, as a film that every player shows (H.264, yuv420p).

    An odd width or height is filled up by repeating the last column or row. Written whole or not at all. Raises
    OSError, and ValueError for no frames or frames of different sizes.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, shapes = unfinished(path), list[tuple[int, ...]]()

    def checked() -> Iterator[Array]:
        for frame in map(_rgb, frames):
            height, width, _ = frame.shape  # yuv420p has one colour for 2 x 2 pixels
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            shapes.append(even.shape)
            if even.shape != shapes[0]:
                raise ValueError(f"frames should have one size (got {even.shape} after {shapes[0]})")
            yield even

    try:
        stream: Any = checked()  # taken one by one, which the plugin does and its types do not say
        iio.imwrite(temporary, stream, plugin="FFMPEG", extension=".mp4", is_batch=True, fps=fps, **H264)
        if not shapes:
            raise ValueError("a film needs at least one frame")
        _require_frames(temporary, len(shapes))
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _require_frames(film: Path, count: int) -> None:
    """Raises OSError for a film without all its frames: imageio does not say if its encoder failed at the end."""
    try:
        found, _ = count_frames_and_secs(str(film))
    except RuntimeError:
        found = 0
    if found != count:
        raise OSError(f"the encoder wrote {found} of {count} frames")
