"""Reads Matterport3D's skyboxes (Chang et al. 2017), and whatever has their layout, as panoramas.

    mp3d_skybox/train.npy, test.npy                              texts (N, 6): paths of the six faces, from mp3d_skybox/
    mp3d_skybox/SCENE/matterport_skybox_images/NAME_skyboxK_sami.jpg   K = 0 ... 5: up, four around, down
    mp3d_skybox/SCENE/blip3/NAME_DEGREES.txt                     captions for the yaws 0, 45, ... 315, in the first line

As MVDiffusion reads them (arXiv 2307.01097): captions are those of the nearest yaw that has one.
"""

from __future__ import annotations

from math import radians
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError, short
from threedgen.geometry.panorama import cameras, intrinsics, ring, skybox_views
from threedgen.geometry.picture_file import read_picture
from threedgen.geometry.views import Views, resize
from threedgen.run.seeding import numpy_generator

from .files import first_line, read_npy
from .options import MatterportConfig, SceneSplit
from .scene_views import SceneViews

FOLDER, FACES, CAPTIONS = "mp3d_skybox", "matterport_skybox_images", "blip3"
STEP = 45
"""Degrees from one caption to the next."""
FINER = 2
"""Views are rendered so much larger at most, and averaged: faces have more pixels than views."""


class MatterportPanoramas:
    """A source (``SceneSource``) of views around the standpoints of a split. Training: entry ``index`` begins at a
    random whole degree, keyed by (``seed``, index); test: at 0. Raises ConfigError naming the file."""

    def __init__(self, config: MatterportConfig, seed: int = 0, split: SceneSplit = "train") -> None:
        self.options, self.seed, self.split, self.n_view = config, seed, split, config.views
        root = Path(config.path).expanduser()
        self.root = root / FOLDER if (root / FOLDER).is_dir() else root
        self.panoramas = read_paths(self.root / f"{split}.npy")

    def __len__(self) -> int:
        return self.options.count or len(self.panoramas)

    def describe(self) -> str:
        o = self.options
        way = f"{o.views} of {o.size} px, {o.fov:g} deg, prefix {o.prefix!r}"
        return f"panoramas of {self.root.resolve()}, {self.split}, seed {self.seed}, {way}"

    def first_yaw(self, index: int) -> int:
        """In degrees."""
        return int(numpy_generator(self.seed, index, "first yaw").integers(360)) if self.split == "train" else 0

    def scene(self, index: int) -> SceneViews:
        paths, first, o = self.panoramas[index % len(self.panoramas)], self.first_yaw(index), self.options
        faces = torch.stack([self._face(path) for path in paths])
        finer = min(FINER, max(1, faces.shape[-1] // o.size)) * o.size
        R, fov = ring(self.n_view, radians(first)), radians(o.fov)
        drawn = skybox_views(faces, intrinsics(fov, finer, finer), R, finer, finer).permute(0, 2, 3, 1)
        at = cameras(R, fov, o.size, o.size)
        captions = [self.caption(paths[0], first + n * 360 / self.n_view) for n in range(self.n_view)]
        return SceneViews(Views(resize(drawn, o.size, o.size), at), tuple(captions))

    def caption(self, face: str, yaw: float) -> str:
        """What is seen towards ``yaw``, in degrees, of the panorama with this face."""
        nearest = round(yaw / STEP) * STEP % 360
        image, scene = PurePosixPath(face), PurePosixPath(face).parent.parent
        return self.options.prefix + first_line(
            self.root / scene / CAPTIONS / f"{image.name.split('_')[0]}_{nearest}.txt"
        )

    def _face(self, path: str) -> Tensor:
        """(3,S,S) in [0, 1]"""
        image = read_picture(self.root / path).convert("RGB")
        if image.width != image.height:
            raise ConfigError(f"{self.root / path} should be square, as a face of a skybox is (got {image.size})")
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def read_paths(path: Path) -> list[list[str]]:
    """The faces of each panorama. Raises ConfigError, also for paths that lead out of the folder."""
    array = read_npy(path)
    if array.dtype.kind != "U" or array.ndim != 2 or array.shape[1] != 6 or not len(array):
        raise ConfigError(f"{path} should hold texts (N, 6), six paths of faces (got {array.dtype} {array.shape})")
    for face in array.flat:
        parts = PurePosixPath(face)
        if parts.is_absolute() or ".." in parts.parts or len(parts.parts) < 3:
            raise ConfigError(f"{path} should hold paths like SCENE/{FACES}/NAME.jpg (got {short(str(face))})")
    return [[str(face) for face in row] for row in array]
