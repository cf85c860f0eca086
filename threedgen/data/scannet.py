"""Reads ScanNet (Dai et al. 2017), and whatever has the layout in which MVDiffusion reads it, as walks with depth.

SPLIT/SCENE/color/N.jpg, depth/N.png         depth in millimetres, 0 where it is unknown
SPLIT/SCENE/pose/N.txt, prompt/N.txt         camera-to-world, OpenCV axes; a caption in the first line
SPLIT/SCENE/intrinsic/intrinsic_depth.txt    K, 3x3 or 4x4, for the size of the depth pictures
SPLIT/SCENE/key_frame_0.6.txt                numbers of key frames, one in a line
SPLIT/SCENE/valid_frames.npy                 numbers of frames that can be used
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.picture_file import open_picture, read_picture
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views, resize
from threedgen.run.arrays import Array

from .files import first_line, read_frame_numbers, read_npy
from .options import ScanNetConfig, SceneSplit
from .scene_views import SceneViews
from .srn.intrinsics import read_numbers
from .srn.reader import read_pose
from .walks import WalkScenes, agreement, windows

MILLIMETRE = 1e-3
CLEARLY, FAR = 0.1, 1.5
"""By how much, and how many times, inverse poses must agree better to be the true ones."""
CHECKED, CHECKED_SIZE = 12, (36, 48)
"""Frames, the first key frames, by which is told what poses are, and (H,W) to which they are reduced for that."""


class ScanNetWalk:
    """One scene (``walks.Walk``), its pictures of ``height`` x ``width`` pixels."""

    def __init__(self, folder: Path, height: int, width: int, key_frames: str = "key_frame_0.6.txt") -> None:
        self.folder, self.height, self.width, self.key_file = folder, height, width, key_frames

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

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Raises ConfigError naming a file that is missing or cannot be used, and for poses world-to-camera."""
        self.require_camera_to_world()
        depth, at = self._geometry(numbers)
        images = torch.cat([self._picture(number) for number in numbers])
        captions = tuple(first_line(self.folder / "prompt" / f"{number}.txt") for number in numbers)
        return SceneViews(Views(images, at), captions, depth)

    def require_camera_to_world(self) -> None:
        """Is the depth of the same points the same from all key frames, or would it be with inverse poses?"""
        if self._checked or len(self.keys) < 2:
            return
        given, inverse = agreement(*ScanNetWalk(self.folder, *CHECKED_SIZE)._geometry(self.keys[:CHECKED]))
        if inverse > given + CLEARLY and inverse > FAR * given:
            raise ConfigError(
                f"{self.folder / 'pose'} seems to hold poses world-to-camera: frames share {given:.0%} of their points "
                f"with them and {inverse:.0%} with their inverses; write camera-to-world ones"
            )
        self._checked = True

    _checked = False

    def _geometry(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Cameras]:
        """Depth (N,H,W) and cameras."""
        depth, size = zip(*(self._depth(number) for number in numbers), strict=True)
        if len(set(size)) > 1:
            raise ConfigError(f"{self.folder / 'depth'} has pictures of several sizes: {sorted(set(size))}")
        poses = np.stack([read_pose(self.folder / "pose" / f"{number}.txt") for number in numbers])
        K = torch.from_numpy(self._intrinsics()).repeat(len(numbers), 1, 1)
        at = Cameras(opencv_axes(torch.from_numpy(poses).double()).float(), Projection(K), *size[0])
        return torch.from_numpy(np.stack(depth)), at.with_size(self.height, self.width)

    def _picture(self, number: int) -> torch.Tensor:
        """(1,H,W,3) in [0, 1]"""
        image = np.array(read_picture(self._file("color", number, "jpg", "jpeg", "png")).convert("RGB"))
        return resize(torch.from_numpy(image)[None] / 255, self.height, self.width)

    def _depth(self, number: int) -> tuple[Array, tuple[int, int]]:
        """Metres (H,W), the nearest pixel of the file's, and the size of that."""
        path = self._file("depth", number, "png")
        with open_picture(path) as image:
            try:
                image.load()
                millimetres = np.asarray(image)
            except (OSError, SyntaxError, ValueError):
                raise ConfigError(f"{path} is damaged or cut off") from None
        if millimetres.ndim != 2 or millimetres.dtype.itemsize < 2:
            got = f"{millimetres.dtype} {millimetres.shape}"
            raise ConfigError(f"{path} should hold depth in millimetres, 16 bits and one channel (got {got})")
        if not (millimetres > 0).any():
            raise ConfigError(f"{path} has no depth anywhere: all pixels are 0")
        height, width = millimetres.shape
        rows = ((np.arange(self.height) + 0.5) * height / self.height).astype(int)
        columns = ((np.arange(self.width) + 0.5) * width / self.width).astype(int)
        return millimetres[rows][:, columns].astype(np.float32) * np.float32(MILLIMETRE), (height, width)

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

    def _file(self, part: str, number: int, *endings: str) -> Path:
        found = [self.folder / part / f"{number}.{ending}" for ending in endings]
        for path in found:
            if path.is_file():
                return path
        raise ConfigError(f"{found[0]} is missing")


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
    every = [ScanNetWalk(folder, o.height, o.width, o.key_frames) for folder in scenes(o.path, split)]
    found = [walk for walk in every if len(walk.keys) >= o.least_keys]
    if not found:
        most = max(len(walk.keys) for walk in every)
        raise ConfigError(f"no scene in {o.path} has {o.least_keys} key frames; the most are {most}", "least_keys")
    found[0].require_camera_to_world()
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
