"""Panoramas of Matterport3D (Chang et al. 2017), or of other cube maps in the same layout.

    mp3d_skybox/train.npy, test.npy                       strings (N, 6): paths of six cube sides below mp3d_skybox/
    mp3d_skybox/SCENE/matterport_skybox_images/NAME_skyboxK_sami.jpg   cube side K = 0 ... 5: up, four yaws, down
    mp3d_skybox/SCENE/blip3/NAME_DEGREES.txt              caption in the first line, for the yaws 0, 45, ... 315

Cube sides 1 to 4 face the yaws 270, 0, 90 and 180. Yaws are in degrees and increase to the right. A view gets the
caption of the nearest yaw, as in MVDiffusion (arXiv 2307.01097).
"""

from math import radians
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.image_file import load_image
from threedgen.geometry.panorama import cameras, intrinsics, ring, skybox_views
from threedgen.geometry.views import Views, resize
from threedgen.run.seeding import numpy_generator

from .files import files_hash, first_line, read_npy, warn_left_out
from .options import MatterportConfig, SceneSplit
from .scene_views import SceneViews

FOLDER, FACES, CAPTIONS = "mp3d_skybox", "matterport_skybox_images", "blip3"
PREFIX = "This is one view of a scene. "  # text before each caption, as in MVDiffusion
YAW_STEP = 45  # difference between the yaws of the caption files, degrees
MIN_FACE = 8  # minimum side of a cube side in pixels
MAX_SUPERSAMPLE = 2
"""Maximum supersampling factor of views along each axis. It is used if the cube sides have enough pixels."""


class MatterportPanoramas:
    """Source (`SceneSource`) of training examples: perspective views of a panorama, evenly spaced in a full circle.

    `scene` returns the images, cameras and captions of one example. The views are horizontal, and their yaw increases
    to the right. The yaw of the first view is 0 in the test split. For training, it is a random whole number of degrees
    that depends on the seed and the index of the example. Panoramas without all their files are left out of the
    training with a warning. The constructor and `scene` raise ConfigError if a file is missing or invalid.
    """

    def __init__(self, config: MatterportConfig, seed: int = 0, split: SceneSplit = "train") -> None:
        self.options, self.seed, self.split, self.n_view = config, seed, split, config.views
        root = Path(config.path).expanduser()
        self.root = root / FOLDER if (root / FOLDER).is_dir() else root
        self.panoramas = read_paths(self.root / f"{split}.npy")
        if split == "train":
            missing = [next((str(f) for f in self.files(paths) if not f.is_file()), "") for paths in self.panoramas]
            self.panoramas = [paths for paths, file in zip(self.panoramas, missing, strict=True) if not file]
            problems = [f"{file} is missing" for file in missing if file]
            warn_left_out(problems, len(self.panoramas), "panoramas")

    def __len__(self) -> int:
        return self.options.count or len(self.panoramas)

    def describe(self) -> str:
        o = self.options
        views = f"{o.views} of {o.size} px, {o.fov:g} deg, prefix {PREFIX!r}"
        files = files_hash(file for paths in self.panoramas for file in self.files(paths))
        return f"panoramas of {self.root.resolve()}, {self.split}, seed {self.seed}, {views}, {files}"

    def files(self, paths: list[str]) -> list[Path]:
        """Return the paths of all files of a panorama: six cube sides, given as `paths`, and eight captions."""
        captions = [self.caption_file(paths[0], yaw) for yaw in range(0, 360, YAW_STEP)]
        return [*(self.root / path for path in paths), *captions]

    def first_yaw(self, index: int) -> int:
        """Return the yaw of the first view of example `index`, a whole number of degrees from 0 to 359.

        It is random in the split "train", and 0 in the split "test".
        """
        return int(numpy_generator(self.seed, index, "first yaw").integers(360)) if self.split == "train" else 0

    def scene(self, index: int) -> SceneViews:
        paths, first, o = self.panoramas[index % len(self.panoramas)], self.first_yaw(index), self.options
        faces = torch.stack([self._face(path) for path in paths])
        fine = min(MAX_SUPERSAMPLE, max(1, faces.shape[-1] // o.size)) * o.size
        R, fov = ring(self.n_view, radians(first)), radians(o.fov)
        images = skybox_views(faces, intrinsics(fov, fine, fine), R, fine, fine).permute(0, 2, 3, 1)
        at = cameras(R, fov, o.size, o.size)
        captions = [self.caption(paths[0], first + n * 360 / self.n_view) for n in range(self.n_view)]
        return SceneViews(Views(resize(images, o.size, o.size), at), tuple(captions))

    def caption(self, face: str, yaw: float) -> str:
        """Return "This is one view of a scene. " (`PREFIX`), followed by the caption of a panorama for a yaw.

        A panorama has captions for the yaws 0, 45, ... 315 degrees; the one nearest to `yaw` is used. `face` is the
        path of any cube side of the panorama, relative to the data folder. Raises ConfigError if the caption file is
        missing or empty.
        """
        return PREFIX + first_line(self.caption_file(face, yaw))

    def caption_file(self, face: str, yaw: float) -> Path:
        nearest = round(yaw / YAW_STEP) * YAW_STEP % 360
        path = PurePosixPath(face)
        return self.root / path.parent.parent / CAPTIONS / f"{path.name.split('_')[0]}_{nearest}.txt"

    def _face(self, path: str) -> Tensor:
        file = self.root / path
        if not file.is_file():
            raise ConfigError(f"{file} is missing")
        image = load_image(file).convert("RGB")
        if image.width != image.height:
            raise ConfigError(f"{file} is not square: size={image.size}. Skybox faces must be square.")
        if image.width < MIN_FACE:
            raise ConfigError(f"{file} is too small: size={image.size}. Use at least {MIN_FACE} pixels.")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def read_paths(path: Path) -> list[list[str]]:
    """Read a .npy file with the paths of the cube sides of each panorama. Return six paths per panorama.

    Raises ConfigError if the file is missing or invalid, or if a path leads out of the data folder.
    """
    array = read_npy(path)
    if array.dtype.kind != "U" or array.ndim != 2 or array.shape[1] != 6 or not len(array):
        raise ConfigError(f"{path} should hold strings (N, 6), six face paths each (got {array.dtype} {array.shape})")
    for face in array.flat:
        parts = PurePosixPath(face)
        if parts.is_absolute() or ".." in parts.parts or len(parts.parts) < 3:
            raise ConfigError(f"{path} should hold paths like SCENE/{FACES}/NAME.jpg (got {short(str(face))})")
    return [[str(face) for face in row] for row in array]
