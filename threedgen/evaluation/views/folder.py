"""Reads views that somebody has drawn: a folder with a folder for each scene, such as runs of the tasks panorama and
texture, or one such scene.

SCENE/cameras.json         see ``threedgen.geometry.cameras_file``; of its prompts only the CLIP score asks
SCENE/0.png, 1.png, ...    the views, if cameras.json does not name their files
SCENE/depth/NAME.png       of posed views NAME.png: see ``threedgen.geometry.depth_file``
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.data.scene_views import SceneViews
from threedgen.geometry.cameras_file import CAMERAS_FILE, CamerasFile, read_cameras
from threedgen.geometry.depth_file import read_depth
from threedgen.geometry.picture_file import load_image
from threedgen.geometry.views import Views

KEY = "views"
STILL = 1e-3
"""Share of the farthest distance from the origin by which cameras of a panorama may be apart."""


class DrawnScenes:
    """The scenes of a folder, a ``threedgen.data.scene_views.SceneSource``. Raises ConfigError, one sentence, for what
    is none: the cameras of all are read at once, pictures when they are asked for."""

    def __init__(self, folder: Path, depth: bool, captions: bool) -> None:
        """``depth``: the scenes that they are compared with have it; ``captions``: are wanted too."""
        self.folder, self.depth, self.captions = folder, depth, captions
        found = sorted([*folder.glob(CAMERAS_FILE), *folder.glob(f"*/{CAMERAS_FILE}")])
        if not found:
            raise ConfigError(f"{folder} has no scenes: folders with {CAMERAS_FILE} and pictures in them", KEY)
        self.scenes = [Scene(path, read_cameras(path, KEY)) for path in found]
        for scene in self.scenes:
            scene.check(depth, captions)
        self.n_view = min(len(scene.cameras.cameras) for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def describe(self) -> str:
        return str(self.folder)

    def scene(self, index: int) -> SceneViews:
        return self.scenes[index].read(self.depth)


class Scene:
    """One of them, by the path of its cameras. Raises ConfigError."""

    def __init__(self, path: Path, cameras: CamerasFile) -> None:
        self.path, self.cameras = path, cameras
        names = cameras.files or [f"{number}.png" for number in range(len(cameras.cameras))]
        self.views = [path.parent / name for name in names]
        self.depths = [path.parent / "depth" / f"{file.stem}.png" for file in self.views]

    def check(self, depth: bool, captions: bool) -> None:
        if lost := [file for file in self.views + self.depths * depth if not file.is_file()]:
            raise ConfigError(f"{lost[0]} is missing", KEY)
        place = self.cameras.cameras.position
        if not depth and (place - place[0]).norm(dim=1).max() > STILL * place.norm(dim=1).max():
            raise ConfigError(f"{self.path} has cameras that move, and views without depth turn in one place", KEY)
        if captions and self.cameras.prompts is None:
            raise ConfigError(f"{self.path} has no prompts, which the CLIP score is of; clip=null does without", KEY)

    def read(self, depth: bool) -> SceneViews:
        at, prompts = self.cameras.cameras, self.cameras.prompts or ("",) * len(self.views)
        pictures = [np.asarray(load_image(file, key=KEY).convert("RGB")) for file in self.views]
        depths = [read_depth(file, KEY) for file in self.depths * depth]
        if wrong := {part.shape[:2] for part in (*pictures, *depths)} - {(at.height, at.width)}:
            height, width = wrong.pop()
            raise ConfigError(
                f"{self.path} is for pictures of {at.height} x {at.width} pixels, and some have {height} x {width}", KEY
            )
        views = Views(torch.from_numpy(np.stack(pictures)).float() / 255, at)
        return SceneViews(views, prompts, torch.from_numpy(np.stack(depths)) if depth else None)
