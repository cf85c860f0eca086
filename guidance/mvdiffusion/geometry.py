"""Which pixels of other views the tokens of a view correspond to: of a panorama by homographies, else by depth.

Token n of a row of a feature map (h,w) stands for the pixel s/2 + s n of the picture, s pixels to a token; its
counterpart at pixel p lies at p/s - 0.5 in the other map. Cameras and pixels are those of ``threedgen.geometry.warp``.
Tables are computed in float64 on the CPU, only for the pairs of views that attend to each other, and kept for each size
of map and device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from threedgen.geometry.overlap import overlap_fractions
from threedgen.geometry.warp import apply_homography, homography, pixel_grid, reproject, sample_nearest

Neighbours = Literal["ring", "all"]
HIDDEN = 1e6
"""Depth, in metres, that stands in a key's place where it, or that of the query, is unknown."""


@dataclass(frozen=True)
class Keys:
    """What the T = h w tokens of one view attend to: P places around the counterpart in each of n other views.

    views: numbers (n,) of these views in their scene.  places (n,T,P,2): (x, y) in the maps of these views.
    mask (n,T,P): 1 where the place is in the picture, else 0.  relation (n,T,P,r): for the positional encoding, the
    displacement in tokens of the view itself (r = 2), or the difference of depths in metres (r = 1).
    """

    views: Tensor
    places: Tensor
    mask: Tensor
    relation: Tensor

    def to(self, device: torch.device) -> Keys:
        """Moves to a device, in float32."""
        return Keys(self.views.to(device), *(t.to(device, torch.float32) for t in self.tables))

    def tokens(self, start: int, stop: int) -> Keys:
        """Takes the keys of some of the tokens."""
        return Keys(self.views, *(t[:, start:stop] for t in self.tables))

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.places, self.mask, self.relation

    @property
    def count(self) -> int:
        """Keys for each token."""
        return self.places.shape[0] * self.places.shape[2]


class Geometry(Protocol):
    """Views that correspond: ``n_view`` for each scene, and for each view of each scene its keys.

    With fewer scenes than the batch has, those of the batch are taken in turn: both halves of classifier-free guidance
    share one geometry.
    """

    @property
    def n_view(self) -> int: ...

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]: ...


class _Cached(ABC):
    """Keeps the keys for each size of feature maps."""

    n_view: int

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, torch.device], list[Keys]] = {}

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]:
        """Finds the keys of each view for maps of this size."""
        at = (height, width, device)
        if at not in self._kept:
            self._kept[at] = [self._keys(view, height, width).to(device) for view in range(self.n_view)]
        return self._kept[at]

    @abstractmethod
    def _keys(self, view: int, height: int, width: int) -> Keys: ...


class Scenes:
    """Several scenes of equally many views, one after the other in a batch. Raises ValueError if they have not."""

    def __init__(self, scenes: Sequence[Geometry]) -> None:
        if len(counts := {scene.n_view for scene in scenes}) != 1:
            raise ValueError(f"the scenes of a batch should have equally many views (got {sorted(counts)})")
        self.scenes, self.n_view = scenes, scenes[0].n_view

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]:
        return [keys for scene in self.scenes for keys in scene.keys(height, width, device)]


