"""Reader and writer for scenes in the layout of Scene Representation Networks (Sitzmann et al. 2019).

Camera-to-world poses are converted from the OpenCV axes of the files to OpenGL axes, in a z-up world.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import png, to_uint8
from threedgen.geometry.poses import opencv_axes, opengl_to_blender
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array
from threedgen.run.disk import atomic_folder

from .scene_files import SceneFiles, read_scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Instance(SceneFiles):
    """Scene folder with N views, opened by `open_instance`, which checks its poses, intrinsics and image headers.

    `cameras` are the N cameras in a z-up world, with intrinsics in pixels of the image files. The method `views` reads
    the images of all or some views. The base class has `folder`, `files` (N image files of `height` x `width` pixels),
    the intrinsics `K` (N, 3, 3), and `poses` (N, 4, 4), which are camera-to-world too, but with OpenCV axes and in the
    world of the files.
    """

    cameras: Cameras

    def views(self, index: Sequence[int] | None = None, size: int | None = None) -> Views:
        """Read the images and cameras of the views with the indices `index`; None: all views.

        Images are resized to `size` x `size` pixels; None: images keep their size. Raises ConfigError if a file is
        unreadable.
        """
        indices = list(range(len(self)) if index is None else index)
        images = np.stack([self.read(k) for k in indices])
        views = Views(torch.from_numpy(images), self.cameras.select(indices))
        return views if size is None else views.resized(size)

    def read(self, k: int) -> Array:
        """Read the image (H, W, 3) of view `k`, in [0, 1], composited on white.

        Raises ConfigError if the file is unreadable.
        """
        return _read_rgb(self.files[k])

    def verify(self) -> None:
        for path in self.files:
            load_image(path)


def open_instance(folder: Path | str, up: Literal["z", "y"] = "z", min_views: int = 2) -> Instance:
    """Open a scene folder: read and check poses, intrinsics and image headers, but not the pixels.

    `up` is the up axis of the world of the poses; a y-up world is rotated to z-up. Raises ConfigError if a file is
    missing or invalid, or if there are fewer than `min_views` views.
    """
    scene = read_scene(folder, min_views)
    c2w = opencv_axes(torch.from_numpy(scene.poses).double())
    c2w = opengl_to_blender(c2w) if up == "y" else c2w
    projection = Projection(torch.from_numpy(scene.K).float())
    return Instance(**vars(scene), cameras=Cameras(c2w.float(), projection, scene.height, scene.width))


def _read_rgb(path: Path) -> Array:
    pixels: Array = np.asarray(load_image(path), np.float32) / np.float32(255)
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() < 1 and path.parent not in _WARNED:
        _WARNED.add(path.parent)
        logger.warning("%s has transparent pixels: they become white", path)
    return rgb * alpha + (1 - alpha)


_WARNED: set[Path] = set()  # folders for which the warning about transparent pixels was logged


def write_instance(folder: Path | str, views: Views, numbers: Sequence[int] | None = None) -> Path:
    """Write views atomically to a new scene folder with rgb/ (8 bits), pose/ and intrinsics.txt. Return its path.

    The pose files are camera-to-world, with OpenCV axes. `numbers` are the view numbers for the file names; None: 0, 1,
    ... Raises ValueError unless all views have the same K with square pixels and no skew, FileExistsError if the folder
    exists, and OSError if a file cannot be written.
    """
    folder = Path(folder)
    K = views.cameras.K[0].double().numpy()
    if not np.allclose(views.cameras.K.double().numpy(), K, atol=1e-4) or abs(K[0, 0] - K[1, 1]) > 1e-4 or K[0, 1]:
        raise ValueError("the SRN layout needs one focal length for all views and both axes")
    if folder.exists():
        raise FileExistsError(f"{folder} already exists")
    with atomic_folder(folder) as temporary:
        for part in ("rgb", "pose"):
            (temporary / part).mkdir()
        poses = opencv_axes(views.cameras.c2w).double().numpy()
        for k, number in enumerate(range(len(views)) if numbers is None else numbers):
            (temporary / "rgb" / f"{number:06d}.png").write_bytes(png(to_uint8(views.images[k])))
            text = " ".join(f"{x:.9g}" for x in poses[k].ravel())
            (temporary / "pose" / f"{number:06d}.txt").write_text(text + "\n", encoding="utf-8")
        focal = f"{K[0, 0]:.9g} {K[0, 2]:.9g} {K[1, 2]:.9g} 0."
        lines = (focal, "0. 0. 0.", "1.", f"{views.cameras.height} {views.cameras.width}")
        (temporary / "intrinsics.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
