"""Reader of existing views: the folder of one scene, or a folder of such folders, such as runs of panorama and texture.

SCENE/cameras.json         cameras (`threedgen.geometry.cameras_file`); its prompts are used only for the CLIP score
SCENE/0.png, 1.png, ...    images, if cameras.json does not name the files of its views
SCENE/depth/NAME.png       depth map of the image NAME.png (`threedgen.geometry.depth_file`)
"""

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
MAX_MOVE = 1e-3
"""Maximum distance of a camera of a panorama from camera 0, relative to the maximum distance from the origin."""


class FolderScenes:
    """Scenes of a folder, as a `threedgen.data.scene_views.SceneSource`.

    The constructor reads all cameras; `scene` reads the images of one scene.

    Args:
        depth: whether the scenes need depth maps, because the true scenes have them.
        captions: whether the scenes need captions.

    Raises:
        ConfigError: if a file is missing or the cameras are unsuitable.
    """

    def __init__(self, folder: Path, depth: bool, captions: bool) -> None:
        self.folder, self.depth = folder, depth
        found = sorted([*folder.glob(CAMERAS_FILE), *folder.glob(f"*/{CAMERAS_FILE}")])
        if not found:
            raise ConfigError(f"{folder} has no scenes. Give a folder of folders with {CAMERAS_FILE} and images.", KEY)
        self.scenes = [Scene(path, read_cameras(path, KEY)) for path in found]
        for scene in self.scenes:
            scene.check(depth, captions)
        self.n_view = min(len(scene.file.cameras) for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def describe(self) -> str:
        return str(self.folder)

    def scene(self, index: int) -> SceneViews:
        return self.scenes[index].read(self.depth)


class Scene:
    """Files of one existing scene. ``path`` is its cameras.json and ``file`` the content. Methods raise ConfigError."""

    def __init__(self, path: Path, file: CamerasFile) -> None:
        self.path, self.file = path, file
        names = file.files or [f"{number}.png" for number in range(len(file.cameras))]
        self.views = [path.parent / name for name in names]
        self.depths = [path.parent / "depth" / f"{view.stem}.png" for view in self.views]

    def check(self, depth: bool, captions: bool) -> None:
        """Check that all files exist and that the cameras are suitable. No image is read."""
        if missing := [file for file in self.views + self.depths * depth if not file.is_file()]:
            raise ConfigError(f"{missing[0]} is missing", KEY)
        position = self.file.cameras.position
        if not depth and (position - position[0]).norm(dim=1).max() > MAX_MOVE * position.norm(dim=1).max():
            raise ConfigError(f"{self.path} has cameras that move, but views without depth must turn in place", KEY)
        if captions and self.file.prompts is None:
            raise ConfigError(f"{self.path} has no prompts for the CLIP score. Add them, or use clip=null.", KEY)

    def read(self, depth: bool) -> SceneViews:
        """Read the images, and the depth maps if ``depth``."""
        at, prompts = self.file.cameras, self.file.prompts or ("",) * len(self.views)
        images = [np.asarray(load_image(file, key=KEY).convert("RGB")) for file in self.views]
        depths = [read_depth(file, KEY) for file in self.depths * depth]
        if wrong := {part.shape[:2] for part in (*images, *depths)} - {(at.height, at.width)}:
            height, width = wrong.pop()
            raise ConfigError(
                f"{self.path} is for images of {at.height} x {at.width} pixels, but some have {height} x {width}", KEY
            )
        views = Views(torch.from_numpy(np.stack(images)).float() / 255, at)
        return SceneViews(views, prompts, torch.from_numpy(np.stack(depths)) if depth else None)
