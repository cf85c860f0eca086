"""Reader of COLMAP's sparse models, text and binary: cameras, images and points3D. Imports no torch.

Poses are world-to-camera with OpenCV axes, as a quaternion (w, x, y, z) and a translation. See
https://colmap.github.io/format.html.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes, read_text
from threedgen.run.arrays import Array

from .files import MODELS, Lens, PosedFiles, check_model, find_photo

MAX_BYTES = 4 << 30


class _Model(NamedTuple):
    """Rows of a model: camera (number, model, width, height, *parameters), image (name, camera, *pose), point (3,)."""

    cameras: list[tuple[Any, ...]]
    images: list[tuple[Any, ...]]
    points: list[Any]


def read_colmap(folder: Path) -> PosedFiles:
    """Read the model in `folder`. The photos are in images/, in `folder` or in one of the three folders above it.

    Raises ConfigError for a missing or damaged file, and for a camera model that is not supported.
    """
    try:
        model = _binary(folder) if (folder / "images.bin").is_file() else _text(folder)
        lenses = {number: _lens(folder, *row) for number, *row in model.cameras}
        base, found, missing = folder.resolve(), list[tuple[Path, Array, Lens]](), list[str]()
        roots = [root / "images" for root in (base, *list(base.parents)[:3])]
        for name, camera, *pose in sorted(model.images):
            if photo := find_photo(roots, name):
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
        raise ConfigError(f"{folder} is not a COLMAP model, or a file of it is damaged ({error})") from None
    photos, matrices, own = zip(*found, strict=True) if found else ((), (), ())
    points = np.array(model.points, np.float64).reshape(-1, 3) if model.points else None
    return PosedFiles(folder, photos, np.array(matrices), own, "w2c-opencv", tuple(missing), points)


def _lens(folder: Path, model: str, width: int, height: int, *parameters: float) -> Lens:
    check_model(model, folder)
    single = model.startswith("SIMPLE") or model == "RADIAL"  # one focal length for both axes
    fx, fy, cx, cy, *distortion = (parameters[0], *parameters) if single else parameters
    return Lens(fx, fy, cx, cy, height, width, tuple([*distortion, *[0.0] * 8][:8]))


class _Cursor:
    """Reads the little-endian numbers of a file one after the other."""

    def __init__(self, path: Path) -> None:
        self.data, self.position = read_bytes(path, MAX_BYTES), 0

    def read(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return found

    def skip(self, size: int) -> None:
        """Skip a number of entries, which is read first, of `size` bytes each."""
        self.read(f"{size * self.read('Q')[0]}x")

    def text(self) -> str:
        end = self.data.index(b"\0", self.position)
        return self.read(f"{end - self.position}sx")[0].decode("utf-8", "replace")


def _binary(folder: Path) -> _Model:
    rows = _Model([], [], [])
    cameras, images = _Cursor(folder / "cameras.bin"), _Cursor(folder / "images.bin")
    for _ in range(cameras.read("Q")[0]):
        number, kind, *size = cameras.read("IiQQ")
        name = list(MODELS)[kind]
        rows.cameras.append((number, name, *size, *cameras.read(f"{MODELS[name]}d")))
    for _ in range(images.read("Q")[0]):
        *pose, camera = images.read("I7dI")[1:]
        rows.images.append((images.text(), camera, *pose))
        images.skip(24)  # keypoints
    if (folder / "points3D.bin").is_file():
        points = _Cursor(folder / "points3D.bin")
        for _ in range(points.read("Q")[0]):
            rows.points.append(points.read("Q3d3Bd")[1:4])
            points.skip(8)  # images that show the point
    return rows


def _text(folder: Path) -> _Model:
    cameras, images, points = (_lines(folder / f"{name}.txt") for name in ("cameras", "images", "points3D"))
    rows = _Model([], [], [line.split()[1:4] for line in points if line.strip()])
    for number, model, width, height, *parameters in (line.split() for line in cameras if line.strip()):
        rows.cameras.append((int(number), model, int(width), int(height), *map(float, parameters)))
    for line in images[::2]:  # the lines between have the keypoints and may be empty
        words = line.split(maxsplit=9)
        rows.images.append((words[9].strip(), int(words[8]), *map(float, words[1:8])))
    return rows


def _lines(path: Path) -> list[str]:
    """Return the lines without comments. A model without points3D is valid."""
    if path.stem == "points3D" and not path.is_file():
        return []
    lines = read_text(path, max_bytes=MAX_BYTES).strip("\r\n").splitlines()
    return [line for line in lines if not line.startswith("#")]
