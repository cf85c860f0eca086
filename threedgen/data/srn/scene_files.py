"""Reader for the poses, intrinsics and image headers of a scene in the SRN layout, with checks. Imports no torch.

Intrinsics have two forms, both in pixels:

1. `intrinsics.txt` of the archives has the lines "f cx cy 0.", "0. 0. 0.", "1.", "height width", and optionally a fifth
   line with a flag. The flag 1 states that the poses are world-to-camera.
2. A 3x3 or 4x4 matrix, in `intrinsics.txt` for all views or in `intrinsics/NAME.txt` for one view, without image size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.data.files import MIN_FOCAL, read_numbers
from threedgen.geometry.image_file import image_shape
from threedgen.run.arrays import Array
from threedgen.run.folder import existing_folder

Split = Literal["cars_train", "cars_val", "cars_test", "chairs_train", "chairs_val", "chairs_test"]
"""Name of a split of the archives."""
SUFFIXES = (".png", ".jpg", ".jpeg")


def split_folder(root: Path | str, split: str) -> Path:
    """Find the folder in `root` that contains the scenes of a split.

    Returns the first of ROOT/SPLIT, ROOT/SPLIT/ANY, ROOT/ANY/SPLIT and ROOT that contains a scene, where ANY is any
    subfolder. Raises ConfigError if none of them contains a scene.
    """
    root = existing_folder(root, "path")
    candidates = [root / split, *_folders(root / split), *(folder / split for folder in _folders(root))]
    if root.name == split or root.name not in get_args(Split):  # ROOT is not the folder of another split
        candidates += [root, *(_folders(root) if root.name == split else [])]
    for folder in candidates:
        if scenes(folder):
            return folder
    raise ConfigError(f"{root} has no folder {split} with scenes in it (SCENE/rgb, SCENE/pose, SCENE/intrinsics.txt)")


def scenes(folder: Path) -> list[Path]:
    """Return the scene folders in `folder`, sorted by name. A subfolder is a scene if it contains pose/ or rgb/."""
    return [path for path in _folders(folder) if (path / "pose").is_dir() or (path / "rgb").is_dir()]


def image_files(folder: Path, min_views: int) -> list[Path]:
    """Return the image files of a scene folder, sorted by the number that is their name.

    Files whose name is no number come first. Hidden files, such as the `._` files of macOS, are ignored. Raises
    ConfigError if an image or a pose is missing, or if there are fewer than `min_views` images.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    for name in ("rgb", "pose"):
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is missing: a scene has rgb/, pose/ and intrinsics.txt")
    rgb = {path.stem: path for path in _files(folder / "rgb") if path.suffix.lower() in SUFFIXES}
    poses = {path.stem for path in _files(folder / "pose") if path.suffix == ".txt"}
    for name in sorted(rgb.keys() ^ poses):
        missing = folder / "pose" / f"{name}.txt" if name in rgb else folder / "rgb" / f"{name}.png"
        raise ConfigError(f"{missing} is missing: each image in rgb/ needs a pose in pose/, and each pose an image")
    if len(rgb) < min_views:
        raise ConfigError(f"{folder} has {len(rgb)} view{'s' * (len(rgb) != 1)}, and at least {min_views} are needed")
    return [rgb[name] for name in sorted(rgb, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


CONDITION_VIEW = 64  # file number of the condition view in the standard evaluation, which predicts the other 250 views
ROTATION_TOLERANCE, MIN_SPREAD = 1e-3, 1e-4
"""Maximum entry of |R^T R - I| for a rotation R, and minimum spread of the cameras. The spread is the largest distance
of a camera from the mean camera position, divided by the largest distance of a camera from the origin."""
FORMS = "should hold 'f cx cy 0', '0 0 0', '1', 'height width' in four lines, or a 3x3 matrix"
MAX_OFFSET = 0.2
"""Maximum distance of the principal point from the image centre along each axis, as a fraction of the image side, for
intrinsics in matrix form."""


@dataclass(frozen=True)
class SceneFiles:
    """Scene folder with N views, whose poses, intrinsics and image headers are read and checked.

    Attributes:
        folder: scene folder.
        files: N image files of `height` x `width` pixels.
        K: (N, 3, 3), intrinsics in pixels.
        poses: (N, 4, 4), camera-to-world, OpenCV axes.
    """

    folder: Path
    files: tuple[Path, ...]
    K: Array
    poses: Array
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.files)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def names(self) -> tuple[str, ...]:
        """File names of the N views, without suffix."""
        return tuple(file.stem for file in self.files)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers in the file names of the N views; 0, 1, ... if a name is not a number or two numbers are equal."""
        if all(name.isdecimal() for name in self.names) and len({*map(int, self.names)}) == len(self):
            return tuple(int(name) for name in self.names)
        return tuple(range(len(self)))


def read_scene(folder: Path | str, min_views: int = 2) -> SceneFiles:
    """Read and check the image headers, poses and intrinsics of a scene folder.

    Raises:
        ConfigError: there are fewer than `min_views` views, images without poses, poses without images, different
            image sizes, intrinsics for another image size, or poses that are not rigid; or all cameras are at one
            position.
    """
    folder = Path(folder)
    files = image_files(folder, min_views)
    height, width = _common_size(files)
    names = [file.stem for file in files]
    K, inverse = read_intrinsics(folder, names, height, width)
    poses = np.stack([read_pose(folder / "pose" / f"{name}.txt") for name in names])
    poses = np.linalg.inv(poses) if inverse else poses
    _check_spread(folder, poses)
    return SceneFiles(folder, tuple(files), K, poses, height, width)


def condition_and_targets(scene: SceneFiles, condition: int = CONDITION_VIEW) -> tuple[int, list[int]]:
    """Return the index of the condition view, and the indices of all other views, the targets.

    A network under evaluation gets the condition view and predicts the targets. `condition` is the number in the file
    name of the condition view, not its index. Raises ConfigError if no view has this number.
    """
    numbers = scene.numbers
    if condition not in numbers:
        available = f"numbers are from {min(numbers)} to {max(numbers)}"
        raise ConfigError(f"{scene.folder / 'rgb'} has no view of this number; {available}", "condition", condition)
    index = numbers.index(condition)
    return index, [k for k in range(len(scene)) if k != index]


def read_pose(path: Path) -> Array:
    """Read a pose file: a rigid transform (4, 4), camera-to-world, OpenCV axes (x right, y down, z forward).

    The file has the 16 numbers of the matrix, row by row; they are returned unchanged. In scenes whose intrinsics.txt
    has the flag 1, the matrix is world-to-camera, and the caller inverts it. Raises ConfigError if the file has another
    count of numbers, or if the matrix is not a rigid transform.
    """
    numbers = [x for row in read_numbers(path) for x in row]
    if len(numbers) != 16:
        raise ConfigError(f"{path} should hold the 16 numbers of a pose (got {len(numbers)})")
    pose = np.array(numbers).reshape(4, 4)
    R = pose[:3, :3]
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        raise ConfigError(f"{path} is not rigid: its last row should be 0 0 0 1 (got {pose[3].tolist()})")
    if np.abs(R.T @ R - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        sizes = f"lengths {np.linalg.norm(R, axis=0).round(4).tolist()}, determinant {np.linalg.det(R):.4g}"
        raise ConfigError(f"{path} is not rigid: its first three columns should be a rotation ({sizes})")
    return pose


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    sizes = []
    for path in files:
        sizes.append(image_shape(path))
        (height, width), (first, other) = sizes[-1], sizes[0]
        if (height, width) != (first, other):
            size = f"{path} has {height} x {width} pixels (height x width)"
            raise ConfigError(f"{size}, but {files[0].name} has {first} x {other}")
    return sizes[0]


def _check_spread(folder: Path, poses: Array) -> None:
    centres = poses[:, :3, 3]
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    if len(poses) > 1 and spread <= MIN_SPREAD * max(1e-9, np.linalg.norm(centres, axis=1).max()):
        remedy = "Invert world-to-camera poses, or add a fifth line with 1 to intrinsics.txt"
        raise ConfigError(f"{folder / 'pose'}: all cameras are at one position. {remedy}")


def read_intrinsics(folder: Path, names: Sequence[str], height: int, width: int) -> tuple[Array, bool]:
    """Read the intrinsics of the N views in a scene folder, from intrinsics.txt or, per view, intrinsics/NAME.txt.

    intrinsics.txt, if it exists, applies to all views. `names` are the N file names NAME of the views, without suffix.
    Raises ConfigError if a file is missing or invalid, or if K does not fit images of `height` x `width` pixels.

    Returns:
        K (N, 3, 3) in pixels, and a bool: True if the pose files are world-to-camera, False if camera-to-world. It is
        True only if intrinsics.txt has the optional fifth line, with a flag other than 0.
    """
    path, per_view = folder / "intrinsics.txt", folder / "intrinsics"
    if path.is_file() or not per_view.is_dir():
        K, inverse = _parse(path, read_numbers(path), height, width)
        return np.repeat(K[None], len(names), axis=0), inverse
    files = [per_view / f"{name}.txt" for name in names]
    return np.stack([_parse(file, read_numbers(file), height, width)[0] for file in files]), False


def _parse(path: Path, rows: list[list[float]], height: int, width: int) -> tuple[Array, bool]:
    if [len(row) for row in rows[:4]] == [4, 3, 1, 2] and sum(map(len, rows)) in (10, 11):
        return _archive(path, rows, height, width)
    K = intrinsic_matrix(path, rows, height, width, FORMS)
    if abs(K[0, 2] / width - 0.5) > MAX_OFFSET or abs(K[1, 2] / height - 0.5) > MAX_OFFSET:
        centre = f"({K[0, 2]:g}, {K[1, 2]:g}) is far from the centre of {height} x {width} pixels"
        raise ConfigError(f"{path} seems to be for another image size: its principal point {centre}")
    return K, False


def _archive(path: Path, rows: list[list[float]], height: int, width: int) -> tuple[Array, bool]:
    f, cx, cy, _ = rows[0]
    if [int(side) for side in rows[3]] != [height, width]:
        size = " x ".join(f"{side:g}" for side in rows[3])
        raise ConfigError(f"{path} states the image size {size} (height x width); the images have {height} x {width}")
    if f <= MIN_FOCAL * max(height, width) or not (0 < cx < width and 0 < cy < height):
        raise ConfigError(f"{path}: focal length {f:g} or centre ({cx:g}, {cy:g}) is outside {height} x {width} pixels")
    return np.array([[f, 0, cx], [0, f, cy], [0, 0, 1]]), len(rows) > 4 and bool(rows[4][0])


def intrinsic_matrix(
    path: Path, rows: list[list[float]], height: int, width: int, forms: str = "should hold a 3x3 or 4x4 matrix"
) -> Array:
    """Return the intrinsics K (3, 3) in pixels from the numbers of a file, without scaling them.

    Args:
        path: the file, for error messages.
        rows: numbers in the lines of the file. All together are 9, which form K, or 16, which form a (4, 4) matrix with
            K at the top left.
        height, width: image size in pixels, with which the focal lengths are checked.
        forms: supported forms of intrinsics, for the error message if the count of numbers is neither 9 nor 16.

    Raises:
        ConfigError: if the count of numbers is neither 9 nor 16, if the rows of the matrix are not (fx, s, cx),
            (0, fy, cy) and (0, 0, 1) with a skew |s| of at most fx, or if a focal length is at most 0.001 (`MIN_FOCAL`)
            of the longer side of an image.
    """
    numbers = [x for row in rows for x in row]
    if len(numbers) not in (9, 16):
        raise ConfigError(f"{path} {forms} (got {len(numbers)} numbers in {len(rows)} lines)")
    K = np.array(numbers).reshape([int(len(numbers) ** 0.5)] * 2)[:3, :3]
    skewed = abs(K[0, 1]) > K[0, 0] or abs(K[1, 0]) > 1e-6
    if skewed or min(K[0, 0], K[1, 1]) <= MIN_FOCAL * max(height, width) or not np.allclose(K[2], [0, 0, 1], atol=1e-6):
        raise ConfigError(f"{path} is no matrix of intrinsics: rows 'fx s cx', '0 fy cy', '0 0 1' (got {K.tolist()})")
    return K
