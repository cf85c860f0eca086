"""Objects from the sides that MV-Adapter draws (arXiv 2412.03632, section 5.1), with what its guider is shown of them.

An entry has the views of all sides, on grey, and behind them, if it is asked for, a picture of the object from
somewhere near its front, framed as users' pictures are.

Maps of geometry are rendered whenever they are wanted: six sides of 128 pixels take a core some 20 ms, of the second
that a step of eight objects takes, while to keep them in bytes would take 590 kB for each object, twenty times as much
as the latents of its pictures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.guidance.mvadapter.cameras import GEOMETRY_VIEWS, RAISED, RAY_VIEWS, geometry_maps, ray_maps, views
from threedgen.guidance.mvadapter.pictures import GREY, framed
from threedgen.guidance.options import Control
from threedgen.run.arrays import Array

from .bank import Captioned
from .options import ObjectSplit

AZIMUTH, ELEVATION = 45.0, (-10.0, 30.0)
"""Degrees from the front, at most, and above the ground, from which pictures to look at are taken (section 5.2)."""


class ObjectViews(ABC):
    """A source of ``threedgen.data.bank``, built by the registry's kind "object-source".

    ``control``: what the guider is shown decides the sides.  ``reference``: with a picture to look at, as the last of
    the ``n_view`` pictures of an entry.  anywhere: the share of objects that are seen from sides of their own.  fov: of
    the cameras in degrees, see ``towards_middle``.
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
        """What decides the pictures, in a line."""
        kind = f"{type(self).__name__}, {self.control}, picture {self.reference}"
        fov = f", fov {self.fov:g}" if self.fov else ""
        return f"{kind}, seed {self.seed}, {self.split}, anywhere {self.anywhere:g}{fov}"

    @abstractmethod
    def caption(self, index: int) -> str: ...

    @abstractmethod
    def photograph(self, index: int, at: Cameras) -> Array:
        """Pictures (V,H,W,3) on the grey of ``GREY``; as large as ``cameras.HALF`` has it."""

    @abstractmethod
    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        """Points and unit normals (V,H,W,3) at the pixel centres, and where there are any (V,H,W)."""

    def near_front(self, index: int) -> tuple[float, float]:
        """(elevation, azimuth) in degrees of the picture to look at."""
        rng = np.random.default_rng([self.seed, self.split == "train", index, 5])
        return float(rng.uniform(*ELEVATION)), float(rng.uniform(-AZIMUTH, AZIMUTH))

    def angles(self, index: int) -> list[tuple[float, float]]:
        """(elevation, azimuth) in degrees from where an object is seen: ``sides``, or all of them turned by one angle
        and raised."""
        rng = np.random.default_rng([self.seed, self.split == "train", index, 6])
        if rng.random() >= self.anywhere:
            return list(self.sides)
        first, raised = rng.uniform(0, 360), rng.uniform(*RAISED)
        return [(raised, (first + azimuth) % 360) for _, azimuth in self.sides]

    def cameras(self, index: int, size: int) -> Cameras:
        """Those of an object."""
        return views(self.angles(index), size, size, self.fov)

    def block(self, indices: range, size: int) -> Captioned:
        rgb, c2w = [], []
        for index in indices:
            near = [self.near_front(index)] if self.reference else []
            at = views([*self.angles(index), *near], size, size, self.fov)
            pictures = torch.from_numpy(self.photograph(index, at))
            if self.reference:
                pictures[-1] = alone(pictures[-1])
            rgb.append(pictures.numpy())
            c2w.append(at.c2w.numpy())
        return Captioned(np.concatenate(rgb), [self.caption(index) for index in indices], np.concatenate(c2w))

    def maps(self, index: int, size: int) -> Tensor:
        """What the guider is shown (V,6,H,W), in [0,1]; of parallel rays (V,6,1,1), which all pixels share."""
        at = self.cameras(index, size)
        if self.control == "rays":
            return ray_maps(at)
        return geometry_maps(*(torch.from_numpy(part) for part in self.surface(index, at)))


def alone(picture: Tensor) -> Tensor:
    """The object of a picture (H,W,3) on grey, framed; of one that shows nothing, all of it."""
    there = (picture != GREY).any(-1, keepdim=True)
    return framed(torch.cat([picture, there.float()], dim=-1), *picture.shape[:2]) if there.any() else picture
