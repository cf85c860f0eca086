"""Image files (PNG, depth PNG, MP4), contact sheets, sRGB conversion and PSNR.

Images are arrays or tensors (H, W, 3) in sRGB, either floats in [0, 1] or uint8.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from threedgen.run.arrays import Array
from threedgen.run.disk import Tree, make_folder, publish, temporary_path, write_atomic

SHEET_GAP = 2  # pixels between the images of a contact sheet and at its border
MAX_PSNR = 100.0  # dB, the PSNR of equal images
MAX_DEPTH = 65.535  # metres, the largest depth in a 16-bit PNG in millimetres
H264: Tree = {
    "codec": "libx264",
    "pixelformat": "yuv420p",
    "macro_block_size": 2,
    "output_params": ["-crf", "18", "-preset", "medium", "-threads", "1", "-movflags", "+faststart", "-f", "mp4"],
}
"""Encoder options of videos that all players support. With one thread, equal frames give equal bytes."""
_PAPER, _INK = 255, (20, 20, 20)


def to_uint8(images: Any) -> Array:
    """Convert images, arrays or tensors of any shape, uint8 or floats in [0, 1], to a uint8 array.

    Floats are clipped, and NaN becomes 0.
    """
    if hasattr(images, "detach"):
        images = images.detach().float().cpu().numpy()
    array = np.asarray(images)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"Unsupported image type: dtype={array.dtype}. Use uint8, or floats in [0, 1].")
    return np.round(np.clip(np.nan_to_num(array.astype(np.float32), nan=0.0), 0, 1) * 255).astype(np.uint8)


def to_linear(srgb: Array) -> Array:
    """Convert sRGB values (any shape) in [0, 1] to linear colour values in [0, 1] (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: Array) -> Array:
    """Convert linear colour values (any shape) in [0, 1] to sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def psnr(truth: Array, image: Array) -> float:
    """Return the PSNR in dB, at most `MAX_PSNR` (100), of two arrays of equal shape with values in [0, 1]."""
    return psnr_of_error(float(np.square(np.asarray(truth, np.float64) - image).mean()))


def psnr_of_error(error: float) -> float:
    """Return the PSNR in dB, at most `MAX_PSNR` (100), for the mean squared error of values in [0, 1]."""
    return min(MAX_PSNR, -10 * float(np.log10(max(error, 1e-30))))


def _rgb(image: Any) -> Array:
    array = to_uint8(image)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"Unsupported image shape: {array.shape}. Use (H, W, 3), (H, W, 1) or (H, W).")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def write_png(path: Path | str, image: Any) -> Path:
    """Write an image as an 8-bit RGB PNG. Return the path.

    The image is an array or tensor (H, W, 3), (H, W, 1) or (H, W), uint8 or floats in [0, 1].

    The folder is created and the file replaced atomically. Raises OSError if the file cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    write_atomic(path, png(_rgb(image)))
    return path


def write_sheets(folder: Path, sheets: Iterable[Array]) -> list[Path]:
    """Write contact sheets (H, W, 3) to sheet.png, sheet-2.png, ... in `folder`. Return their paths.

    Further sheets of an earlier run in the folder are removed. Raises OSError if a file cannot be written or removed.
    """
    names = ("sheet.png" if number == 1 else f"sheet-{number}.png" for number in count(1))
    paths = [write_png(folder / next(names), sheet) for sheet in sheets]
    while (outdated := folder / next(names)).is_file():
        outdated.unlink()
    return paths


def write_depth(path: Path, depth: Array) -> None:
    """Write depth (H, W) in metres as a 16-bit PNG in millimetres. Depths above 65.535 m become 0 = unknown."""
    make_folder(path.parent)
    write_atomic(path, png(np.round(np.where(depth <= MAX_DEPTH, depth, 0) / 1e-3).astype(np.uint16)))


def png(pixels: Array) -> bytes:
    """Encode uint8 or uint16 pixels (H, W), (H, W, 3) or (H, W, 4) as a PNG file."""
    return iio.imwrite("<bytes>", pixels, extension=".png")


