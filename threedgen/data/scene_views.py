"""Captioned views of one scene for MVDiffusion: a panorama, or a path with depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from threedgen.geometry.views import Views


@dataclass(frozen=True)
class SceneViews:
    """N captioned views of a scene. Raises ValueError if the lengths or sizes differ.

    Attributes:
        depth: (N, H, W), metres along the viewing axis, 0 where unknown; None for a panorama.
        condition_views: indices of the views that the model receives as conditions, such as the first and the last view
            of an interpolation.
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
    """Deterministic training scenes with `n_view` views each, all of one size.

    The registry builds it as "scene-source" from its config, a seed and a split ("train" or "test"). The config's
    `has_depth` is True if the scenes have depth.
    """

    n_view: int

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Return one line with everything that determines the scenes."""

    def scene(self, index: int) -> SceneViews: ...
