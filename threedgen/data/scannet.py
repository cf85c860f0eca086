"""Reads ScanNet (Dai et al. 2017), and whatever has the layout in which MVDiffusion reads it, as walks with depth.

SPLIT/SCENE/color/N.jpg, depth/N.png         depth in millimetres, 0 where it is unknown (``geometry.depth_file``)
SPLIT/SCENE/pose/N.txt, prompt/N.txt         camera-to-world, OpenCV axes; a caption in the first line
SPLIT/SCENE/intrinsic/intrinsic_depth.txt    K, 3x3 or 4x4, for the size of the depth pictures
SPLIT/SCENE/key_frame_0.6.txt                numbers of key frames, one in a line
SPLIT/SCENE/valid_frames.npy                 numbers of frames that can be used
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_text
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.depth_file import read_depth
from threedgen.geometry.overlap import require_poses, spread_pairs
from threedgen.geometry.picture_file import read_picture
from threedgen.geometry.poses import Poses, opencv_axes, world_to_camera
from threedgen.geometry.views import Views, resize
from threedgen.run.arrays import Array

from .files import first_line, read_frame_numbers, read_npy
from .options import ScanNetConfig, SceneSplit
from .scene_views import SceneViews
from .srn.intrinsics import read_numbers
from .srn.scene_files import read_pose
from .walks import WalkScenes, windows

CHECKED_SIZE = (36, 48)
"""(H,W) to which frames are reduced by which is told what poses are."""


class ScanNetWalk:
    """One scene (``walks.Walk``), its pictures of ``height`` x ``width`` pixels. ``poses``: what those of the files
    are."""

    def __init__(
        self, folder: Path, height: int, width: int, key_frames: str = "key_frame_0.6.txt", poses: Poses = "c2w"
    ) -> None:
        self.folder, self.height, self.width, self.key_file, self.poses = folder, height, width, key_frames, poses
        self.checked = False  # are the poses what they are taken for?

    @cached_property
    def frames(self) -> Sequence[int]:
        """Raises ConfigError."""
        path = self.folder / "valid_frames.npy"
        numbers = read_npy(path)
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise ConfigError(f"{path} should hold numbers of frames (N,) (got {numbers.dtype} {numbers.shape})")
        return sorted({int(number) for number in numbers})

    @cached_property
    def keys(self) -> Sequence[int]:
        """Raises ConfigError."""
        return read_frame_numbers(self.folder / self.key_file)

    def with_depth(self) -> list[int]:
        """Numbers of all frames that have a file of depth."""
        return self._numbers("depth/*.png")

    def with_pose(self) -> list[int]:
        """Numbers of all frames that have a file with a pose."""
        return self._numbers("pose/*.txt")

    def _numbers(self, files: str) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob(files) if path.stem.isdecimal())

    def has_pose(self, number: int) -> bool:
        """Is there one? Where tracking was lost, ScanNet has no file, or numbers that are not finite. ConfigError."""
        path = self._pose(number)
        return path.is_file() and not re.search("inf|nan", read_text(path).lower())

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Raises ConfigError naming a file that is missing or cannot be used, and for inverse poses."""
        self._require_poses_of_keys()
        depth, at = self.geometry(numbers)
        for number, known in zip(numbers, (depth > 0).flatten(1).any(1), strict=True):
            if not known:
                raise ConfigError(f"{self.folder / 'depth' / str(number)}.png has no depth anywhere: all pixels are 0")
        images = torch.cat([self._picture(number) for number in numbers])
        return SceneViews(Views(images, at), tuple(map(self.caption, numbers)), depth)

    def _require_poses_of_keys(self) -> None:
        if not self.checked and len(self.keys) > 1:
            self.require_poses(self.keys)
        self.checked = True

    def require_poses(self, numbers: Sequence[int]) -> None:
        """Raises ConfigError if the depth of the same points would be the same, from these frames, with inverse poses
        only."""
        some = [numbers[n] for n in spread_pairs(len(numbers))]

        def read(poses: Poses) -> tuple[torch.Tensor, Cameras]:
            return ScanNetWalk(self.folder, *CHECKED_SIZE, poses=poses).geometry(some)

        require_poses(read, self.poses, str(self.folder / "pose"))

    def geometry(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Cameras]:
        """Depth (N,H,W), metres, by the nearest pixels of the files, and cameras. Raises ConfigError."""
        depth, sizes = zip(*(self._depth(number) for number in numbers), strict=True)
        if len(set(sizes)) > 1:
            raise ConfigError(f"{self.folder / 'depth'} has pictures of several sizes: {sorted(set(sizes))}")
        poses = torch.from_numpy(np.stack([read_pose(self._pose(number)) for number in numbers])).double()
        c2w = opencv_axes(world_to_camera(poses) if self.poses == "w2c" else poses)
        K = torch.from_numpy(self._intrinsics()).repeat(len(numbers), 1, 1)
        at = Cameras(c2w.float(), Projection(K), *sizes[0])
        return torch.from_numpy(np.stack(depth)), at.with_size(self.height, self.width)

    def caption(self, number: int) -> str:
        """Raises ConfigError."""
        return first_line(self.folder / "prompt" / f"{number}.txt")

    def _picture(self, number: int) -> torch.Tensor:
        """(1,H,W,3) in [0, 1]"""
        found = [self.folder / "color" / f"{number}.{ending}" for ending in ("jpg", "jpeg", "png")]
        path = next((path for path in found if path.is_file()), None)
        if path is None:
            raise ConfigError(f"{found[0]} is missing")
        image = np.array(read_picture(path).convert("RGB"))
        return resize(torch.from_numpy(image)[None] / 255, self.height, self.width)

    def _depth(self, number: int) -> tuple[Array, tuple[int, int]]:
        """(H,W), and the size of the file's."""
        whole = read_depth(self.folder / "depth" / f"{number}.png")
        height, width = whole.shape
        rows = ((np.arange(self.height) + 0.5) * height / self.height).astype(int)
        columns = ((np.arange(self.width) + 0.5) * width / self.width).astype(int)
        return whole[rows][:, columns], (height, width)

    def _pose(self, number: int) -> Path:
        return self.folder / "pose" / f"{number}.txt"

    def _intrinsics(self) -> Array:
        """K (3,3), float32, for pixel centres at +0.5; those of the file are at whole numbers."""
        path = self.folder / "intrinsic" / "intrinsic_depth.txt"
        numbers = [x for row in read_numbers(path) for x in row]
        if len(numbers) not in (9, 16):
            raise ConfigError(f"{path} should hold a matrix of 3x3 or 4x4 numbers (got {len(numbers)})")
        side = int(len(numbers) ** 0.5)
        K = np.array(numbers).reshape(side, side)[:3, :3]
        if K[0, 0] <= 0 or K[1, 1] <= 0 or not np.allclose(K[2], [0, 0, 1], atol=1e-6):
            raise ConfigError(f"{path} is no matrix of intrinsics: rows 'fx s cx', '0 fy cy', '0 0 1'")
        K[:2, 2] += 0.5
        return K.astype(np.float32)


