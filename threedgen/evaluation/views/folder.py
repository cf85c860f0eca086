"""Reads views that somebody has drawn, and their cameras, from a folder with a folder for each scene.

SCENE/0.png, 1.png, ...   the views, all of one size; they may lie in SCENE/views/, as the task panorama leaves them
SCENE/cameras.json        beside them: K (3,3), or one for each view, and R (V,3,3) of views that turn in one place or
                          c2w (V,4,4) of others, in the conventions of ``threedgen.geometry.warp``
SCENE/depth/0.png, ...    metres times 1000 along the viewing axis, 16 bits, 0 where it is unknown: of views with c2w
SCENE/summary.json        prompts: a text for each view; only the CLIP score asks for them
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.data.scene_views import SceneViews
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.picture_file import read_picture
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views

MILLIMETRES = 1000
KEY = "views"


class DrawnScenes:
    """The scenes of a folder, a ``threedgen.data.scene_views.SceneSource``. Raises ConfigError, one sentence, for what
    is none: the cameras of all are read at once, pictures when they are asked for."""

    def __init__(self, folder: Path, depth: bool, captions: bool) -> None:
        """``depth``: the scenes that they are compared with have it; ``captions``: are wanted too."""
        self.folder, self.depth, self.captions = folder, depth, captions
        found = sorted(path for path in folder.iterdir() if path.is_dir() and _pictures(path).is_dir())
        self.scenes = [path for path in found if (_pictures(path) / "cameras.json").is_file()]
        if not self.scenes:
            raise ConfigError(f"{folder} has no scenes: folders with 0.png, 1.png, ... and cameras.json in them", KEY)
        self.cameras = [_read_cameras(_pictures(path) / "cameras.json", depth) for path in self.scenes]
        for path, (K, _) in zip(self.scenes, self.cameras, strict=True):
            if lost := [name for name in self._files(path, len(K)) if not name.is_file()]:
                raise ConfigError(f"{lost[0]} is missing", KEY)
        self.n_view = min(len(K) for K, _ in self.cameras)

    def __len__(self) -> int:
        return len(self.scenes)

    def describe(self) -> str:
        return str(self.folder)

    def scene(self, index: int) -> SceneViews:
        path, (K, c2w) = self.scenes[index], self.cameras[index]
        pictures = [np.asarray(read_picture(file, key=KEY).convert("RGB")) for file in self._views(path, len(K))]
        images = torch.from_numpy(_stacked(pictures, path)).float() / 255
        at = Cameras(opencv_axes(c2w), Projection(K), *images.shape[1:3])
        depth = self._read_depth(path, len(K)) if self.depth else None
        try:
            return SceneViews(Views(images, at), self._prompts(path, len(K)), depth)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}", KEY) from None

    def _views(self, path: Path, count: int) -> list[Path]:
        return [_pictures(path) / f"{number}.png" for number in range(count)]

    def _files(self, path: Path, count: int) -> list[Path]:
        depth = [path / "depth" / f"{number}.png" for number in range(count)] if self.depth else []
        return [*self._views(path, count), *depth]

    def _read_depth(self, path: Path, count: int) -> Tensor:
        found = [iio.imread(file) for file in self._files(path, count)[count:]]
        return torch.from_numpy(_stacked(found, path / "depth").astype(np.float32)) / MILLIMETRES

    def _prompts(self, path: Path, count: int) -> tuple[str, ...]:
        if not self.captions:
            return ("",) * count
        prompts = (read_json(path / "summary.json") or {}).get("prompts")
        if not isinstance(prompts, list) or len(prompts) != count:
            raise ConfigError(
                f"{path / 'summary.json'} does not have prompts for its {count} views, which the CLIP score is of; "
                "clip=null does without",
                KEY,
            )
        return tuple(map(str, prompts))


def _pictures(scene: Path) -> Path:
    """Where the views of a scene are."""
    return scene / "views" if (scene / "views").is_dir() else scene


def _read_cameras(path: Path, posed: bool) -> tuple[Tensor, Tensor]:
    """K (V,3,3) as our cameras have it, and poses (V,4,4) with OpenCV axes. Raises ConfigError."""
    tree: Any = read_json(path) or {}
    try:
        pose = torch.tensor(tree["c2w"] if posed or "R" not in tree else tree["R"], dtype=torch.float32)
        K = torch.tensor(tree["K"], dtype=torch.float32).expand(len(pose), 3, 3).clone()
        K[:, :2, 2] += 0.5
        if not K.isfinite().all() or not pose.isfinite().all():
            raise ValueError
        if pose.shape[1:] == (3, 3) and not posed:
            pose = F.pad(pose, (0, 1, 0, 1))
            pose[:, 3, 3] = 1
        if pose.shape[1:] != (4, 4):
            raise ValueError
    except (KeyError, TypeError, ValueError, RuntimeError):
        what = "c2w (V,4,4)" if posed else "R (V,3,3)"
        raise ConfigError(f"{path} should have K (3,3) or (V,3,3), and {what}, in numbers", KEY) from None
    return K, pose


def _stacked(pictures: list[np.ndarray], path: Path) -> np.ndarray:
    if len(sizes := {picture.shape for picture in pictures}) > 1:
        raise ConfigError(f"the pictures in {path} are not of one size: {sorted(sizes)}", KEY)
    return np.stack(pictures)
