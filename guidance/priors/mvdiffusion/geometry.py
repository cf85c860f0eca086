"""Tables of corresponding positions in the feature maps of views, from homographies (panoramas) or from depth.

With s image pixels per token, token n of a row of a feature map (h, w) stands for pixel s/2 + s n of the image. If
pixel p of another view shows the same point, the corresponding position in its feature map is p/s - 0.5. Cameras have
OpenCV axes, and the centre of the first pixel is (0, 0). Tables are computed in float64 on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from threedgen.geometry import warp
from threedgen.guidance.options import MIN_OVERLAP

UNKNOWN_DEPTH = 1e6
"""Depth in metres that is assumed for a key if its depth, or the depth of the query, is unknown."""


@dataclass(frozen=True)
class KeyPositions:
    """Positions in n other views to which the T tokens of one view attend, P positions per token and other view.

    A token is a cell of a view's feature map. In a panorama P = k k: a square of k x k positions around the place where
    the other view shows the token's 3D point. For views with depth P = 1: only this place. For MVDiffusion's published
    weights, `mask` and `relation` of views with depth differ from the rules below; see the argument `as_released` of
    `DepthGeometry`.

    Attributes:
        views: (n,) int64, indices of the n other views in the scene, from 0.
        places: (n, T, P, 2), positions (x, y) in the feature maps of these views, in tokens; the first token is (0, 0).
        mask: (n, T, P), 1 where the token may use the position, else 0. Panoramas: 1 if the position is inside the
            image. Views with depth: 1 if the depths at the token and at the position are known, and the token's 3D
            point is in front of the other camera.
        relation: (n, T, P, r), input of the positional encoding. Panoramas (r = 2): displacement (x, y) in tokens, from
            the token to the position projected into the token's view. Views with depth (r = 1): |z - d| in the unit of
            the poses, where z is the depth of the token's 3D point from the other camera, and d is the other view's
            depth map at the position.
    """

    views: Tensor
    places: Tensor
    mask: Tensor
    relation: Tensor

    def to(self, device: torch.device) -> "KeyPositions":
        return KeyPositions(self.views.to(device), *(t.to(device, torch.float32) for t in self.tables))

    @staticmethod
    def stack(keys: "Sequence[KeyPositions]") -> "KeyPositions":
        """Stack the positions of G views into one object: each tensor gets a new first dimension of length G.

        All views must have equally many tokens, other views, and positions per token and other view.
        """
        columns = zip(*((each.views, *each.tables) for each in keys), strict=True)
        return KeyPositions(*(torch.stack(column) for column in columns))

    def tokens(self, start: int, stop: int) -> "KeyPositions":
        """Return a copy for a part of the tokens that attend: only the tokens `start` to `stop` - 1 of each view.

        Call it on a result of `stack`, the joined positions of G views with T tokens each. Of its tensors, `places`,
        `mask` and `relation` are (G, n, T, ...), where n is the number of other views, and are cut along T. `views`
        (G, n), the indices of the other views, stays as it is.
        """
        return KeyPositions(self.views, *(t[:, :, start:stop] for t in self.tables))

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.places, self.mask, self.relation

    @property
    def count(self) -> int:
        """Number of positions that a token attends to: n P, for n other views with P positions each."""
        return self.places.shape[0] * self.places.shape[2]


class Geometry:
    """Base class of tables that tell attention which positions in other views show the same 3D point as a token.

    A token is a cell of a view's feature map. A subclass implements `_keys(view, height, width)`: it returns the
    table of one view, a `KeyPositions`, for feature maps of height x width tokens. The method `keys` calls it for all
    `n_view` views of the scene and caches the results.
    """

    def __init__(self, n_view: int) -> None:
        self.n_view = n_view
        self._cache: dict[tuple[int, int, torch.device], list[KeyPositions]] = {}

    def keys(self, height: int, width: int, device: torch.device) -> list[KeyPositions]:
        """Return the positions in other views to which the tokens of each view attend: one `KeyPositions` per view.

        The tokens are the cells of a feature map of height x width. The tensors are on `device`.
        """
        at = (height, width, device)
        if at not in self._cache:
            self._cache[at] = [self._keys(view, height, width).to(device) for view in range(self.n_view)]
        return self._cache[at]

    def _keys(self, view: int, height: int, width: int) -> KeyPositions:
        raise NotImplementedError


class Scenes(Geometry):
    """`Geometry` of a batch of several scenes with equally many views.

    `scenes` has the `Geometry` of each scene. `keys(height, width, device)` joins their results: a list of one
    `KeyPositions` per view, scene after scene. It holds the positions in other views of the same scene that show the
    same 3D points as the view's tokens (cells of its feature map). Its indices of other views start at 0 in each scene;
    they do not count over the batch.
    """

    def __init__(self, scenes: Sequence[Geometry]) -> None:
        super().__init__(scenes[0].n_view)
        self.scenes = scenes

    def keys(self, height: int, width: int, device: torch.device) -> list[KeyPositions]:
        return [keys for scene in self.scenes for keys in scene.keys(height, width, device)]


class PanoramaGeometry(Geometry):
    """Corresponding positions in views from one camera position, by homographies (MVDiffusion, section 4.1).

    A token (cell of a view's feature map) attends to k x k positions around the point that it shows, in the previous
    and in the next view. The views form a closed circle: the last view is the one before the first. `keys` returns the
    positions in the feature maps (`KeyPositions`), from the intrinsics and rotations of the views.
    """

    def __init__(self, K: Tensor, R: Tensor, size: tuple[int, int], k: int = 3) -> None:
        """Store the cameras of F views.

        Args:
            K: intrinsics in pixels of the images (F, 3, 3).
            R: camera-to-world rotations (F, 3, 3), OpenCV axes.
            size: (H, W) of the images in pixels.
            k: odd number. A token attends to a square of k x k positions, one token apart, in the feature map of
                another view. The centre of the square is the place that shows the token's 3D point.
        """
        super().__init__(len(R))
        self.K, self.R = (t.detach().cpu().double().expand(len(R), 3, 3) for t in (K, R))
        self.size, self.k = size, k

    def neighbours(self, view: int) -> list[int]:
        return [(view - 1) % self.n_view, (view + 1) % self.n_view]

    def _keys(self, view: int, height: int, width: int) -> KeyPositions:
        scale, others = self.size[0] // height, self.neighbours(view)
        # the reference implementation divides the width by the map's height; in training, views are square
        key_scale = self.size[1] // height
        pixels = token_pixels(height, width, scale)
        there = warp.homography(self.K[view], self.R[view], self.K[others], self.R[others])
        counterpart, _ = warp.apply_homography(there, pixels)  # points behind a camera are not masked
        around = torch.arange(-(self.k // 2), self.k // 2 + 1, dtype=torch.float64)
        square = torch.cartesian_prod(around, around)  # x outside, y inside
        places = counterpart[:, :, None] / key_scale - 0.5 + square
        targets = (places + 0.5) * key_scale
        limits = torch.tensor([self.size[1], self.size[0]], dtype=torch.float64)
        mask = ((targets > 0) & (targets < limits)).all(-1)
        back, _ = warp.apply_homography(torch.linalg.inv(there), targets.flatten(1, 2))
        relation = (back.view_as(targets) - pixels[:, None]) / scale
        # masked positions may be infinite, and infinity times zero is NaN
        return KeyPositions(torch.tensor(others), places, mask, torch.where(mask[..., None], relation, 0.0))


class DepthGeometry(Geometry):
    """Corresponding positions in posed views with known depth (MVDiffusion, section 4.2).

    It is built from the depth maps and cameras of F views. `keys(height, width, device)` returns one `KeyPositions` per
    view: for each token (cell of the view's feature map), the positions in other views that show its 3D point. Two
    views attend to each other if more than a given fraction of the pixels of each, 0.3 by default, projects into the
    image of the other. A view without such a partner attends to the previous and the next view, if they exist.
    """

    def __init__(
        self, depth: Tensor, c2w: Tensor, K: Tensor, overlap: float = MIN_OVERLAP, as_released: bool = True
    ) -> None:
        """Store the depth and the cameras of F views, and compute which views overlap.

        Args:
            depth: (F, H, W), depth along the viewing axis in the unit of the poses (metres for the authors' weights); 0
                or not finite where unknown.
            c2w: camera-to-world poses (F, 4, 4), OpenCV axes.
            K: intrinsics in pixels of the depth maps, (3, 3) for all views or (F, 3, 3).
            overlap: two views attend to each other if, in each of them, the 3D points of more than this fraction of all
                pixels project into the image of the other. A view without such a partner attends to the previous and
                the next view.
            as_released: whether to repeat two inaccuracies of the code that trained the authors' weights; True for
                these weights:

                - The positional encoding compares the depth of a token's 3D point with the depth map of the other view.
                  The point's depth is measured from the token's own camera. False: from the other camera.
                - Points behind the other camera are used and count as overlap. False: they are masked and do not count.
        """
        super().__init__(len(depth))
        self.depth, self.c2w, K = (t.detach().cpu().double() for t in (depth, c2w, K))
        self.depth = torch.where((self.depth > 0) & self.depth.isfinite(), self.depth, 0.0)
        self.K, self.as_released = K.expand(len(depth), 3, 3), as_released
        self.overlap = warp.overlap_fractions(self.depth, self.c2w, self.K, as_released)
        self._adjacent = overlap_neighbours(self.overlap, overlap)

    def _keys(self, view: int, height: int, width: int) -> KeyPositions:
        scale = self.depth.shape[1] // height
        pixels, others = token_pixels(height, width, scale), self._adjacent[view]
        here = warp.sample_nearest(self.depth[view], pixels)
        found = [warp.reproject(pixels, here, *self._camera(view), *self._camera(other)) for other in others]
        counterpart, z = (torch.stack(part) for part in zip(*found, strict=True))
        there = torch.stack(
            [warp.sample_nearest(self.depth[other], at) for other, at in zip(others, counterpart, strict=True)]
        )
        mask = (here > 0) & (there > 0) & (self.as_released | (z > 0))
        relation = ((here if self.as_released else z) - torch.where(mask, there, UNKNOWN_DEPTH)).abs()
        places = counterpart / scale - 0.5
        return KeyPositions(torch.tensor(others), places[:, :, None], mask[:, :, None], relation[:, :, None, None])

    def _camera(self, view: int) -> tuple[Tensor, Tensor]:
        return self.K[view], self.c2w[view]


def token_pixels(height: int, width: int, scale: int) -> Tensor:
    """Return the image position (x, y) of each token of a feature map, row by row: (height * width, 2), float64.

    A token is a cell of the feature map and covers scale x scale image pixels. Token n of a row or column is at
    scale * n + scale // 2, where 0 is the centre of the first pixel.
    """
    return warp.pixel_grid(height, width).flatten(0, 1) * scale + scale // 2


def overlap_neighbours(overlap: Tensor, minimum: float) -> list[list[int]]:
    """Return for each of F views the list of indices of the views that it attends to.

    View i attends to the views j with overlap[i, j] > `minimum`; if there are none, to i - 1 and i + 1, if they exist.
    `overlap` (F, F) holds the smaller of two fractions: pixels of view i whose 3D points project into the image of
    view j, and the reverse.
    """
    count = len(overlap)
    found = [[j for j in range(count) if j != i and overlap[i, j] > minimum] for i in range(count)]
    return [views or [j for j in (i - 1, i + 1) if 0 <= j < count] for i, views in enumerate(found)]
