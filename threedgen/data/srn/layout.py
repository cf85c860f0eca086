"""Where the files of the SRN archives are, and of whatever has their layout (no torch here).

SPLIT/SCENE/rgb/000000.png ...      pictures of one size; the archives: 128 x 128, white background
SPLIT/SCENE/pose/000000.txt ...     camera-to-world, 16 numbers in one line or four, OpenCV axes
SPLIT/SCENE/intrinsics.txt          see ``intrinsics.py``
"""

from __future__ import annotations

from pathlib import Path

from threedgen.config.errors import ConfigError
from threedgen.run.folder import existing_folder

SPLITS = tuple(f"{category}_{split}" for category in ("cars", "chairs") for split in ("train", "val", "test"))
"""The names of the archives."""
PICTURES = (".png", ".jpg", ".jpeg")


def split_folder(root: Path | str, split: str) -> Path:
    """The folder with the scenes of a split ("cars_test", ...): ROOT/SPLIT, a folder in it, as the archives of the
    chairs have it (chairs_train/chairs_2.0_train), ROOT/ANY/SPLIT, or ROOT itself. Raises ConfigError."""
    root = existing_folder(root, "path")
    places = [root / split, *_folders(root / split), *(folder / split for folder in _folders(root))]
    if root.name == split or root.name not in SPLITS:  # never another split's scenes
        places += [root, *(_folders(root) if root.name == split else [])]
    for place in places:
        if scenes(place):
            return place
    raise ConfigError(f"{root} has no folder {split} with scenes in it (SCENE/rgb, SCENE/pose, SCENE/intrinsics.txt)")


def scenes(folder: Path) -> list[Path]:
    """The scenes in a folder, by name; a folder is one if it has pose/ or rgb/."""
    return [path for path in _folders(folder) if (path / "pose").is_dir() or (path / "rgb").is_dir()]


def pictures(folder: Path, least: int) -> list[Path]:
    """The pictures of a scene by name, each of which has a pose; ``least`` or more. Raises ConfigError."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    for name in ("rgb", "pose"):
        if not (folder / name).is_dir():
            raise ConfigError(f"{folder / name} is missing: a scene has rgb/, pose/ and intrinsics.txt")
    rgb = {path.stem: path for path in sorted((folder / "rgb").iterdir()) if path.suffix.lower() in PICTURES}
    poses = {path.stem for path in (folder / "pose").glob("*.txt")}
    for name in sorted(rgb.keys() ^ poses):
        lost = folder / "pose" / f"{name}.txt" if name in rgb else folder / "rgb" / f"{name}.png"
        raise ConfigError(f"{lost} is missing: each picture in rgb/ has a pose in pose/, and each pose a picture")
    if len(rgb) < least:
        raise ConfigError(f"{folder} has {len(rgb)} view{'s' * (len(rgb) != 1)}, and at least {least} are needed")
    return [rgb[name] for name in sorted(rgb, key=lambda name: (len(name), name) if name.isdecimal() else (0, name))]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