def enlarge_small(images: Any) -> Array:
    """Enlarge images (N, H, W, 3) by the smallest integer factor that gives a width of at least 128 pixels.

    The images are uint8 or floats in [0, 1]; the result is uint8. Images that are wide enough keep their size.
    """
    factor = -(-128 // np.shape(images)[-2])
    return to_uint8(images).repeat(factor, axis=-3).repeat(factor, axis=-2)


def grid(images: Any, columns: int, labels: Sequence[str] | None = None) -> Array:
    """Arrange N >= 1 images row by row on a white sheet; return the sheet, uint8 (H', W', 3).

    The images are (H, W, 3), uint8 or floats in [0, 1], and may differ in size.

    `columns`: number of images per row. `labels`: N texts, each printed below its image in at most three lines; None:
    no labels.
    """
    cells = [_rgb(image) for image in images]
    height, width = max(cell.shape[0] for cell in cells), max(cell.shape[1] for cell in cells)
    strips = None if labels is None else _label_strips(labels, width)
    step_y, step_x = height + (0 if strips is None else len(strips[0])) + SHEET_GAP, width + SHEET_GAP
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * step_y + SHEET_GAP, columns * step_x + SHEET_GAP, 3), _PAPER, np.uint8)
    for n, cell in enumerate(cells):
        y, x = SHEET_GAP + n // columns * step_y, SHEET_GAP + n % columns * step_x
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
        if strips is not None:
            sheet[y + height : y + step_y - SHEET_GAP, x : x + width] = strips[n]
    return sheet


def _label_strips(labels: Sequence[str], width: int) -> list[Array]:
    font: Any = ImageFont.load_default(size=max(9, min(16, width // 10)))
    step = int(np.ceil(font.getbbox("Ág")[3])) + 3
    texts = [_wrap(label, width, font) for label in labels]
    strips = [Image.new("RGB", (width, step * max(map(len, texts))), (_PAPER,) * 3) for _ in texts]
    for strip, lines in zip(strips, texts, strict=True):
        for n, line in enumerate(lines):
            ImageDraw.Draw(strip).text((2, 1 + n * step), line, fill=_INK, font=font)
    return [np.asarray(strip) for strip in strips]


def _wrap(text: str, width: int, font: Any, max_lines: int = 3) -> list[str]:
    # text after `max_lines` lines is cut off
    lines = [""]
    for word in "".join(c if c.isprintable() else " " for c in text[: max_lines * width]).split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines[:max_lines]


def write_mp4(frames: Iterable[Any], path: Path | str, fps: int = 30) -> Path:
    """Write frames (H, W, 3) of equal size, uint8 or floats in [0, 1], as an H.264 video (MP4).

    `fps` is the number of frames per second. An odd height or width is padded by a pixel. Returns the path. Raises
    OSError if the file cannot be written.
    """
    path = Path(path).absolute()
    make_folder(path.parent)
    temporary, count = temporary_path(path), 0

    def even_frames() -> Iterator[Array]:
        nonlocal count
        for frame in map(_rgb, frames):
            count += 1
            height, width, _ = frame.shape  # yuv420p stores one colour per 2 x 2 pixels
            yield np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")

    try:
        stream: Any = even_frames()  # the plugin accepts iterators, but its annotations do not
        try:
            try:
                iio.imwrite(temporary, stream, plugin="FFMPEG", extension=".mp4", is_batch=True, fps=fps, **H264)
            except RuntimeError as error:  # no ffmpeg was found or could be started
                raise OSError(errno.EIO, f"the encoder did not start: {str(error).splitlines()[0]}") from error
            _check_frame_count(temporary, count)
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise OSError(f"{path} could not be written: {reason}") from error
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _check_frame_count(video: Path, count: int) -> None:
    # imageio does not report encoder failures at the end
    from imageio_ffmpeg import count_frames_and_secs  # type: ignore[import-untyped]  # not needed for images

    try:
        written, _ = count_frames_and_secs(str(video))
    except RuntimeError:
        written = 0
    if written != count:
        raise OSError(errno.EIO, f"the encoder wrote {written} of {count} frames")
