"""Reader for ScanNet (Dai et al. 2017), and for other data in the layout that MVDiffusion uses for ScanNet.

A scene is read as a walk: a camera path of numbered frames with depth. Key frames are a subset, chosen by overlap:

SPLIT/SCENE/color/N.jpg, depth/N.png         image of frame N (20 or 000020); depth in millimetres, 0 where unknown
SPLIT/SCENE/pose/N.txt, prompt/N.txt         camera-to-world pose, OpenCV axes; caption in the first line
SPLIT/SCENE/intrinsic/intrinsic_depth.txt    K, 3x3 or 4x4, in pixels of the depth images; first pixel centre (0, 0)
SPLIT/SCENE/key_frame_0.6.txt                numbers of the key frames, one per line
SPLIT/SCENE/valid_frames.npy                 numbers of the usable frames
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_text
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.image_file import load_image, read_depth
from threedgen.geometry.poses import Poses, opencv_axes, world_to_camera
from threedgen.geometry.views import Views, resize
from threedgen.geometry.warp import check_pose_convention, spread_pairs
from threedgen.run.arrays import Array

from .files import files_hash, first_line, read_frame_numbers, read_npy, read_numbers
from .options import ScanNetConfig, SceneSplit
from .scene_views import SceneViews, WalkScenes, windows
from .srn.scene_files import intrinsic_matrix, read_pose

KEY_FRAMES = "key_frame_0.6.txt"
MIN_KEYS = 10  # minimum number of key frames; scenes with fewer are skipped
POSE_CHECK_SIZE = (36, 48)  # size (H, W) of the depth maps that are read to check whether the poses are inverted


class ScanNetWalk:
    """Camera path (a `Walk`) through the scene in `folder`: numbered frames with image, depth, pose and caption.

    Images and depth are resized to `height` x `width` pixels. The method `views` reads frames.

    Args:
        key_file: name of the file in `folder` with the numbers of the key frames, a subset chosen by image overlap.
        poses: "c2w" if the pose files are camera-to-world matrices, "w2c" if they are world-to-camera matrices.
    """

    def __init__(self, folder: Path, height: int, width: int, key_file: str = KEY_FRAMES, poses: Poses = "c2w") -> None:
        self.folder, self.height, self.width, self.key_file, self.poses = folder, height, width, key_file, poses
        self.poses_checked = False

    @cached_property
    def frames(self) -> Sequence[int]:
        """Numbers of the frames that may be used as views, ascending, from valid_frames.npy in the scene folder.

        Raises ConfigError if the file is missing or invalid.
        """
        path = self.folder / "valid_frames.npy"
        numbers = read_npy(path)
        if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise ConfigError(f"{path} should hold frame numbers, integers (N,) (got {numbers.dtype} {numbers.shape})")
        return sorted({int(number) for number in numbers})

    @cached_property
    def keys(self) -> Sequence[int]:
        """Numbers of the key frames, ascending: a subset of the frames, chosen by the overlap of their images.

        Raises ConfigError if the file with the numbers is missing or invalid.
        """
        return read_frame_numbers(self.folder / self.key_file)

    def numbers(self, pattern: str) -> list[int]:
        """Return the numbers of the frames that have a file matching `pattern`, such as "depth/*.png", ascending."""
        return sorted(int(path.stem) for path in self.folder.glob(pattern) if path.stem.isdecimal())

    @cached_property
    def _names(self) -> dict[int, str]:
        # name of the files of a frame, which has leading zeros in some copies; "20" wins over "020"
        return {int(stem): stem for stem in sorted(p.stem for p in self.folder.glob("depth/*.png")) if stem.isdecimal()}

    def path(self, folder: str, number: int, suffix: str) -> Path:
        """Return the path of the file of frame `number` in a subfolder, such as "depth". The file may not exist."""
        return self.folder / folder / f"{self._names.get(number, str(number))}.{suffix}"

    def has_pose(self, number: int) -> bool:
        """Return whether the pose of frame `number` exists and is finite.

        ScanNet has infinite poses where tracking was lost. Raises ConfigError if the file exists but is unreadable.
        """
        path = self.path("pose", number, "txt")
        return path.is_file() and not re.search("inf|nan", read_text(path).lower())

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Read images, cameras, captions and depth of the frames `numbers`.

        Raises ConfigError if a file is missing or invalid, if a depth map is 0 everywhere, or if the poses seem to be
        inverted.
        """
        if not self.poses_checked and len(self.keys) > 1:
            self.check_pose_convention(self.keys)
        self.poses_checked = True
        depth, cameras = self.geometry(numbers)
        for number, has_depth in zip(numbers, (depth > 0).flatten(1).any(1), strict=True):
            if not has_depth:
                raise ConfigError(f"{self.path('depth', number, 'png')} has no depth: all pixels are 0")
        images = torch.cat([self._image(number) for number in numbers])
        return SceneViews(Views(images, cameras), tuple(map(self.caption, numbers)), depth)

    def check_pose_convention(self, numbers: Sequence[int]) -> None:
        """Raise ConfigError if the depth maps of the frames `numbers` are consistent only after inverting the poses."""
        subset = [numbers[n] for n in spread_pairs(len(numbers))]

        def read(poses: Poses) -> tuple[torch.Tensor, Cameras]:
            return ScanNetWalk(self.folder, *POSE_CHECK_SIZE, poses=poses).geometry(subset)

        check_pose_convention(read, self.poses, str(self.folder / "pose"))

    def geometry(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Cameras]:
        """Read depth and cameras of the frames `numbers` (N,). Raises ConfigError if a file is missing or invalid.

        Returns:
            Depth (N, H, W), metres along the viewing axis, 0 where unknown, resized by nearest pixels; and N cameras.
        """
        depth, sizes = zip(*(self._depth(number) for number in numbers), strict=True)
        if len(set(sizes)) > 1:
            raise ConfigError(f"{self.folder / 'depth'} has images of different sizes: {sorted(set(sizes))}")
        poses = torch.from_numpy(np.stack([read_pose(self.path("pose", number, "txt")) for number in numbers])).double()
        c2w = opencv_axes(world_to_camera(poses) if self.poses == "w2c" else poses)
        K = torch.from_numpy(self._intrinsics(*sizes[0])).repeat(len(numbers), 1, 1)
        cameras = Cameras(c2w.float(), Projection(K), *sizes[0])
        return torch.from_numpy(np.stack(depth)), cameras.with_size(self.height, self.width)

    def caption(self, number: int) -> str:
        return first_line(self.path("prompt", number, "txt"))

    def key_files(self) -> list[Path]:
        """Return the paths of the files of the key frames and of the files for all frames. Some may not exist."""
        parts = ("depth", "png"), ("pose", "txt"), ("prompt", "txt")
        files = [self.path(folder, number, suffix) for number in self.keys for folder, suffix in parts]
        files += [path for number in self.keys for path in self._image_files(number)]
        return [*files, self._intrinsics_file, self.folder / self.key_file, self.folder / "valid_frames.npy"]

    def _image_files(self, number: int) -> list[Path]:
        return [self.path("color", number, suffix) for suffix in ("jpg", "jpeg", "png")]

    @property
    def _intrinsics_file(self) -> Path:
        return self.folder / "intrinsic" / "intrinsic_depth.txt"

    def _image(self, number: int) -> torch.Tensor:
        candidates = self._image_files(number)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise ConfigError(f"{candidates[0]} is missing")
        image = np.array(load_image(path).convert("RGB"))
        return resize(torch.from_numpy(image)[None] / 255, self.height, self.width)

    def _depth(self, number: int) -> tuple[Array, tuple[int, int]]:
        full = read_depth(self.path("depth", number, "png"))
        height, width = full.shape
        rows = ((np.arange(self.height) + 0.5) * height / self.height).astype(int)
        columns = ((np.arange(self.width) + 0.5) * width / self.width).astype(int)
        return full[rows][:, columns], (height, width)

    def _intrinsics(self, height: int, width: int) -> Array:
        path = self._intrinsics_file
        K = intrinsic_matrix(path, read_numbers(path), height, width)
        K[:2, 2] += 0.5  # the centre of the first pixel is (0, 0) in the file, and (0.5, 0.5) here
        return K.astype(np.float32)


