"""Photos with poses as their files describe them. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.picture_file import SUFFIXES, open_image
from threedgen.run.arrays import Array

from .options import PoseConvention

MODELS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
}  # fmt: skip
"""Number of parameters of COLMAP's camera models, in the order of their numbers in binary files."""
SUPPORTED = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
MAX_LISTED = 5
"""Maximum number of missing photos that a message names."""


class Lens(NamedTuple):
    """Intrinsics of a photo, in pixels of an image of `height` x `width`. The centre of the first pixel is (0.5, 0.5).
    `distortion` has OpenCV's coefficients (k1, k2, p1, p2, k3, k4, k5, k6)."""

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int
    distortion: tuple[float, ...]


@dataclass(frozen=True)
class PosedFiles:
    """N photos with poses, as a camera file describes them.

    Attributes:
        source: camera file (transforms.json), or folder of the COLMAP model.
        files: N image files.
        matrices: (N, 4, 4), float64, poses as in the file.
        lenses: N intrinsics.
        convention: convention of `matrices`, which the file format defines.
        missing: names of photos that `source` lists but that do not exist.
        points: (P, 3), scene points of a COLMAP model; None: unknown.
        box: centre (3,) and half the side of the scene's cube in Instant-NGP's file; None: unspecified.
        applied: (4, 4), transform that nerfstudio has applied to the original world; None: no transform.
    """

    source: Path
    files: tuple[Path, ...]
    matrices: Array
    lenses: tuple[Lens, ...]
    convention: PoseConvention
    missing: tuple[str, ...] = ()
    points: Array | None = None
    box: tuple[Array, float] | None = None
    applied: Array | None = None

    @property
    def missing_note(self) -> str:
        names = ", ".join(short(name, 60) for name in self.missing[:MAX_LISTED])
        more = ", ..." if len(self.missing) > MAX_LISTED else ""
        return f"{self.source}: {len(self.missing)} photos are missing and left out: {names}{more}"


def find_photo(folders: Sequence[Path], name: str) -> Path | None:
    """Return the path of the photo `name`, with or without suffix, in the first of `folders` that has it, or None."""
    for folder in folders:
        path = folder / name.replace("\\", "/")
        for candidate in (path, *(path.with_name(path.name + suffix) for suffix in SUFFIXES)):
            if candidate.is_file():
                return candidate
    return None


def stored_shape(path: Path) -> tuple[int, int]:
    """Read (height, width) in pixels from an image header, without the rotation by EXIF. Raises ConfigError."""
    with open_image(path) as image:
        return image.height, image.width


def check_model(model: str, source: Path) -> None:
    """Raise ConfigError unless the COLMAP camera model `model` is supported. The error names the file `source`."""
    if model not in SUPPORTED:
        advice = "Undistort the photos first, such as with `colmap image_undistorter`, or use"
        raise ConfigError(f"{source} has a camera model that cannot be read: {model}. {advice} {', '.join(SUPPORTED)}")
