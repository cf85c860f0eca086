"""Photos of one subject as square training images, with the subject centred on neutral grey.

The alpha channel separates the subject from the background. If a photo has no transparent pixels, the background is the
region that touches the border of the photo and has the colour of the border. If there is no such region, the photo is
cropped to its middle square.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.image_file import SUFFIXES, WORKING_SIZE, foreground_mask, load_image
from threedgen.run.arrays import Array

logger = logging.getLogger(__name__)

MIN_PHOTOS, MAX_PHOTOS = 2, 100  # minimum and maximum number of photos
GREY = 0.5  # background of the returned images, in [0, 1]
SUBJECT_SHARE = 0.75  # longer side of the subject's bounding box, as a fraction of the side of the returned images


def find(paths: Sequence[str]) -> list[Path]:
    """Return the paths of the image files in `paths`, a list of image files and folders. Check each image.

    In a folder, unreadable images and other files are skipped with a warning. Raises ConfigError if there are fewer
    than 2 (MIN_PHOTOS) or more than 100 (MAX_PHOTOS) images, if a path does not exist, or if an image file that
    `paths` names directly is unreadable or too large.
    """
    found: list[Path] = []
    for text in paths:
        try:
            path = Path(text).expanduser()
            if path.is_dir():
                found += _images(path)
            else:
                path.stat()
                found.append(path)
        except (OSError, ValueError, RuntimeError):
            problem = f"there is no file or folder {short(text)}. Give a folder or a list, 'photos=[a.jpg, b.jpg]'"
            raise ConfigError(problem, "photos") from None
    if not found:
        where = f" in {', '.join(map(short, paths))}" if paths else ""
        raise ConfigError(f"no photos found{where}. Give 4 to 6 photos of one subject, photos=FOLDER.", "photos")
    if len(found) < MIN_PHOTOS:
        raise ConfigError(f"one photo is not enough: {found[0]}. Give 4 to 6 photos from different sides.", "photos")
    if len(found) > MAX_PHOTOS:
        raise ConfigError(f"too many photos: {len(found)}. Give at most {MAX_PHOTOS} of one subject.", "photos")
    for path in found:
        _load(path)
    return found


def _images(folder: Path) -> list[Path]:
    found, skipped = list[Path](), list[str]()
    for path in sorted(folder.iterdir()):
        if path.name.startswith("._"):  # metadata of macOS
            continue
        if path.name.startswith("."):
            skipped.append(f"{short(path.name)} (hidden file)")
        elif path.suffix.lower() not in SUFFIXES:
            skipped.append(f"{short(path.name)} ({'folder' if path.is_dir() else 'not an image'})")
        elif len(found) <= MAX_PHOTOS:
            try:
                _load(path)
                found.append(path)
            except ConfigError as error:
                skipped.append(error.problem)
    if skipped:
        logger.warning("%d files of %s skipped: %s", len(skipped), folder, ", ".join(skipped))
    return found


def read(files: Sequence[Path], size: int, opacity: Callable[[Array], Array] = foreground_mask) -> Array:
    """Read N photos as square images (N, size, size, 3), uint8, with the subject centred on neutral grey.

    The longer side of the subject's bounding box is 75 % (`SUBJECT_SHARE`) of the side of the image. Raises ConfigError
    if a photo is unreadable or has no subject.

    Args:
        files: paths of the photos.
        size: side of the returned images in pixels.
        opacity: function from the pixels (H, W, 3), float32 in [0, 1], of a photo to the mask (H, W) of its subject, in
            [0, 1]. If a photo has transparent pixels, its alpha channel is the mask instead. If the mask is 1
            everywhere, no background was found, and the photo is cropped to its middle square.
    """
    return np.stack([_centre_subject(_load(path), path, size, opacity) for path in files])


def _load(path: Path) -> Image.Image:
    return load_image(path, key="photos", max_side=WORKING_SIZE)


def _centre_subject(image: Image.Image, path: Path, size: int, opacity: Callable[[Array], Array]) -> Array:
    rgb = np.asarray(image.convert("RGB"), np.float32) / 255
    alpha: Array = np.ones(rgb.shape[:2])
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    if alpha.min() > 0.99:
        alpha = opacity(rgb)
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows):
        raise ConfigError(f"{path} has no subject, only background", "photos")
    height, width = alpha.shape
    if alpha.min() > 0.99:  # no subject separated: keep the middle of the photo
        centre, side = (height / 2, width / 2), float(min(height, width))
    else:
        centre = float(rows[0] + rows[-1] + 1) / 2, float(columns[0] + columns[-1] + 1) / 2
        side = (1 + float(max(rows[-1] - rows[0], columns[-1] - columns[0]))) / SUBJECT_SHARE
    on_grey = rgb * alpha[..., None] + GREY * (1 - alpha[..., None])
    top, left = centre[0] - side / 2, centre[1] - side / 2
    margin = int(np.ceil(max(0, -top, -left, top + side - height, left + side - width)))
    padded = np.pad(on_grey, ((margin, margin), (margin, margin), (0, 0)), constant_values=GREY)
    box = (left + margin, top + margin, left + margin + side, top + margin + side)
    square = Image.fromarray(np.round(padded * 255).clip(0, 255).astype(np.uint8))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS, box=box))
