"""Images and cameras of photos with poses, resized to one size and without lens distortion.

The photos may differ in size and intrinsics. After the resizing, each image still has its own intrinsics.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from kornia.geometry.calibration import distort_points
from kornia.geometry.transform import remap
from PIL import Image
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.data.srn.reader import Instance
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.image_file import load_image
from threedgen.geometry.poses import opencv_axes, pixel_centres
from threedgen.run.arrays import Array

from .files import Lens, PosedFiles, aspect_fits, is_rotated, stored_shape, to_c2w, without_scale
from .options import PoseConvention
from .reader import read_posed

MODEL_FOLDERS = ("0", "sparse", "colmap", "dense")  # names of COLMAP's folders inside the folder of a scene
ZOOM_STEP, MAX_ZOOM = 1.01, 2.0
"""Factor per step and maximum of the zoom into an undistorted image, until it shows only pixels of the photo."""


@dataclass(frozen=True)
class PosedPhotos(Instance):
    """N photos of one scene with their cameras; the lens distortion of images and cameras is removed.

    Attributes:
        posed: content of the camera file.
        matrices: (N, 4, 4), poses as in the file, after the division of the rotation part by its scale.
        convention: how to read `matrices`: camera-to-world or world-to-camera, with OpenGL axes (camera looks along
            -z) or OpenCV axes (along +z): "c2w-opengl", "c2w-opencv", "w2c-opengl" or "w2c-opencv".
    """

    posed: PosedFiles
    matrices: Array
    convention: PoseConvention

    def verify(self) -> None:
        """Check that each photo has the aspect ratio that the camera file states, from the image headers.

        Raises ConfigError if a file is unreadable or has another aspect ratio.
        """
        for file, lens in zip(self.files, self.posed.lenses, strict=True):
            height, width = stored_shape(file)
            if not aspect_fits((height, width), lens.height, lens.width) and not is_rotated(
                file, lens.height, lens.width
            ):
                size = f"{file} has {height} x {width} pixels (height x width)"
                raise ConfigError(f"{size}, but its intrinsics are for {lens.height} x {lens.width}. Correct w and h")

    def read(self, k: int) -> Array:
        rgba = self.rgba(k)
        return rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])

    def rgba(self, k: int) -> Array:
        """Read photo `k` as RGBA (H, W, 4), float32 in [0, 1], without lens distortion.

        Raises ConfigError if the file is unreadable.
        """
        lens = self.posed.lenses[k]
        upright = is_rotated(self.files[k], lens.height, lens.width)
        image = load_image(self.files[k], max_side=max(self.height, self.width), upright=upright).convert("RGBA")
        pixels = np.asarray(image.resize((self.width, self.height), Image.Resampling.BICUBIC), np.float32) / 255
        _, source = undistortion(lens, self.height, self.width)
        if source is None:
            return pixels
        x, y = source.unbind(-1)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        return remap(tensor, x, y, "bilinear", "border", align_corners=True)[0].permute(1, 2, 0).numpy()


def open_photos(path: Path, max_side: int, convention: PoseConvention | None = None) -> PosedPhotos:
    """Read the camera file at `path` and the image headers; pixels are read later.

    All images get the size that the camera file states for the first photo, reduced if its longer side has more than
    `max_side` pixels. `convention` states how to read the poses, such as "c2w-opengl"; None: as defined by the format.
    Raises ConfigError if a file is missing or damaged, if a pose is not rigid, or if a photo has another aspect ratio
    than in the camera file.
    """
    posed = read_posed(path)
    convention, matrices = convention or posed.convention, without_scale(posed.matrices, str(posed.source))
    first = posed.lenses[0]
    scale = min(1.0, max_side / max(first.height, first.width))
    height, width = max(1, round(first.height * scale)), max(1, round(first.width * scale))
    K = torch.stack([undistortion(lens, height, width)[0] for lens in posed.lenses])
    c2w = torch.from_numpy(to_c2w(matrices, convention))
    folder, source = (Path(os.path.abspath(place)) for place in (path, posed.source))  # links keep their own names
    folder = folder if path.is_dir() else folder.parent
    if folder == source:  # the folder of a COLMAP model, often inside that of the scene
        while folder.name in MODEL_FOLDERS or (folder.name.isdecimal() and folder.parent.name == "sparse"):
            folder = folder.parent
    cameras, poses = Cameras(c2w.float(), Projection(K.float()), height, width), opencv_axes(c2w).numpy()
    photos = PosedPhotos(
        folder, posed.files, K.numpy(), poses, height, width, cameras, posed, matrices, convention
    )  # fmt: skip
    photos.verify()
    return photos


@lru_cache(maxsize=32)  # a grid of 768 x 1024 pixels has 6 MB
def undistortion(lens: Lens, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """Return the camera and the sampling grid that remove the distortion of a lens from an image of `height` x `width`.

    Returns:
        K: intrinsics (3, 3), float64, in pixels of the undistorted image, which also has `height` x `width` pixels and
            is zoomed in until it shows nothing outside of the original image. The first pixel centre is (0.5, 0.5).
        grid: (1, height, width, 2), float32, for each pixel of the undistorted image its position (x, y) in pixels of
            the original image. Here the first pixel centre is (0, 0). None: the lens has no distortion.
    """
    sx, sy = width / lens.width, height / lens.height
    rows = [[lens.fx * sx, 0, lens.cx * sx], [0, lens.fy * sy, lens.cy * sy], [0, 0, 1]]
    K = torch.tensor(rows, dtype=torch.float64)
    if not any(lens.distortion):
        return K, None
    inner = K - K.new_tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    pixels = pixel_centres(height, width, K.device).double().reshape(-1, 2) - 0.5
    zoom, far = 1.0, K.new_tensor([width - 0.5, height - 0.5])
    while True:
        factors = K.new_tensor([[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]])
        source = distort_points(pixels, inner, K.new_tensor(lens.distortion), inner * factors)
        if ((source > -0.5) & (source < far)).all() or zoom > MAX_ZOOM:
            return K * factors, source.reshape(1, height, width, 2).float()
        zoom *= ZOOM_STEP