class PanoramaGeometry(_Cached):
    """Views of a panorama (section 4.1; released weights know ``ring`` and k = 3).

    K, R: intrinsics and camera-to-world rotations (F,3,3).  size: (H,W) of the pictures.  k: keys are a square of k x k
    places around each counterpart.  neighbours: the view before and the view after, the last being beside the first;
    or all others, where those behind the camera are masked (of neighbours they are not: the weights know it so).
    Raises ValueError for an even k.
    """

    def __init__(
        self, K: Tensor, R: Tensor, size: tuple[int, int], k: int = 3, neighbours: Neighbours = "ring"
    ) -> None:
        super().__init__()
        if k < 1 or k % 2 == 0:
            raise ValueError(f"k should be odd (got {k})")
        self.K, self.R = (t.detach().cpu().double().expand(len(R), 3, 3) for t in (K, R))
        self.size, self.k, self.kind, self.n_view = size, k, neighbours, len(R)

    def neighbours(self, view: int) -> list[int]:
        """Lists the views that a view attends to."""
        if self.kind == "ring":
            return [(view - 1) % self.n_view, (view + 1) % self.n_view]
        return [other for other in range(self.n_view) if other != view]

    def _keys(self, view: int, height: int, width: int) -> Keys:
        scale, others = self.size[0] // height, self.neighbours(view)
        # the reference, which has only the ring, takes the width; all weights there are know square views
        key_scale = (self.size[1] if self.kind == "ring" else self.size[0]) // height
        pixels = token_pixels(height, width, scale)
        there = homography(self.K[view], self.R[view], self.K[others], self.R[others])
        counterpart, front = apply_homography(there, pixels)
        around = torch.arange(-(self.k // 2), self.k // 2 + 1, dtype=torch.float64)
        square = torch.cartesian_prod(around, around)  # x outside, y inside
        places = counterpart[:, :, None] / key_scale - 0.5 + square
        targets = (places + 0.5) * key_scale
        limits = torch.tensor([self.size[1], self.size[0]], dtype=torch.float64)
        mask = ((targets > 0) & (targets < limits)).all(-1)
        if self.kind == "all":
            mask &= front[:, :, None]
        back, _ = apply_homography(torch.linalg.inv(there), targets.flatten(1, 2))
        relation = (back.view_as(targets) - pixels[:, None]) / scale
        # what is masked may lie at infinity, and no number times zero would be zero
        return Keys(torch.tensor(others), places, mask, torch.where(mask[..., None], relation, 0.0))


class DepthGeometry(_Cached):
    """Posed views of known depth (section 4.2): each attends to those that it overlaps by more than ``least``, else to
    the one before and the one after; one place in each.

    depth (F,H,W) along the viewing axis, 0 or no finite length where it is unknown, in the unit of the poses, which for
    released weights is metres.  c2w (F,4,4), OpenCV axes.  K (3,3) or (F,3,3).  released: as theirs know it, what
    lies behind a camera counts as overlap and as key where the line through it meets the picture, and a key's depth is
    compared with that of the query before its own camera, not before the key's.
    """

    def __init__(self, depth: Tensor, c2w: Tensor, K: Tensor, least: float = 0.3, released: bool = True) -> None:
        super().__init__()
        self.depth, self.c2w, K = (t.detach().cpu().double() for t in (depth, c2w, K))
        self.depth = torch.where((self.depth > 0) & self.depth.isfinite(), self.depth, 0.0)
        self.K, self.n_view, self.released = K.expand(len(depth), 3, 3), len(depth), released
        self.overlap = overlap_fractions(self.depth, self.c2w, self.K, released)
        self._adjacent = overlap_neighbours(self.overlap, least)

    def neighbours(self, view: int) -> list[int]:
        """Lists the views that a view attends to."""
        return self._adjacent[view]

    def _keys(self, view: int, height: int, width: int) -> Keys:
        scale = self.depth.shape[1] // height
        pixels, others = token_pixels(height, width, scale), self.neighbours(view)
        here = sample_nearest(self.depth[view], pixels)
        found = [reproject(pixels, here, *self._camera(view), *self._camera(other)) for other in others]
        counterpart, z = (torch.stack(part) for part in zip(*found, strict=True))
        there = torch.stack(
            [sample_nearest(self.depth[other], at) for other, at in zip(others, counterpart, strict=True)]
        )
        mask = (here > 0) & (there > 0) & (self.released | (z > 0))
        relation = ((here if self.released else z) - torch.where(mask, there, HIDDEN)).abs()
        places = counterpart / scale - 0.5
        return Keys(torch.tensor(others), places[:, :, None], mask[:, :, None], relation[:, :, None, None])

    def _camera(self, view: int) -> tuple[Tensor, Tensor]:
        return self.K[view], self.c2w[view]


def token_pixels(height: int, width: int, scale: int) -> Tensor:
    """Lists the pixels (T,2) that the tokens of a map stand for, row by row."""
    return pixel_grid(height, width).flatten(0, 1) * scale + scale // 2


def overlap_neighbours(overlap: Tensor, least: float = 0.3) -> list[list[int]]:
    """Lists for each view those that overlap it by more than ``least``; if none does, those before and after it."""
    count = len(overlap)
    found = [[j for j in range(count) if j != i and overlap[i, j] > least] for i in range(count)]
    return [there or [j for j in (i - 1, i + 1) if 0 <= j < count] for i, there in enumerate(found)]