def scenes(path: str, split: SceneSplit) -> list[Path]:
    """The scenes of a split in PATH/SPLIT, or in PATH/scannet/SPLIT. Raises ConfigError."""
    root = Path(path).expanduser()
    for folder in (root / split, root / "scannet" / split, root):
        found = sorted(scene for scene in folder.glob("*") if (scene / "pose").is_dir())
        if found:
            return found
    raise ConfigError(f"{root} has no scenes in {split}/SCENE with color/, depth/, pose/", "path")


def walks(config: ScanNetConfig, split: SceneSplit) -> list[ScanNetWalk]:
    """Those with enough key frames; the first is looked into. Raises ConfigError."""
    o = config
    every = [ScanNetWalk(folder, o.height, o.width, o.key_frames, o.poses) for folder in scenes(o.path, split)]
    found = [walk for walk in every if len(walk.keys) >= o.least_keys]
    if not found:
        most = max(len(walk.keys) for walk in every)
        raise ConfigError(f"no scene in {o.path} has {o.least_keys} key frames; the most are {most}", "least_keys")
    found[0].require_poses(found[0].keys)
    return found


def build(config: ScanNetConfig, seed: int = 0, split: SceneSplit = "train") -> WalkScenes:
    """A source of views of a split: random ones for training, for test all sequences of key frames that do not overlap.

    Raises ConfigError.
    """
    o, found = config, walks(config, split)
    told = f"{Path(o.path).expanduser().resolve()}, {split}, {o.height} x {o.width} px, {o.key_frames}"
    told += f", {len(found)} scenes of {o.least_keys} keys"
    if split == "test":
        entries = windows(found, o.views)
        if not entries:
            raise ConfigError(f"no scene in {o.path} has {o.views} key frames", "views")
        return WalkScenes(found, o.views, told, entries=entries)
    return WalkScenes(found, o.views, told, seed, o.between, o.apart, o.count)
