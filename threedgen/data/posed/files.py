"""Poses and intrinsics of photos as camera files state them; conversion of poses to camera-to-world. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.image_file import SUFFIXES, image_shape, open_image
from threedgen.geometry.side_files import Listings
from threedgen.run.arrays import Array

from .options import PoseConvention

MODELS = {
    "SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8, "OPENCV_FISHEYE": 8,
    "FULL_OPENCV": 12, "FOV": 5, "SIMPLE_RADIAL_FISHEYE": 4, "RADIAL_FISHEYE": 5, "THIN_PRISM_FISHEYE": 12,
}  # fmt: skip
"""COLMAP camera model -> number of parameters, in the order of the model numbers in binary files."""
SUPPORTED = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
MAX_ASPECT_ERROR = 0.02  # maximum relative difference between the aspect ratios of an image and of its intrinsics
MAX_NAME, MAX_PARTS = 4096, 12  # characters and parts of the path of a photo; longer ones lose their start
MAX_LISTED = 5  # maximum number of missing photos that a message names


class Lens(NamedTuple):
    """Intrinsics of a photo: focal lengths `fx`, `fy`, principal point `cx`, `cy` and lens distortion.

    All are in pixels of an image of `height` x `width`, except `distortion`, which has OpenCV's coefficients (k1, k2,
    p1, p2, k3, k4, k5, k6). The centre of the first pixel is (0.5, 0.5).
    """

    fx: float
    fy: float
    cx: float
    cy: float
    height: int
    width: int
    distortion: tuple[float, ...]


@dataclass(frozen=True)
class PosedFiles:
    """Content of a camera file: N photos with poses and intrinsics.

    Attributes:
        source: path of transforms.json, or folder of the COLMAP model.
        files: paths of the N photos.
        matrices: (N, 4, 4), float64, pose of each photo as in the file, not converted.
        lenses: focal lengths, principal point and distortion of each of the N photos.
        convention: how to read `matrices`, defined by the file format: "c2w-opengl" (camera-to-world, camera looks
            along -z) for transforms.json, "w2c-opencv" (world-to-camera, camera looks along +z) for COLMAP.
        missing: names of photos that `source` lists but that do not exist; they are not among the N photos.
        points: (P, 3), the P scene points of a COLMAP model, in the world of the poses; None: the source has no points.
        box: centre (3,) and half the side of the scene cube in an Instant-NGP file; None: the file has no cube.
        applied: (4, 4), transform that nerfstudio has applied to the original world; None: no transform.
        masks: number of frames of a nerfstudio file with a mask image, which is not read.
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
    masks: int = 0

    @property
    def notes(self) -> list[str]:
        """Remarks for the user: missing photos, and masks that are not read."""
        notes = [self.missing_note] if self.missing else []
        if self.masks:
            text = f"the masks of {self.masks} frames (mask_path) are not read. Save them as alpha"
            notes.append(f"{self.source}: {text}.")
        return notes

    @property
    def missing_note(self) -> str:
        names = ", ".join(short(name, 60) for name in self.missing[:MAX_LISTED])
        more = ", ..." if len(self.missing) > MAX_LISTED else ""
        return f"{self.source}: {len(self.missing)} photos are missing and left out: {names}{more}"


