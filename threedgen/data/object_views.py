"""Training data of MV-Adapter (arXiv 2412.03632, section 5.1): six views of an object and their condition maps.

A condition map is an input of the network for each view: the camera rays, or positions and normals of the surface.
Condition maps of geometry are rendered on each use, not cached: six maps of 128 pixels take 20 ms of one core, a
training step takes about one second. Stored maps would need 590 kB per object, twenty times as much as its latents.
"""

import logging
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import Config, ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import GREY, framed
from threedgen.guidance.options import Control
from threedgen.guidance.priors.mvadapter import inputs
from threedgen.run.arrays import Array

from .coloured_mesh import ColouredMesh, fit_to_cube, read_mesh
from .latent_cache import Captioned
from .options import MeshFolderConfig, ObjectSplit

logger = logging.getLogger(__name__)

AZIMUTH, ELEVATION = 45.0, (-10.0, 30.0)
"""Random reference cameras (MV-Adapter, section 5.2), degrees: largest |azimuth| from the front, elevation range."""
MAX_CACHED_MESHES = 32


class ObjectViews(ABC):
    """Base class of training sources for MV-Adapter: six views of each object on a grey background, and condition maps.

    `render_examples(indices, size)` returns images (N V, size, size, 3) in [0, 1], captions and camera poses of N
    objects; V is 6, or 7 with a reference image. `maps(index, size)` returns the condition maps of an object, an extra
    input of the network: six channels in [0, 1] for each of the six views. The reference image is another input: the
    object seen from near the front, centred and scaled to 90 % of the image.

    This class samples the cameras. Subclasses implement `prepare` (read the options), `__len__`, `caption`,
    `render_views` (images) and `surface` (positions and normals). Azimuth 0 is the front of the object (+x); azimuths
    increase counter-clockwise seen from above.

    Args:
        options: options of the subclass; its method `prepare` reads them.
        seed: seed of the random cameras.
        split: "train" or "held-out"; the random cameras depend on it too.
        control: kind of the condition maps: "rays" (of the cameras) or "geometry" (positions and normals of the
            surface). It also determines the six views. "rays": elevation 0, azimuths 0, 45, 90, 180, 270 and 315
            degrees. "geometry": four at elevation 0, azimuths 0, 90, 180 and 270 degrees, then one from above and one
            from below.
        reference: whether an object has a reference image.
        anywhere: fraction of the objects, chosen at random, with other views: a random angle is added to all six
            azimuths, and one random elevation from 0 to 30 degrees replaces all six. Use it only with "rays".
        fov: field of view of the cameras, degrees; 0: orthographic cameras.
    """

    def __init__(
        self,
        options: Config,
        seed: int,
        split: ObjectSplit = "train",
        control: Control = "rays",
        reference: bool = True,
        anywhere: float = 0.0,
        fov: float = 0.0,
    ) -> None:
        self.options, self.seed, self.split, self.control, self.reference = options, seed, split, control, reference
        self.anywhere, self.fov = anywhere, fov
        self.sides = inputs.RAY_VIEWS if control == "rays" else inputs.GEOMETRY_VIEWS
        self.n_view = len(self.sides) + reference
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Read `options` and set attributes that depend on them. `__init__` calls it last. Subclasses define it."""

    @abstractmethod
    def __len__(self) -> int: ...

    def describe(self) -> str:
        kind = f"{type(self).__name__}, {self.control}, picture {self.reference}"
        fov = f", fov {self.fov:g}" if self.fov else ""
        return f"{kind}, seed {self.seed}, {self.split}, anywhere {self.anywhere:g}{fov}"

    @abstractmethod
    def caption(self, index: int) -> str: ...

    @abstractmethod
    def render_views(self, index: int, at: Cameras) -> Array:
        """Render object `index` from V cameras as images (V, H, W, 3) in [0, 1] on a grey background.

        The object is centred at the origin, and its largest |coordinate| is at most `inputs.HALF`, 0.5.
        """

    @abstractmethod
    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        """Return the visible surface of object `index` at the pixel centres of V cameras.

        Returns:
            World points (V, H, W, 3), unit normals (V, H, W, 3) in world space, and a bool foreground mask (V, H, W).
            Points and normals are valid only where the mask is True.
        """

    def reference_angles(self, index: int) -> tuple[float, float]:
        """Return the random (elevation, azimuth) in degrees of the reference camera of object `index`.

        This camera renders the reference image, an input of the network. Azimuth 0 is the front (+x).
        """
        rng = np.random.default_rng([self.seed, self.split == "train", index, 5])
        return float(rng.uniform(*ELEVATION)), float(rng.uniform(-AZIMUTH, AZIMUTH))

    def view_directions(self, index: int) -> list[tuple[float, float]]:
        """Return (elevation, azimuth) of each of the six views of object `index`, in degrees; azimuth 0 is the front.

        Usually they are fixed. The constructor's argument `control` selects them:

        - "rays": elevation 0, azimuths 0, 45, 90, 180, 270 and 315.
        - "geometry": elevation 0, azimuths 0, 90, 180 and 270, then from above and from below (elevations 89.99 and
          -89.99).

        A random fraction of the objects, the constructor's argument `anywhere`, has other views: one random angle is
        added to all six azimuths, and one random elevation from 0 to 30 degrees (`inputs.RAISED`) replaces all six
        elevations.
        """
        rng = np.random.default_rng([self.seed, self.split == "train", index, 6])
        if rng.random() >= self.anywhere:
            return list(self.sides)
        offset, elevation = rng.uniform(0, 360), rng.uniform(*inputs.RAISED)
        return [(elevation, (offset + azimuth) % 360) for _, azimuth in self.sides]

    def cameras(self, index: int, size: int) -> Cameras:
        """Return the six cameras of object `index` for `size` x `size` pixels.

        The camera of the reference image, a seventh image that is an input of the network, is not among them.
        """
        return inputs.cameras_from_angles(self.view_directions(index), size, size, self.fov)

    def render_examples(self, indices: range, size: int) -> Captioned:
        rgb, c2w = [], []
        for index in indices:
            reference = [self.reference_angles(index)] if self.reference else []
            at = inputs.cameras_from_angles([*self.view_directions(index), *reference], size, size, self.fov)
            images = torch.from_numpy(self.render_views(index, at))
            if self.reference:
                images[-1] = frame_on_grey(images[-1])
            rgb.append(images.numpy())
            c2w.append(at.c2w.numpy())
        return Captioned(np.concatenate(rgb), [self.caption(index) for index in indices], np.concatenate(c2w))

    def maps(self, index: int, size: int) -> Tensor:
        """Return the condition maps of object `index`, in [0, 1]: (6, 6, size, size), as (view, channel, row, column).

        Condition maps are an extra input of the network for each view. The six channels are two vectors. The attribute
        `control` selects them:

        - "rays", perspective cameras: Pluecker coordinates of a pixel's ray: direction d, and moment origin x d.
        - "rays", orthographic cameras: viewing direction, and unit vector from the origin to the camera. All pixels are
          equal, so the result has the shape (6, 6, 1, 1).
        - "geometry": position and normal of the surface. Pixels without surface are 0.5.

        Positions, which are in [-0.5, 0.5], are stored as value + 0.5. All other vectors have components in [-1, 1],
        stored as (value + 1) / 2. The vectors are in MV-Adapter's world: (x, y, z) of threedgen's world (z up, front
        +x) becomes (y, -x, z).
        """
        at = self.cameras(index, size)
        if self.control == "rays":
            return inputs.ray_maps(at)
        return inputs.geometry_maps(*(torch.from_numpy(part) for part in self.surface(index, at)))


def frame_on_grey(image: Tensor) -> Tensor:
    """Centre the object in an image (H, W, 3) in [0, 1] and resize it, as input images of users are prepared.

    The object then fills 90 % of the image's height or width, whichever it reaches first. All pixels that differ from
    the grey background (`GREY`, 0.5) are the object. The result has the same size and background. An image without an
    object is returned unchanged.
    """
    mask = (image != GREY).any(-1, keepdim=True)
    return framed(torch.cat([image, mask.float()], dim=-1), *image.shape[:2]) if mask.any() else image


class MeshObjects(ObjectViews):
    """Training source for MV-Adapter (`ObjectViews`, with its arguments) from a folder of meshes, `options.path`.

    A training example has six views of a mesh, their condition maps, a caption and, with the argument `reference`, an
    image from near the front (reference image). Each mesh gives one example, or with `reference` a number of
    `options.pictures` examples, which differ in their random cameras. The last `options.held_out` meshes are the split
    "held-out", all others the split "train". Instead of an unreadable mesh, the next readable one of the split is used.
    """

    options: MeshFolderConfig

    def prepare(self) -> None:
        every, held_out = list(self.options.listing().assets), self.options.held_out
        self.files = every[:-held_out] if self.split == "train" else every[-held_out:]
        self.used, self.folder = list(self.files), Path(self.options.path).expanduser()
        self.mesh = lru_cache(MAX_CACHED_MESHES)(self.read)

    def __len__(self) -> int:
        return len(self.files) * (self.options.pictures if self.reference else 1)

    def describe(self) -> str:
        o = self.options
        stats = ((asset, (self.folder / asset.file).stat()) for asset in self.files)
        files = [(asset.file, asset.caption, stat.st_size, stat.st_mtime_ns) for asset, stat in stats]
        turned = [asset for asset in self.files if (asset.up, asset.turn) != (o.up, 0)] or ""
        return f"{super().describe()}, {self.folder.resolve()}, {o.up} up, light {o.light}: {files}{turned}"

    def caption(self, index: int) -> str:
        return self.used[index % len(self.used)].caption

    def read(self, number: int) -> ColouredMesh:
        """Read mesh `number` of the split, and scale it into the cube [-0.5, 0.5]^3 (`inputs.HALF`).

        If the file is unreadable or has no surface, a warning is logged and the next mesh of the split that can be read
        takes its place, with its caption. Raises ConfigError if there is none.
        """
        for last in range(len(self.used)):
            asset = self.used[(number + last) % len(self.used)]
            try:
                mesh = fit_to_cube(
                    read_mesh(self.folder / asset.file, asset.up, warn=True, turn=asset.turn), inputs.HALF
                )
            except ConfigError as error:
                logger.warning("left out: %s", error)
                continue
            for k in range(last):
                self.used[(number + k) % len(self.used)] = asset
            return mesh
        raise ConfigError(f"no mesh of the split {self.split} can be read", "path", self.options.path)

    def render_views(self, index: int, at: Cameras) -> Array:
        return self.mesh(index % len(self.files)).render_views(at, GREY, self.options.light)

    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        return self.mesh(index % len(self.files)).surface(at)
