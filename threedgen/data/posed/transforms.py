"""Reader of `transforms.json`, the camera file of nerfstudio and Instant-NGP. Imports no torch.

Intrinsics are for the whole file or for a frame, in pixels: fl_x, fl_y, cx, cy, w, h, or camera_angle_x in radians.
Poses are camera-to-world with OpenGL axes. Instant-NGP maps a position p to scale * p + offset. Its scene is the
cube of side aabb_scale around (0.5, 0.5, 0.5).
"""

import re
from collections.abc import Mapping
from math import tan
from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_text
from threedgen.run.arrays import Array

from .files import Lens, PosedFiles, check_model, find_photo, stored_shape

COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")
NUMBERS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h", *COEFFICIENTS)
NGP_SCALE, NGP_OFFSET = 0.33, (0.5, 0.5, 0.5)  # defaults of Instant-NGP


def read_transforms(path: Path) -> PosedFiles:
    """Read a transforms.json. Raises ConfigError for a damaged file, and if intrinsics are missing."""
    where, found, missing = "", list[tuple[Path, Array, Lens]](), list[str]()
    try:
        tree = parse_json(read_text(path))
        for number, frame in enumerate(tree["frames"]):
            where = f"frames.{number}: "
            matrix, name = _matrix(frame["transform_matrix"]), str(frame["file_path"])
            folders, last = [path.parent, path.parent / "images"], re.split(r"[\\/]", name)[-1]
            if photo := find_photo(folders[:1], name) or find_photo(folders, last):  # paths of another machine
                found.append((photo, matrix, _lens(tree | frame, path, photo)))
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
        raise ConfigError(f"{path} is not a transforms.json: {where}{error}") from None
    photos, matrices, lenses = zip(*found, strict=True) if found else ((), (), ())
    stack = np.array(matrices).reshape(-1, 4, 4)
    return PosedFiles(path, photos, stack, lenses, "c2w-opengl", tuple(missing), box=box, applied=applied)


def _lens(values: Mapping[str, str | float | None], path: Path, photo: Path) -> Lens:
    check_model("OPENCV_FISHEYE" if values.get("is_fisheye") else str(values.get("camera_model", "OPENCV")), path)
    known = {name: float(value) for name in NUMBERS if (value := values.get(name)) is not None}
    h, w = (known["h"], known["w"]) if {"h", "w"} <= known.keys() else stored_shape(photo)
    focal = [known.get(name) for name in ("fl_x", "fl_y")]
    for axis, (name, side) in enumerate((("camera_angle_x", w), ("camera_angle_y", h))):
        if focal[axis] is None and name in known:
            focal[axis] = side / 2 / tan(known[name] / 2)
    fx, fy = focal[0] or focal[1], focal[1] or focal[0]
    if fx is None or fy is None:
        raise ConfigError(f"{path} has no focal length for {photo.name}. Add fl_x in pixels or camera_angle_x")
    distortion = tuple(known.get(name, 0.0) for name in COEFFICIENTS)
    return Lens(fx, fy, known.get("cx", w / 2), known.get("cy", h / 2), round(h), round(w), distortion)


def _matrix(rows: object) -> Array:
    matrix = np.array(rows, np.float64)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise ValueError("a matrix should have 3 or 4 rows of 4 numbers")
    return np.vstack([matrix, [0, 0, 0, 1]])[:4]
