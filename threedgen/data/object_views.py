"""Training data of MV-Adapter (arXiv 2412.03632, section 5.1): six views of an object and the condition maps of them.

An entry has the six views on grey and, optionally, a reference image: a view from near the front, framed like users'
images.

Geometry maps are rendered on each use, not stored: six maps of 128 pixels take about 20 ms of one core, in a step of
about one second. Stored, they would take 590 kB per object, twenty times the latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.guidance.options import Control
from threedgen.guidance.priors.mvadapter.cameras import (
    GEOMETRY_VIEWS,
    RAISED,
    RAY_VIEWS,
    geometry_maps,
    ray_maps,
    views,
)
from threedgen.guidance.priors.mvadapter.pictures import GREY, framed
from threedgen.run.arrays import Array

from .bank import Captioned
from .options import ObjectSplit

AZIMUTH, ELEVATION = 45.0, (-10.0, 30.0)
"""Camera of a reference image, degrees: largest azimuth from the front, and elevation range (section 5.2)."""


class ObjectViews(ABC):
    """Base class of the sources (`threedgen.data.bank.Source`) that the registry builds as "object-source".

    Args:
        control: condition of the guider; it determines the six view directions.
        reference: add a reference image as the last of the `n_view` images of an entry.
        anywhere: share of objects whose cameras are turned by a random azimuth and raised by a random elevation.
        fov: field of view of the cameras, degrees; 0: parallel rays (see `towards_middle`).
    """

    def __init__(
        self,
        seed: int,
        split: ObjectSplit,
        control: Control,
        reference: bool,
        anywhere: float = 0.0,
        fov: float = 0.0,
    ) -> None:
        self.seed, self.split, self.control, self.reference = seed, split, control, reference
        self.anywhere, self.fov = anywhere, fov
        self.sides = RAY_VIEWS if control == "rays" else GEOMETRY_VIEWS
        self.n_view = len(self.sides) + reference

    @abstractmethod
    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Return one line with everything that determines the images."""
        kind = f"{type(self).__name__}, {self.control}, picture {self.reference}"
        fov = f", fov {self.fov:g}" if self.fov else ""
        return f"{kind}, seed {self.seed}, {self.split}, anywhere {self.anywhere:g}{fov}"

    @abstractmethod
    def caption(self, index: int) -> str: ...

    @abstractmethod
    def photograph(self, index: int, at: Cameras) -> Array:
        """Render images (V, H, W, 3) on `GREY`. The object is scaled to the half extent `cameras.HALF`."""

    @abstractmethod
    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        """Return points and unit normals (V, H, W, 3) at the pixel centres, and the foreground mask (V, H, W)."""

    def reference_angles(self, index: int) -> tuple[float, float]:
        """Return (elevation, azimuth) of the reference image, degrees."""
        rng = np.random.default_rng([self.seed, self.split == "train", index, 5])
        return float(rng.uniform(*ELEVATION)), float(rng.uniform(-AZIMUTH, AZIMUTH))

    def angles(self, index: int) -> list[tuple[float, float]]:
        """Return (elevation, azimuth) of an object's views, degrees: `sides`, or for the share `anywhere` one random
        elevation and the azimuths of `sides` plus one random offset."""
        rng = np.random.default_rng([self.seed, self.split == "train", index, 6])
        if rng.random() >= self.anywhere:
            return list(self.sides)
        offset, elevation = rng.uniform(0, 360), rng.uniform(*RAISED)
        return [(elevation, (offset + azimuth) % 360) for _, azimuth in self.sides]

    def cameras(self, index: int, size: int) -> Cameras:
        """Return the cameras of an object's views, without that of the reference image."""
        return views(self.angles(index), size, size, self.fov)

    def block(self, indices: range, size: int) -> Captioned:
        rgb, c2w = [], []
        for index in indices:
            reference = [self.reference_angles(index)] if self.reference else []
            at = views([*self.angles(index), *reference], size, size, self.fov)
            images = torch.from_numpy(self.photograph(index, at))
            if self.reference:
                images[-1] = frame_on_grey(images[-1])
            rgb.append(images.numpy())
            c2w.append(at.c2w.numpy())
        return Captioned(np.concatenate(rgb), [self.caption(index) for index in indices], np.concatenate(c2w))

    def maps(self, index: int, size: int) -> Tensor:
        """Return the guider's condition maps (V, 6, H, W) in [0, 1]; ray maps of parallel rays are (V, 6, 1, 1)."""
        at = self.cameras(index, size)
        if self.control == "rays":
            return ray_maps(at)
        return geometry_maps(*(torch.from_numpy(part) for part in self.surface(index, at)))


def frame_on_grey(image: Tensor) -> Tensor:
    """Crop and centre the object of an image (H, W, 3) on grey. Return an image without an object unchanged."""
    mask = (image != GREY).any(-1, keepdim=True)
    return framed(torch.cat([image, mask.float()], dim=-1), *image.shape[:2]) if mask.any() else image