def scenes(path: str, split: SceneSplit) -> list[Path]:
    """Return the scene folders of a split, sorted by name.

    They are searched in PATH/SPLIT, PATH/scannet/SPLIT and PATH; the first folder with scenes is used. Raises
    ConfigError if none of the three contains a scene.
    """
    root = Path(path).expanduser()
    for folder in (root / split, root / "scannet" / split, root):
        found = sorted(scene for scene in folder.glob("*") if (scene / "pose").is_dir())
        if found:
            return found
    raise ConfigError(f"{root} has no scenes in {split}/SCENE with color/, depth/, pose/", "path")


def walks(config: ScanNetConfig, split: SceneSplit) -> list[ScanNetWalk]:
    """Return the camera paths (walks) of a split, without scenes that have fewer than 10 (MIN_KEYS) key frames.

    Key frames are the frames that the dataset selects by the overlap of their images.
    Raises ConfigError if no scene is left, or if the poses of the first scene seem to be inverted.
    """
    o = config
    every = [ScanNetWalk(folder, o.height, o.width, poses=o.poses) for folder in scenes(o.path, split)]
    found = [walk for walk in every if len(walk.keys) >= MIN_KEYS]
    if not found:
        most = max(len(walk.keys) for walk in every)
        raise ConfigError(f"no scene in {o.path} has {MIN_KEYS} key frames; the most are {most}", "path")
    found[0].check_pose_convention(found[0].keys)
    return found


def build(config: ScanNetConfig, seed: int = 0, split: SceneSplit = "train") -> WalkScenes:
    """Build the source of the training examples of a split; an example has `config.views` views of one scene.

    Key frames are the frames that the dataset selects by the overlap of their images. In the split "train" an example
    is a random series of consecutive key frames or, with the probability `config.between`, two key frames and random
    frames between them. In the split "test" the key frames of each scene are divided into examples, in order; key
    frames that remain at the end are not used. Raises ConfigError if a file is missing or invalid, or if no scene has
    enough key frames.
    """
    o, found = config, walks(config, split)
    description = f"{Path(o.path).expanduser().resolve()}, {split}, {o.height} x {o.width} px, {KEY_FRAMES}"
    # key frames only: a scan has thousands of frames
    files = files_hash(file for walk in found for file in walk.key_files())
    description += f", {len(found)} scenes of {MIN_KEYS} keys, {files}"
    if split == "test":
        entries = windows(found, o.views)
        if not entries:
            raise ConfigError(f"no scene in {o.path} has {o.views} key frames. Lower views.", "views")
        return WalkScenes(found, o.views, description, entries=entries)
    return WalkScenes(found, o.views, description, seed, o.between, o.count)
