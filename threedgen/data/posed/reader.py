"""Readers of photos with poses: `transforms.json`, or a COLMAP model (`colmap.py`). Imports no torch."""

from collections import ChainMap
from collections.abc import Mapping
from math import pi, tan
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError, printable, short
from threedgen.config.plain_file import parse_json, read_text
from threedgen.data.files import MIN_FOCAL, is_finite
from threedgen.geometry.side_files import Listings
from threedgen.run.arrays import Array

from .colmap import read_colmap
from .files import Lens, PosedFiles, check_model, find_photo, stored_shape

COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
NUMBERS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h", *COEFFICIENTS)
MAX_FRAMES = 10_000  # largest number of photos in a transforms.json
NGP_SCALE, NGP_OFFSET = 0.33, (0.5, 0.5, 0.5)  # defaults of Instant-NGP


def read_transforms(path: Path) -> PosedFiles:
    """Read a transforms.json. Raises ConfigError if the file is unreadable or damaged, or lacks intrinsics.

    Photos that are not found are listed in `PosedFiles.missing`.
    """
    where, found, missing, listings = "", list[tuple[Path, Array, Lens]](), list[str](), Listings()
    folders, names = [path.parent, path.parent / "images"], dict[Path, str]()
    try:
        tree = parse_json(read_text(path))
        if not isinstance(tree, dict) or not isinstance(tree.get("frames"), list):
            raise ConfigError(f"{path} is not a transforms.json: it has no list of frames")
        if len(tree["frames"]) > MAX_FRAMES:
            raise ConfigError(f"{path} has more than {MAX_FRAMES:,} frames")
        for number, frame in enumerate(tree["frames"]):
            where = f"frames.{number}: "
            matrix, name = _matrix(frame["transform_matrix"]), str(frame["file_path"])
            if photo := find_photo(folders, name, listings, tails=True):
                if (other := names.setdefault(photo, name)) != name:
                    raise ConfigError(
                        f"{path} has two frames of the same photo, {photo}: {short(other)}, {short(name)}"
                    )
                found.append((photo, matrix, _lens(ChainMap(frame, tree), path, photo)))
            else:
                missing.append(name)
        where, box = "", None
        applied = _matrix(tree["applied_transform"]) if tree.get("applied_transform") else None
        if any(tree.get(name) for name in ("aabb_scale", "scale", "offset")):
            scale, side = float(tree.get("scale") or NGP_SCALE), float(tree.get("aabb_scale") or 1)
            box = (0.5 - np.array(tree.get("offset") or NGP_OFFSET, np.float64)) / scale, side / 2 / scale
    except KeyError as error:
        raise ConfigError(f"{path} is not a transforms.json: {where}{error} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a transforms.json: {where}{printable(error)}") from None
    photos, matrices, lenses = zip(*found, strict=True) if found else ((), (), ())
    stack = np.array(matrices).reshape(-1, 4, 4)
    masks = sum(bool(frame.get("mask_path")) for frame in tree["frames"])
    return PosedFiles(path, photos, stack, lenses, "c2w-opengl", tuple(missing), box=box, applied=applied, masks=masks)


def _lens(values: Mapping[str, str | float | None], path: Path, photo: Path) -> Lens:
    check_model(
        "OPENCV_FISHEYE" if values.get("is_fisheye") else str(values.get("camera_model") or "OPENCV").upper(), path
    )
    known = {name: float(value) for name in NUMBERS if (value := values.get(name)) is not None}
    h, w = (known["h"], known["w"]) if {"h", "w"} <= known.keys() else stored_shape(photo)
    focal = [known.get(name) for name in ("fl_x", "fl_y")]
    for axis, (name, side) in enumerate((("camera_angle_x", w), ("camera_angle_y", h))):
        if focal[axis] is None and name in known:
            if not 0 < known[name] < pi:
                raise ConfigError(f"{path}: the angle is not between 0 and pi: {name}={known[name]:g}. Give radians.")
            focal[axis] = side / 2 / tan(known[name] / 2)
    fx, fy = focal[0] or focal[1], focal[1] or focal[0]
    if fx is None or fy is None:
        raise ConfigError(f"{path} has no focal length for {photo.name}. Add fl_x in pixels or camera_angle_x")
    distortion = tuple(known.get(name, 0.0) for name in COEFFICIENTS)
    return Lens(fx, fy, known.get("cx", w / 2), known.get("cy", h / 2), round(h), round(w), distortion)


def _matrix(rows: object) -> Array:
    matrix = np.array(rows, np.float64)
    matrix = matrix.reshape(-1, 4) if matrix.shape in ((12,), (16,)) else matrix
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError("a matrix should have 3 or 4 rows of 4 numbers")
    return np.vstack([matrix, [0, 0, 0, 1]])[:4]


TRANSFORMS = ("transforms.json", "transforms_train.json")
COLMAP_FOLDERS = (".", "0", "sparse/[0-9]*", "sparse", "colmap/sparse/[0-9]*", "dense/sparse", "dense/0/sparse")


def posed_source(path: Path) -> Path | None:
    """Return the path of a JSON file with poses, or of the folder of a COLMAP model; None if `path` has neither.

    `path` is a JSON file or a folder. In a folder, the first of these is returned: transforms.json,
    transforms_train.json, a COLMAP model (images.bin or images.txt). Models are searched in the folder itself and in
    usual subfolders such as sparse/0. Of several models sparse/0, sparse/1, ..., the one with the largest images.bin or
    images.txt is returned, also if `path` is the folder sparse.
    """
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    for name in TRANSFORMS:
        if (path / name).is_file():
            return path / name
    for folder in COLMAP_FOLDERS:
        pattern = "[0-9]*" if folder == "0" and path.absolute().name == "sparse" else folder
        models = [file for file in path.glob(f"{pattern}/images.[bt][ix][nt]") if file.is_file()]
        if models:  # of several models, the one with the most photos
            return max(models, key=lambda file: file.stat().st_size).parent
    return None


def posed_scenes(path: Path) -> list[Path]:
    """Return [path] if the file or folder `path` has photos with poses (`posed_source`).

    Otherwise return all subfolders of `path` that have photos with poses, sorted by name.
    """
    if posed_source(path):
        return [path]
    return sorted(part for part in path.iterdir() if part.is_dir() and posed_source(part)) if path.is_dir() else []


def read_posed(path: Path) -> PosedFiles:
    """Read poses and intrinsics of the photos at `path`, from a transforms.json or a COLMAP model.

    `path` is the file, or a folder that contains the file or model. Raises ConfigError if a file is missing or damaged,
    if a value is not finite, or if there are no photos.
    """
    source = posed_source(path)
    if source is None and path.is_dir():
        raise ConfigError(f"{path} has no transforms.json and no COLMAP model (images.bin or images.txt)")
    source = source or path
    found = read_colmap(source) if source.is_dir() else read_transforms(source)
    if not found.files:
        raise ConfigError(found.missing_note if found.missing else f"{source} has no photos")
    numbers = np.array([[*lens[:6], *lens.distortion] for lens in found.lenses], np.float64)
    if not is_finite(found.matrices) or not is_finite(numbers):
        raise ConfigError(f"{source} has poses or intrinsics that are not finite")
    sides = numbers[:, 4:6]
    if (bad := (sides <= 0).any(1) | (numbers[:, :2] <= MIN_FOCAL * sides.max(1, keepdims=True)).any(1)).any():
        photo = found.files[int(bad.argmax())]
        raise ConfigError(f"{source} has a focal length or an image size that is too small, of {photo}")
    return found
