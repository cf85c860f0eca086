"""Captioned views of one scene, what MVDiffusion learns from and draws: of a panorama, or along a path with depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from threedgen.geometry.views import Views


@dataclass(frozen=True)
class SceneViews:
    """N views of a scene, what each of them shows in words, and where it is known how far that is.

    depth (N,H,W): metres along the viewing axis, 0 where it is unknown; of a panorama there is none, its cameras only
    turn. given: places of the views that are known beforehand while the others are drawn, such as the first and last of
    an interpolation. Raises ValueError if the parts are not of equally many views of one size.
    """

    views: Views
    captions: tuple[str, ...]
    depth: Tensor | None = None
    given: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n, height, width, _ = self.views.images.shape
        if len(self.captions) != n:
            raise ValueError(f"{n} views have {len(self.captions)} captions")
        if not all(0 <= place < n for place in self.given):
            raise ValueError(f"of {n} views, number {max(self.given)} cannot be given")
        if self.depth is not None and self.depth.shape != (n, height, width):
            raise ValueError(f"depth {tuple(self.depth.shape)} does not fit {n} views of {height} x {width} pixels")

    def __len__(self) -> int:
        return len(self.views)


class SceneSource(Protocol):
    """Scenes to learn from, all with ``n_view`` views of one size; scene ``index`` is always the same.

    Built by the registry's kind "scene-source" from its config, a seed and a split, "train" or "test"; the config's
    ``shows_depth`` says whether the scenes have depth.
    """

    n_view: int

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """What decides the scenes, in a line."""

    def scene(self, index: int) -> SceneViews: ...
