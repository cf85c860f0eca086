"""One scene's folder in ScanNet's layout, as far as drawing needs it; nothing else here knows of the layout.

depth/N.png (16 bits, millimetres)    pose/N.txt (camera-to-world, OpenCV axes)    intrinsic/intrinsic_depth.txt
prompt/N.txt (first line)             key_frame_*.txt (numbers of frames, if someone chose them)
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.picture_file import open_picture
from threedgen.geometry.poses import opencv_axes, world_to_camera
from threedgen.run.arrays import Array

from .options import TextureConfig, text_of
from .path import fitted, rigid
from .shots import Shots

EVERY = 20
"""Of a scan, 30 frames a second, each frame of this number is drawn (as the reference does)."""
BEST = "key_frame_0.6.txt"


def read_scannet(config: TextureConfig) -> tuple[Shots, list[str]]:
    """The frames of config.scannet, and notes on those that were left out. Raises ConfigError."""
    folder, notes = Path(str(config.scannet)).expanduser(), list[str]()
    numbers = sorted(int(path.stem) for path in (folder / "depth").glob("*.png") if path.stem.isdecimal())
    if len(numbers) < 2:
        raise ConfigError(f"{folder / 'depth'} should hold two or more files such as 0.png", "scannet")
    chosen = _key_numbers(folder, set(numbers))
    used = sorted(set(numbers[:: config.every or EVERY]) | set(chosen))
    poses = {n: _matrix(folder / "pose" / f"{n}.txt", missing_is_fine=True) for n in used}
    lost = [n for n in used if not np.isfinite(poses[n]).all()]
    if lost:
        notes.append(f"{len(lost)} of {len(used)} frames have no pose and were left out: {_some(lost)}")
    used = [n for n in used if n not in set(lost)]
    if len(used) < 2:
        raise ConfigError(
            f"{folder}: {len(used)} frames have a pose; give a smaller every (got {config.every})", "scannet"
        )
    c2w = rigid(torch.from_numpy(np.stack([poses[n] for n in used])), f"{folder / 'pose'} (of those used)", "scannet")
    c2w = opencv_axes(world_to_camera(c2w) if config.poses == "w2c" else c2w)
    at = Cameras(c2w.float(), _projection(folder, used[0], len(used), config), config.height, config.width)
    depth = torch.stack([_depth(folder / "depth" / f"{n}.png", config) for n in used])
    prompts = (
        tuple(config.prompt or _prompt(folder / "prompt" / f"{n}.txt") for n in used) if not config.prompts else ()
    )
    keys = tuple(k for k, n in enumerate(used) if n in set(chosen))
    return Shots(at, depth, prompts, tuple(map(str, used)), keys if len(keys) > 1 else None), notes


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _key_numbers(folder: Path, there: set[int]) -> list[int]:
    """Numbers of the key frames of a file, if there is one; those of frames that are not there raise ConfigError."""
    files = sorted(folder.glob("key_frame_*.txt"), key=lambda path: (path.name != BEST, path.name))
    if not files:
        return []
    numbers = [int(word) for word in re.findall(r"\d+", text_of(str(files[0]), "scannet"))]
    missing = [n for n in numbers if n not in there]
    if missing:
        raise ConfigError(f"{files[0]} names frames without depth: {_some(missing)}", "scannet")
    return numbers


def _matrix(path: Path, missing_is_fine: bool = False) -> Array:
    """4 x 4 numbers of a text file; not finite if that may be and there is none. Raises ConfigError."""
    if missing_is_fine and not path.is_file():
        return np.full((4, 4), np.nan)
    try:
        return np.array(text_of(str(path), "scannet").split(), np.float64).reshape(4, 4)
    except ValueError:
        raise ConfigError(f"{path} should hold 4 x 4 numbers", "scannet") from None


def _projection(folder: Path, first: int, count: int, config: TextureConfig) -> Projection:
    """The intrinsics of the depth camera, for frames of the config's size."""
    K = torch.from_numpy(_matrix(folder / "intrinsic" / "intrinsic_depth.txt")[None, :3, :3].copy())
    if not bool(K.isfinite().all()) or min(float(K[0, 0, 0]), float(K[0, 1, 1])) <= 0:
        raise ConfigError(f"{folder / 'intrinsic' / 'intrinsic_depth.txt'} has no focal lengths above 0", "scannet")
    K[:, :2, 2] += 0.5  # ScanNet's pixels are counted from the middle of the first one
    with open_picture(folder / "depth" / f"{first}.png", key="scannet") as image:
        width, height = image.size
    if abs(width / height * config.height / config.width - 1) > 0.02:
        best = round(config.height * width / height)
        raise ConfigError(f"{config.width} does not fit to depth of {width} x {height} pixels; try {best}", "width")
    return Projection(fitted(K, (height, width), (config.height, config.width)).float().expand(count, 3, 3))


def _depth(path: Path, config: TextureConfig) -> Tensor:
    """Metres (H,W) at the config's size, by the nearest pixels, 0 where unknown. Raises ConfigError."""
    with open_picture(path, key="scannet") as image:
        if not image.mode.startswith("I"):
            raise ConfigError(
                f"{path} should be a PNG of 16 bits, in millimetres (it is of the kind {image.mode})", "scannet"
            )
        try:
            small = image.resize((config.width, config.height), Image.Resampling.NEAREST)
        except Exception as error:  # of a damaged file, a dozen kinds
            raise ConfigError(f"{path} is damaged or cut off ({type(error).__name__})", "scannet") from None
    return torch.from_numpy(np.asarray(small, np.float32) / 1000)


def _prompt(path: Path) -> str:
    """The first line of a file that has one. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"there is no {path}; give prompt=TEXT for all frames", "prompt")
    text = text_of(str(path), "scannet").strip()
    return " ".join(text.splitlines()[0].split()) if text else ""
