"""Reader of views in image files, which an evaluation measures instead of sampling a prior. Any program can make them.

RUN/wanted.csv                 table of the views that the folder should have: file name, prompt, azimuth, elevation
                               and vertical field of view of the camera in degrees, distance to the origin
FOLDER/00003/0.png, 1.png ...  views of prompt 3, counted from 0; any image format, the middle square is used
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.data.assets.shards import on_grey
from threedgen.geometry.image_file import SUFFIXES, load_image
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import border_pixels
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic, writing
from threedgen.run.folder import user_path
from threedgen.run.metrics import csv_table

logger = logging.getLogger(__name__)

KEY, WANTED = "existing", "wanted.csv"
GREY, MAX_DIFFERENCE = 0.5, 0.15
"""Background of views with alpha, and maximum difference in [0, 1] of colours that count as equal to a background."""
MAX_SIZE = 512  # pixels; larger views are downscaled


def read_existing(
    folder: str, run: Path, prompts: Sequence[str], c2w: Tensor, fov: float | Array, part: str = "", grey: bool = True
) -> Array:
    """Read V views of each of N prompts from a folder. Return images (N, V, H, H, 3), uint8.

    The views of prompt 3 (counted from 0) are the files FOLDER/00003/0.png, 1.png, ..., in any image format. Only the
    middle square of an image is used, resized to H pixels: the shorter side of the first image, but at most 512
    (`MAX_SIZE`). Transparent pixels become grey. Before reading, writes RUN/wanted.csv, a table of the files that the
    folder should have. Raises ConfigError if an image is missing or damaged.

    Args:
        folder: folder of the views.
        run: run folder of the evaluation.
        prompts: N prompts.
        c2w: camera-to-world poses (N, V, 4, 4) of the wanted views, in a world with z up and azimuth 0 at +x; used only
            for the angles and distances in wanted.csv.
        fov: vertical field of view in radians, one for all views or (N, V); used only for wanted.csv.
        part: subfolder of both folders: views are read from FOLDER/PART, and RUN/PART/wanted.csv is written; "": none.
        grey: log a warning if the views have another background than grey.
    """
    place = user_path(folder, KEY) / part
    position = c2w[..., :3, 3].numpy()
    distance = np.linalg.norm(position, axis=-1)
    azimuth = np.rad2deg(np.arctan2(position[..., 1], position[..., 0]))
    elevation = np.rad2deg(np.arcsin(position[..., 2] / distance))
    degrees = np.broadcast_to(np.rad2deg(fov), distance.shape)
    names = [[f"{k:05d}/{view}" for view in range(c2w.shape[1])] for k in range(len(prompts))]
    rows = [
        {
            "file": f"{name}.png",
            "prompt": prompt,
            "azimuth": round(float(a) % 360, 3) % 360,  # 359.9996 is rounded to 360
            "elevation": round(float(e), 3),
            "fov": round(float(f), 3),
            "distance": round(float(d), 4),
        }
        for prompt, *views in zip(prompts, names, azimuth, elevation, degrees, distance, strict=True)
        for name, a, e, f, d in zip(*views, strict=True)
    ]
    with writing(run):
        (run / part).mkdir(exist_ok=True)
        write_atomic(run / part / WANTED, csv_table(rows))
    files = [[_file(place, name, run / part / WANTED) for name in views] for views in names]
    first = load_image(files[0][0], key=KEY)
    size = min(MAX_SIZE, *first.size)
    views = np.array([[to_uint8(on_grey(load_image(file, key=KEY), size)) for file in row] for row in files])
    colour = plain_background(views)
    if grey and colour is not None and np.abs(colour - GREY).max() > MAX_DIFFERENCE:
        shown = ", ".join(f"{value:.2f}" for value in colour)
        logger.warning(
            "%s: the views are not on grey (%.1f) but on (%s), which changes metrics. Save alpha.", place, GREY, shown
        )
    return views


def plain_background(views: Array) -> Array | None:
    """Return the colour (3,) in [0, 1] that most border pixels of views (N, V, H, H, 3), uint8, have; None: no such."""
    pixels = border_pixels(torch.from_numpy(views).flatten(0, 1)).flatten(0, 1).float() / 255
    colour = pixels.median(0).values
    is_plain = (pixels - colour).abs().amax(1).median() < MAX_DIFFERENCE
    return colour.numpy() if is_plain else None


def _file(folder: Path, name: str, wanted: Path) -> Path:
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise ConfigError(f"{folder / name}.png is missing. {wanted} lists the views that are needed", KEY)