def find_photo(folders: Sequence[Path], name: str, listings: Listings, tails: bool = False) -> Path | None:
    """Return the path of the photo `name` in the first of `folders` that has it; None if no folder has it.

    `name` is a path relative to the folder. A "/" at its start and all ".." in it are ignored. The file may differ from
    it in upper and lower case and in the image suffix. Links in the folders, which users make for large datasets, are
    followed.

    Args:
        listings: finder of files by their name in any case; it reads the file list of each folder only once.
        tails: False: search only the whole `name`. True: `name` may be a path on another computer. So if no folder has
            a/b/1.png, search all folders for b/1.png, then for 1.png. Also, if `name` has a "..", as in
            "../images/1.png", search the parent of `folders[0]` too, each time before `folders`.
    """
    parts = Path(name[-MAX_NAME:].replace("\\", "/")).parts
    folders = [folders[0] / "..", *folders] if tails and ".." in parts else folders
    parts = tuple(part for part in parts if part not in ("/", "//", ".."))[-MAX_PARTS:]
    for start in range(len(parts) if tails else 1):
        *above, last = parts[start:] or ("",)
        stem = Path(last).stem if Path(last).suffix.lower() in SUFFIXES else last
        for folder in folders:
            for names, suffixes in (((*above, last), ("", *SUFFIXES)), ((*above, stem), SUFFIXES)):
                path = listings.match(folder, names, suffixes)
                if path is not None and path.is_file():
                    return path
    return None


def stored_shape(path: Path) -> tuple[int, int]:
    """Read (height, width) in pixels from an image header, without the rotation by EXIF.

    Raises ConfigError if the file is not a readable image.
    """
    with open_image(path) as image:
        return image.height, image.width


def is_rotated(path: Path, height: int, width: int) -> bool:
    """Return whether a photo has the aspect ratio of `height` x `width` only after its rotation by EXIF.

    Intrinsics are usually for the pixels as they are stored, but some programs rotate photos before they use them.
    """
    return not aspect_fits(stored_shape(path), height, width) and aspect_fits(image_shape(path), height, width)


def aspect_fits(shape: tuple[int, int], height: int, width: int) -> bool:
    """Return whether `shape`, (height, width), has the aspect ratio of `height` x `width`, up to 2 %."""
    return abs(shape[0] / shape[1] * width / height - 1) <= MAX_ASPECT_ERROR


def check_model(model: str, source: Path) -> None:
    """Raise ConfigError unless the COLMAP camera model `model` is supported. The error names the file `source`."""
    if model == "ORTHOGRAPHIC":
        advice = "Describe it as a distant camera: distance 100, fl_x = width in pixels * 100 / width in world units"
        raise ConfigError(f"{source} has a camera without perspective: {model}. {advice}.")
    if model not in SUPPORTED:
        advice = "Undistort the photos first, such as with `colmap image_undistorter`, or use"
        raise ConfigError(f"{source} has a camera model that cannot be read: {model}. {advice} {', '.join(SUPPORTED)}")


FLIP = np.diag([1.0, -1, -1, 1])  # OpenGL camera axes <-> OpenCV camera axes
SWAP = np.eye(4)[[0, 2, 1, 3]]  # y <-> z
MIN_CONDITION = 1e-3
"""Minimum of the smallest eigenvalue of the mean of I - a a^T over the unit viewing axes a of the cameras. Below it,
the axes are nearly parallel and have no common point."""
SAME_POSITION = 1e-8
"""Cameras are at one position if their distances from the mean position are at most this fraction of the largest
distance from the origin, which may be far away: 6 cm in geocentric coordinates."""
ROTATION_TOLERANCE = 1e-2


class Focus(NamedTuple):
    """Point (3,) that is nearest to the viewing axes of N cameras, and how well the cameras look at this point.

    `agreement` is the median cosine between a camera's viewing axis and its direction to the point. If the axes are
    parallel or all cameras are at one position, `agreement` is 0 and `point` has no meaning.
    """

    point: Array
    agreement: float


def to_c2w(matrices: Array, convention: PoseConvention) -> Array:
    """Convert pose matrices (N, 4, 4) to camera-to-world matrices with OpenGL axes.

    `convention` is that of `matrices`, such as "w2c-opencv": world-to-camera, OpenCV axes.
    """
    c2w: Array = np.linalg.inv(matrices) if convention.startswith("w2c") else matrices
    return c2w @ FLIP if convention.endswith("opencv") else c2w


