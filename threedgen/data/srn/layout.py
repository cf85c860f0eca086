"""File layout of the Scene Representation Networks (SRN) archives. Imports no torch.

SPLIT/SCENE/rgb/000000.png ...      images of one size; in the archives 128 x 128, white background
SPLIT/SCENE/pose/000000.txt ...     camera-to-world, 16 numbers in one line or four, OpenCV axes
SPLIT/SCENE/intrinsics.txt          focal length, principal point and image size, see `scene_files.py`
"""

from pathlib import Path

from threedgen.config.errors import ConfigError
from threedgen.run.folder import existing_folder

SPLITS = tuple(f"{category}_{split}" for category in ("cars", "chairs") for split in ("train", "val", "test"))
"""Names of the archive splits, such as "cars_train"."""
SUFFIXES = (".png", ".jpg", ".jpeg")


def split_folder(root: Path | str, split: str) -> Path:
    """Return the folder with the scenes of a split, which is ROOT/SPLIT, ROOT/SPLIT/ANY, ROOT/ANY/SPLIT or ROOT. Raises
    ConfigError if none of them contains a scene."""
    root = existing_folder(root, "path")
    candidates = [root / split, *_folders(root / split), *(folder / split for folder in _folders(root))]
    if root.name == split or root.name not in SPLITS:  # ROOT is not the folder of another split
        candidates += [root, *(_folders(root) if root.name == split else [])]
    for folder in candidates:
        if scenes(folder):
            return folder
    raise ConfigError(f"{root} has no folder {split} with scenes in it (SCENE/rgb, SCENE/pose, SCENE/intrinsics.txt)")


def scenes(folder: Path) -> list[Path]:
    """Return the scene folders in `folder`, sorted by name. A subfolder is a scene if it contains pose/ or rgb/."""
    return [path for path in _folders(folder) if (path / "pose").is_dir() or (path / "rgb").is_dir()]


def image_files(folder: Path, min_views: int) -> list[Path]:
    """Return the image files of a scene folder, sorted by number, or by name if a name is not a number. Raises
    ConfigError for missing images or poses, and for fewer than `min_views` images."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    for name in ("rgb", "pose"):
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is missing: a scene has rgb/, pose/ and intrinsics.txt")
    rgb = {path.stem: path for path in sorted((folder / "rgb").iterdir()) if path.suffix.lower() in SUFFIXES}
    poses = {path.stem for path in (folder / "pose").glob("*.txt")}
    for name in sorted(rgb.keys() ^ poses):
        missing = folder / "pose" / f"{name}.txt" if name in rgb else folder / "rgb" / f"{name}.png"
        raise ConfigError(f"{missing} is missing: each image in rgb/ needs a pose in pose/, and each pose an image")
    if len(rgb) < min_views:
        raise ConfigError(f"{folder} has {len(rgb)} view{'s' * (len(rgb) != 1)}, and at least {min_views} are needed")
    return [rgb[name] for name in sorted(rgb, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
