"""Correspondence between the tokens of a view and pixels of other views: homographies for panoramas, or depth.

Token n of a row of a feature map (h, w) stands for the pixel s/2 + s n of the image, s pixels per token; its
counterpart at pixel p lies at p/s - 0.5 in the other map. Cameras and pixels are those of `threedgen.geometry.warp`.
Tables are computed in float64 on the CPU for pairs of views that attend to each other, and cached by size of the map
and device.
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
UNKNOWN_DEPTH = 1e6
"""Depth of a key, in metres, where it or that of the query is unknown."""


@dataclass(frozen=True)
class Keys:
    """Keys of the T = h w tokens of one view: P places around the counterpart in each of n other views.

    Attributes:
        views: numbers (n,) of these views in their scene.
        places: (x, y) in the maps of these views (n, T, P, 2).
        mask: 1 where the place is inside the image, else 0, (n, T, P).
        relation: input of the positional encoding (n, T, P, r): displacement in tokens of the view itself (r = 2), or
            difference of depths in metres (r = 1).
    """

    views: Tensor
    places: Tensor
    mask: Tensor
    relation: Tensor

    def to(self, device: torch.device) -> Keys:
        """Move to a device, in float32."""
        return Keys(self.views.to(device), *(t.to(device, torch.float32) for t in self.tables))

    def tokens(self, start: int, stop: int) -> Keys:
        """Return the keys of tokens start to stop."""
        return Keys(self.views, *(t[:, start:stop] for t in self.tables))

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.places, self.mask, self.relation

    @property
    def count(self) -> int:
        """Keys per token."""
        return self.places.shape[0] * self.places.shape[2]


class Geometry(Protocol):
    """Corresponding views of one or more scenes, `n_view` each, and the keys of each view.

    A batch may repeat the scenes, as the branches of classifier-free guidance do.
    """

    @property
    def n_view(self) -> int: ...

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]: ...


class _Cached(ABC):
    """Cache of keys by size of feature maps."""

    n_view: int

    def __init__(self) -> None:
        self._cache: dict[tuple[int, int, torch.device], list[Keys]] = {}

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]:
        """Return the keys of each view for maps of this size."""
        at = (height, width, device)
        if at not in self._cache:
            self._cache[at] = [self._keys(view, height, width).to(device) for view in range(self.n_view)]
        return self._cache[at]

    @abstractmethod
    def _keys(self, view: int, height: int, width: int) -> Keys: ...


class Scenes:
    """Several scenes in a batch. Raises ValueError unless they have equal numbers of views."""

    def __init__(self, scenes: Sequence[Geometry]) -> None:
        if len(counts := {scene.n_view for scene in scenes}) != 1:
            raise ValueError(f"the scenes of a batch should have equally many views (got {sorted(counts)})")
        self.scenes, self.n_view = scenes, scenes[0].n_view

    def keys(self, height: int, width: int, device: torch.device) -> list[Keys]:
        return [keys for scene in self.scenes for keys in scene.keys(height, width, device)]


class PanoramaGeometry(_Cached):
    """Views of a panorama (section 4.1; the released weights were trained with "ring" and k = 3)."""

    def __init__(
        self, K: Tensor, R: Tensor, size: tuple[int, int], k: int = 3, neighbours: Neighbours = "ring"
    ) -> None:
        """Prepare the correspondence of F views.

        Args:
            K, R: intrinsics and camera-to-world rotations (F, 3, 3).
            size: (H, W) of the images.
            k: keys are a square of k x k places around each counterpart, k odd.
            neighbours: "ring": the previous and the next view, cyclic; "all": all others, masked behind the camera (as
                in training, those of the ring are not).
        """
        super().__init__()
        if k < 1 or k % 2 == 0:
            raise ValueError(f"k should be odd (got {k})")
        self.K, self.R = (t.detach().cpu().double().expand(len(R), 3, 3) for t in (K, R))
        self.size, self.k, self.kind, self.n_view = size, k, neighbours, len(R)

    def neighbours(self, view: int) -> list[int]:
        """Return the views that a view attends to."""
        if self.kind == "ring":
            return [(view - 1) % self.n_view, (view + 1) % self.n_view]
        return [other for other in range(self.n_view) if other != view]

    def _keys(self, view: int, height: int, width: int) -> Keys:
        scale, others = self.size[0] // height, self.neighbours(view)
        # the reference, which has the ring only, takes the width; all weights were trained on square views
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
        # masked places may be at infinity, and infinity times zero is not zero
        return Keys(torch.tensor(others), places, mask, torch.where(mask[..., None], relation, 0.0))


class DepthGeometry(_Cached):
    """Posed views of known depth (section 4.2), with one key in each view that overlaps enough."""

    def __init__(self, depth: Tensor, c2w: Tensor, K: Tensor, overlap: float = 0.3, released: bool = True) -> None:
        """Prepare the correspondence of F views.

        Args:
            depth: (F, H, W) along the viewing axis, 0 or not finite where unknown, in the unit of the poses, which is
                metres for the released weights.
            c2w: (F, 4, 4), OpenCV axes.
            K: (3, 3) or (F, 3, 3).
            overlap: minimum overlap of views that attend to each other; views without any use the adjacent ones.
            released: as in the training of the released weights, points behind a camera count where their line meets
                the image, and the depth of a key is compared with that of the query in the query's camera.
        """
        super().__init__()
        self.depth, self.c2w, K = (t.detach().cpu().double() for t in (depth, c2w, K))
        self.depth = torch.where((self.depth > 0) & self.depth.isfinite(), self.depth, 0.0)
        self.K, self.n_view, self.released = K.expand(len(depth), 3, 3), len(depth), released
        self.overlap = overlap_fractions(self.depth, self.c2w, self.K, released)
        self._adjacent = overlap_neighbours(self.overlap, overlap)

    def neighbours(self, view: int) -> list[int]:
        """Return the views that a view attends to."""
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
        relation = ((here if self.released else z) - torch.where(mask, there, UNKNOWN_DEPTH)).abs()
        places = counterpart / scale - 0.5
        return Keys(torch.tensor(others), places[:, :, None], mask[:, :, None], relation[:, :, None, None])

    def _camera(self, view: int) -> tuple[Tensor, Tensor]:
        return self.K[view], self.c2w[view]


def token_pixels(height: int, width: int, scale: int) -> Tensor:
    """Return the pixels (T, 2) of the tokens of a map, row by row."""
    return pixel_grid(height, width).flatten(0, 1) * scale + scale // 2


def overlap_neighbours(overlap: Tensor, minimum: float = 0.3) -> list[list[int]]:
    """Return for each view those that overlap it by more than `minimum`; without any, the adjacent ones."""
    count = len(overlap)
    found = [[j for j in range(count) if j != i and overlap[i, j] > minimum] for i in range(count)]
    return [views or [j for j in (i - 1, i + 1) if 0 <= j < count] for i, views in enumerate(found)]