def alternatives(matrices: Array) -> dict[str, Array]:
    """Convert pose matrices (N, 4, 4) of unknown convention to camera-to-world poses, OpenGL axes, in 8 ways.

    Some files have y and z swapped by mistake. So there are two variants of the given matrices, and each is read in the
    four conventions (camera-to-world or world-to-camera, OpenGL or OpenCV axes):

    - If no matrix has a reflection (negative determinant): the matrices as they are, and the matrices with y and z of
      the last column, the translation, swapped.
    - If all have a reflection: the matrices with y and z of the world swapped, and those with y and z of the camera
      swapped. Both swaps remove the reflection.

    Return a dict from name, such as "w2c-opencv with y and z of the world swapped", to poses (N, 4, 4). It is empty if
    only some of the matrices have a reflection.
    """
    translations = np.concatenate([matrices[..., :3], (SWAP @ matrices)[..., 3:]], axis=-1)
    found = {}
    for name in get_args(PoseConvention):
        rows, columns = ("world", "camera") if name.startswith("c2w") else ("camera", "world")
        swapped = {
            "": matrices,
            f" of the {rows} swapped": SWAP @ matrices,
            f" of the {columns} swapped": matrices @ SWAP,
        }
        for how, poses in (swapped | {" of the translation swapped": translations}).items():
            found[name + (how and f" with y and z{how}")] = to_c2w(poses, name)
    return {name: c2w for name, c2w in found.items() if (np.linalg.det(c2w[:, :3, :3]) > 0).all()}


def without_scale(matrices: Array, source: str) -> Array:
    """Return pose matrices (N, 4, 4) with the rotation part divided by its scale, which is equal for the three axes.

    Mirrored matrices, whose determinant is negative, are accepted if all are mirrored. Raises ConfigError, with the
    file name `source`, if only some are, or if a matrix is not rigid after the division.
    """
    determinants = np.linalg.det(matrices[:, :3, :3])
    scale = np.cbrt(np.abs(determinants))
    unit = matrices.copy()
    unit[:, :3, :3] /= np.maximum(scale, 1e-12)[:, None, None]
    R = unit[:, :3, :3]
    bad = np.abs(R.transpose(0, 2, 1) @ R - np.eye(3)).max((1, 2)) > ROTATION_TOLERANCE
    bad |= np.abs(matrices[:, 3] - [0, 0, 0, 1]).max(1) > 1e-6
    if bad.any():
        raise ConfigError(f"{source}: pose {int(bad.argmax())} is not a rotation and a translation. Remove its shear")
    mirrored = determinants < 0
    if mirrored.any() and not mirrored.all():
        raise ConfigError(f"{source}: pose {int(mirrored.argmax())} is mirrored, others are not. Correct its axes")
    return unit


def focus(c2w: Array) -> Focus:
    """Find the point nearest to the viewing axes of cameras. `c2w` (N, 4, 4): camera-to-world poses, OpenGL axes.

    The result has this point (3,) and `agreement`, the median cosine between a camera's viewing axis and its direction
    to the point. If the axes are parallel or all cameras are at one position, `agreement` is 0 and the point has no
    meaning.
    """
    position, axis = c2w[:, :3, 3], -c2w[:, :3, 2]
    projector = np.eye(3) - axis[:, :, None] * axis[:, None]
    point = np.linalg.lstsq(projector.sum(0), np.einsum("nij,nj->i", projector, position), rcond=1e-6)[0]
    offset = point - position
    distance = np.linalg.norm(offset, axis=1)
    cosine = (offset * axis).sum(1) / np.maximum(distance, 1e-12)
    spread = np.linalg.norm(position - position.mean(0), axis=1).max()
    apart = spread > SAME_POSITION * np.linalg.norm(position, axis=1).max()
    defined = apart and np.linalg.eigvalsh(projector.mean(0))[0] > MIN_CONDITION
    return Focus(point, float(np.median(cosine)) if defined else 0.0)
