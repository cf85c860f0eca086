"""Reader of COLMAP's sparse models, text and binary: cameras, images and points3D. Imports no torch.

Poses are world-to-camera with OpenCV axes, as a quaternion (w, x, y, z) and a translation. See
https://colmap.github.io/format.html.
"""

import os
import re
import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from threedgen.config.errors import ConfigError, printable
from threedgen.config.plain_file import read_bytes, require_regular_file
from threedgen.geometry.side_files import Listings, decode
from threedgen.geometry.submesh import MAX_LINES
from threedgen.run.arrays import Array

from .files import MODELS, Lens, PosedFiles, check_model, find_photo

MAX_BYTES, MAX_POINTS = 1 << 30, 2_000_000
"""Largest size of a file in bytes, and largest number of scene points. Of a larger model, the first points are read."""
MAX_ROWS, MAX_LINE = 100_000, 1 << 26
"""Largest number of cameras or images, and largest size in bytes of a line. Longer lines (keypoints) are skipped."""
IMAGES = "[Ii][Mm][Aa][Gg][Ee][Ss]*"  # names of folders with photos
MAX_COORDINATE = 1e30  # points further away, or at NaN, are left out
NUMBER = re.compile(r"[-+]*\d[-+\d.eE]*")


class _Model(NamedTuple):
    cameras: dict[int, tuple[str, list[float]]]  # number: (camera model, [width, height, *parameters])
    images: list[tuple[str, int, list[float]]]  # (file name, number of the camera, pose)
    points: list[list[float]]  # (3,) each


def read_colmap(folder: Path) -> PosedFiles:
    """Read the COLMAP model in `folder`, binary or text: photo paths, poses, intrinsics and scene points.

    The model names each photo by a relative path. It is searched first in `folder`, then in the folder that contains
    `folder`, then in the next two above. In each of these four, it is searched in the subfolders images* (such as
    images_4), then in the subfolder input, then in the folder itself. If the path `folder` has links, the same places
    around their target follow. The names of photos that are not found are in `PosedFiles.missing`.

    Raises ConfigError if a file of the model is missing or damaged, or if a camera model is not supported.
    """
    try:
        model = _binary(folder) if (folder / "images.bin").is_file() else _text(folder)
        lenses = {number: _lens(folder, *row) for number, row in model.cameras.items()}
        found, missing, listings = list[tuple[Path, Array, Lens]](), list[str](), Listings()
        bases = dict.fromkeys((Path(os.path.abspath(folder)), folder.resolve()))
        above = [path for base in bases for path in (base, *list(base.parents)[:3])]
        roots = [path for root in above for path in (*sorted(root.glob(IMAGES)), root / "input", root)]
        for name, camera, pose in sorted(model.images):
            if photo := find_photo(roots, name, listings):
                matrix = np.eye(4)
                matrix[:3, :3] = Rotation.from_quat(np.roll(pose[:4], -1)).as_matrix()
                matrix[:3, 3] = pose[4:7]
                found.append((photo, matrix, lenses[camera]))
            else:
                missing.append(name)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise ConfigError(f"{folder} has no camera {error}, which an image needs") from None
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise ConfigError(f"{folder} is not a COLMAP model, or a file of it is damaged ({printable(error)})") from None
    photos, matrices, own = zip(*found, strict=True) if found else ((), (), ())
    points = np.array(model.points, np.float64).reshape(-1, 3)
    points = points[np.abs(points).max(1, initial=0) < MAX_COORDINATE]
    return PosedFiles(
        folder, photos, np.array(matrices), own, "w2c-opencv", tuple(missing), points if len(points) else None
    )


def _lens(folder: Path, model: str, numbers: list[float]) -> Lens:
    check_model(model, folder)
    width, height, *parameters = numbers
    single = model.startswith("SIMPLE") or model == "RADIAL"  # one focal length for both axes
    fx, fy, cx, cy, *distortion = (parameters[0], *parameters) if single else parameters
    return Lens(fx, fy, cx, cy, int(height), int(width), tuple([*distortion, *[0.0] * 8][:8]))


class _Cursor:
    def __init__(self, path: Path) -> None:
        self.data, self.position = read_bytes(path, MAX_BYTES), 0

    def read(self, layout: str) -> list[float]:
        found = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return list(found)

    def count(self) -> int:
        return int(self.read("Q")[0])

    def rows(self) -> range:
        _check_rows(count := self.count())
        return range(count)

    def skip(self, size: int) -> None:
        self.read(f"{size * self.count()}x")  # a number of entries, and the entries of `size` bytes each

    def text(self) -> str:
        start = self.position
        self.position = self.data.index(b"\0", start) + 1
        return decode(self.data[start : self.position - 1])


def _check_rows(count: int) -> None:
    if count > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS:,} cameras or images")


def _binary(folder: Path) -> _Model:
    rows = _Model({}, [], [])
    cameras, images = _Cursor(folder / "cameras.bin"), _Cursor(folder / "images.bin")
    for _ in cameras.rows():
        number, kind, *size = cameras.read("IiQQ")
        name = dict(enumerate(MODELS)).get(int(kind), f"model {kind}")
        check_model(name, folder)
        rows.cameras[int(number)] = name, size + cameras.read(f"{MODELS[name]}d")
    for _ in images.rows():
        *pose, camera = images.read("I7dI")[1:]
        rows.images.append((images.text(), int(camera), pose))
        images.skip(24)  # keypoints
    if (folder / "points3D.bin").is_file():
        points = _Cursor(folder / "points3D.bin")
        for _ in range(min(points.count(), MAX_POINTS)):
            rows.points.append(points.read("Q3d3Bd")[1:4])
            points.skip(8)  # images that show the point
    return rows


def _text(folder: Path) -> _Model:
    cameras, images, points = (_lines(folder / f"{name}.txt") for name in ("cameras", "images", "points3D"))
    rows = _Model({}, [], [_point(line) for line in islice(points, MAX_POINTS)])
    for count, line in enumerate(cameras, 1):
        _check_rows(count)
        number, model, *numbers = line.split(maxsplit=20)
        rows.cameras[int(number)] = model, list(map(float, numbers))
    for line in images:
        words = line.split(maxsplit=9)
        if len(words) == 10 and not NUMBER.fullmatch(words[9].rsplit(maxsplit=1)[-1]):
            # else keypoints: x, y, point, x, y, ...
            rows.images.append((words[9].strip(), int(words[8]), list(map(float, words[1:8]))))
            _check_rows(len(rows.images))
    return rows


def _point(line: str) -> list[float]:
    x, y, z = map(float, line.split(maxsplit=4)[1:4])
    return [x, y, z]


def _lines(path: Path) -> Iterator[str]:
    # lines with text, without comments
    if path.stem == "points3D" and not path.is_file():  # a model without points is valid
        return
    cut = False
    with open(require_regular_file(path, MAX_BYTES), "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b"")):
            if number > MAX_LINES:
                raise ConfigError(f"{path} has more than {MAX_LINES:,} lines")
            started, cut = cut, len(line) == MAX_LINE
            text = "" if started or cut else decode(line)
            if text.strip() and text[0] != "#":
                yield text
