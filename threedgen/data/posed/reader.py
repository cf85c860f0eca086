"""Choice of the reader of photos with poses. Imports no torch."""

from pathlib import Path

import numpy as np

from threedgen.config.errors import ConfigError

from .colmap import read_colmap
from .files import PosedFiles
from .transforms import read_transforms

TRANSFORMS = ("transforms.json", "transforms_train.json")
COLMAP_FOLDERS = (".", "0", "sparse/0", "sparse", "colmap/sparse/0")


def posed_source(path: Path) -> Path | None:
    """Return the camera file (transforms.json) or the COLMAP model folder at `path`, a file or folder; None without
    one."""
    if path.is_file():
        return path if path.suffix.lower() == ".json" else None
    found = [path / name for name in TRANSFORMS if (path / name).is_file()]
    found += [path / name for name in COLMAP_FOLDERS if any((path / name).glob("images.[bt][ix][nt]"))]
    return found[0] if found else None


def posed_scenes(path: Path) -> list[Path]:
    """Return [path] if photos with poses are at `path`. Otherwise return all its subfolders that contain photos with
    poses, sorted by name."""
    if posed_source(path):
        return [path]
    return sorted(part for part in path.iterdir() if posed_source(part)) if path.is_dir() else []


def read_posed(path: Path) -> PosedFiles:
    """Read poses and intrinsics of the photos at `path`: a transforms.json, or a folder with one or with a COLMAP
    model. Raises ConfigError."""
    source = posed_source(path) or path
    found = read_colmap(source) if source.is_dir() else read_transforms(source)
    if not found.files:
        raise ConfigError(found.missing_note if found.missing else f"{source} has no photos")
    numbers = np.array([[*lens[:6], *lens.distortion] for lens in found.lenses])
    if not np.isfinite(found.matrices).all() or not np.isfinite(numbers).all():
        raise ConfigError(f"{source} has poses or intrinsics that are not finite")
    if (bad := (numbers[:, [0, 1, 4, 5]] <= 0).any(1)).any():
        photo = found.files[int(bad.argmax())]
        raise ConfigError(f"{source} has a focal length or an image size that is not above 0, of {photo}")
    return found
