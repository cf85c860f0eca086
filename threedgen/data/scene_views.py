"""Captioned views of one scene for MVDiffusion: views of a panorama, or views along a camera path with depth."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from threedgen.geometry.views import Views


@dataclass(frozen=True)
class SceneViews:
    """N captioned views of one scene, as the training of MVDiffusion reads them.

    Attributes:
        views: images (N, H, W, 3), in [0, 1], and their cameras.
        captions: one caption per view.
        depth: (N, H, W), metres along the viewing axis, 0 where unknown; None for a panorama.
        condition_views: indices of the views that the model receives as conditions instead of generating them, such as
            the first and the last view of an interpolation.

    Raises:
        ValueError: if the numbers of views or the image sizes of the attributes differ.
    """

    views: Views
    captions: tuple[str, ...]
    depth: Tensor | None = None
    condition_views: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n, height, width, _ = self.views.images.shape
        if len(self.captions) != n:
            raise ValueError(f"number of captions {len(self.captions)} differs from number of views {n}")
        if not all(0 <= index < n for index in self.condition_views):
            raise ValueError(f"condition_views {self.condition_views} are not all in [0, {n})")
        if self.depth is not None and self.depth.shape != (n, height, width):
            raise ValueError(f"depth has shape {tuple(self.depth.shape)} instead of {(n, height, width)}")

    def __len__(self) -> int:
        return len(self.views)


class SceneSource(Protocol):
    """Deterministic list of training scenes. All scenes have `n_view` views of the same image size.

    The registry builds a source under the kind "scene-source" from a config, a seed and a split ("train" or "test").
    `has_depth` of the config states whether the scenes have depth.
    """

    n_view: int

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Return one line of text that names everything that determines the scenes. It is part of the cache key."""

    def scene(self, index: int) -> SceneViews: ...
