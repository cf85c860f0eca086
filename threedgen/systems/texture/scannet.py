"""The frames of one scene in ScanNet's layout (``threedgen.data.scannet``); colour pictures are not asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from threedgen.config import ConfigError
from threedgen.config.errors import keyed
from threedgen.data.scannet import ScanNetWalk
from threedgen.geometry.picture_file import image_shape

from .options import TextureConfig
from .shots import Shots, check_seen

EVERY = 20
"""Of a scan, 30 frames a second, each frame of this number is drawn (as the reference does)."""
BEST = "key_frame_0.6.txt"


def read_scannet(config: TextureConfig) -> tuple[Shots, list[str]]:
    """The frames of config.scannet, and notes on those that were left out. Raises ConfigError."""
    with keyed("scannet"):
        return _read(config, Path(str(config.scannet)).expanduser())


def _read(config: TextureConfig, folder: Path) -> tuple[Shots, list[str]]:
    """The same; what is wrong with a file has no key yet."""
    notes = list[str]()
    key_files = sorted((path.name for path in folder.glob("key_frame_*.txt")), key=lambda name: (name != BEST, name))
    key_file = key_files[0] if key_files else BEST
    walk = ScanNetWalk(folder, config.height, config.width, key_file, config.poses)
    numbers, chosen = walk.depth_frames(), set(walk.keys if key_files else ())
    if missing := sorted(chosen - set(numbers)):
        raise ConfigError(f"{folder / key_file} names frames without depth: {_some(missing)}")
    if lost := sorted(set(walk.pose_frames()) - set(numbers)):
        notes.append(f"{len(lost)} of {len(lost) + len(numbers)} frames have no depth and were left out: {_some(lost)}")
    wanted = sorted({*numbers[:: config.every or EVERY], *chosen})
    used = [n for n in wanted if walk.has_pose(n)]
    if lost := [n for n in wanted if n not in set(used)]:
        notes.append(f"{len(lost)} of {len(wanted)} frames have no pose and were left out: {_some(lost)}")
    if len(used) < 2:
        every = config.every or EVERY
        raise ConfigError(f"{folder}: {len(used)} frames have depth and a pose; give every below {every}")
    _require_shape(config, *image_shape(folder / "depth" / f"{used[0]}.png"))
    walk.check_pose_convention(used)
    depth, at = walk.geometry(used)
    names, keys = tuple(map(str, used)), tuple(k for k, n in enumerate(used) if n in chosen)
    check_seen(depth, names, "scannet", f"look into {folder / 'depth'}")
    return Shots(at, depth, _prompts(config, walk, used), names, keys if len(keys) > 1 else None), notes


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _require_shape(config: TextureConfig, height: int, width: int) -> None:
    if abs(width / height * config.height / config.width - 1) > 0.02:
        best = round(config.height * width / height)
        raise ConfigError(f"{config.width} does not fit to depth of {width} x {height} pixels; try {best}", "width")


def _prompts(config: TextureConfig, walk: ScanNetWalk, numbers: Sequence[int]) -> tuple[str, ...]:
    """Of each frame; none if they come from a file of their own. Raises ConfigError."""
    if config.prompts:
        return ()
    try:
        return tuple(config.texts() * len(numbers)) or tuple(map(walk.caption, numbers))
    except ConfigError as error:
        raise ConfigError(f"{error.problem}; give prompt=TEXT for all frames", "prompt") from None
