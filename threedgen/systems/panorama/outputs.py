"""What is left of a panorama.

RUN/views/0.png ...      the views
RUN/cameras.json         where each looks (``geometry.cameras_file``), yaw 0 along +x
RUN/given/0.png ...      what was given of them, transparent elsewhere
RUN/panorama.png         equirectangular, all around, view 0 in the middle; poles that no view has seen are cut off, so
                         that all of it was painted: a row is as many degrees as a column, the horizon in the middle
RUN/panorama.mp4         a turn to the right;  RUN/panorama.html   a page on which one looks around
"""

from __future__ import annotations

from collections.abc import Iterator
from math import atan, degrees, pi, radians, tan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.images import png, to_uint8, write_mp4, write_png
from threedgen.geometry.panorama import covered_rows, equirectangular_views, intrinsics, rotation, stitch
from threedgen.run.disk import write_atomic
from threedgen.viewer.panorama import write_page

from .options import FilmConfig

PICTURE, FILM, PAGE = "panorama.png", "panorama.mp4", "panorama.html"
BATCH = 8
"""Frames of the film that are made at once."""


def write_given(folder: Path, views: Tensor, shown: Tensor) -> None:
    """Writes views (V,H,W,3) of which something is ``shown`` (V,H,W) as NUMBER.png, the rest transparent."""
    pixels = to_uint8(torch.cat([views, shown[..., None].to(views)], -1))
    for number in shown.flatten(1).any(1).nonzero()[:, 0].tolist():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{number}.png", png(pixels[number]))


def write_panorama(
    folder: Path, views: Tensor, K: Tensor, R: Tensor, height: int, film: FilmConfig, title: str
) -> float:
    """Writes picture, film and page of views (V,H,W,3); returns the degrees from the picture's lowest to its highest
    row. Raises OSError."""
    stitched, weights = stitch(views.permute(0, 3, 1, 2), K, R, height, 2 * height)
    panorama = stitched[:, covered_rows(weights)].clamp(0, 1)
    write_png(folder / PICTURE, panorama.permute(1, 2, 0))
    write_mp4(frames(panorama, film), folder / FILM, film.fps)
    write_page(folder / PAGE, folder / PICTURE, title)
    return degrees(2 * pi * panorama.shape[1] / panorama.shape[2])


def frames(panorama: Tensor, film: FilmConfig) -> Iterator[np.ndarray]:
    """The pictures (h,w,3), uint8, of a film that turns in an equirectangular picture (C,H,W).

    The angle of view is made smaller where it would show what is above or below the picture.
    """
    tallest = 0.98 * pi * panorama.shape[1] / panorama.shape[2]  # from the horizon up, radians
    widest = 2 * atan(tan(tallest) * film.width / film.height) if tallest < pi / 2 else pi
    K = intrinsics(min(radians(film.fov), widest), film.height, film.width)
    for first in range(0, film.frames, BATCH):
        turns = range(first, min(first + BATCH, film.frames))
        R = torch.stack([rotation(2 * pi * n / film.frames) for n in turns])
        yield from to_uint8(equirectangular_views(panorama, K, R, film.height, film.width).permute(0, 2, 3, 1))
