"""Measures views of scenes: how well they agree where they overlap, and what the networks for distances see in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threedgen.config import registry
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.metrics.distributions import fid, inception_score, kid
from threedgen.evaluation.metrics.figures import mean
from threedgen.evaluation.metrics.overlap import depth_overlap, given_view, panorama_overlap
from threedgen.geometry.images import to_uint8
from threedgen.geometry.warp import to_opencv

from .features import Caption, Features, Seen
from .options import EvaluateViewsConfig

Kept = NDArray[np.intp]
"""Numbers of the scenes that count."""
SPLITS, SUBSET = 10, 5000
"""Parts of the Inception score; most pictures of which KID makes one estimate."""


@dataclass
class Row:
    """What was measured of one kind of views, scene by scene: ``figures``, None where there is none; what was ``seen``
    in the views."""

    figures: list[dict[str, float | None]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.figures)

    def of(self, name: str) -> list[float | None]:
        """Lists a figure of each scene."""
        return [figures.get(name) for figures in self.figures]

    def stack(self, what: Literal["features", "logits"], kept: Kept) -> np.ndarray:
        """Joins what was seen in the views of some scenes: (N, D) or (N, K)."""
        return np.concatenate([getattr(self.seen[k], what) for k in kept])


class Meter:
    """Keeps the ``rows`` of an evaluation. Raises ConfigError if a network is missing."""

    def __init__(self, config: EvaluateViewsConfig) -> None:
        self.config, self.rows = config, dict[str, Row]()
        self.features: Features = registry.build("features", config.features)
        self.caption = Caption(config.clip) if config.clip else None

    def add(self, row: str, scene: SceneViews, given: Tensor | None = None) -> None:
        """Measures the views of a scene. ``given`` (H,W,3), if view 0 was drawn from it."""
        figures: dict[str, float | None] = {"psnr": overlap(self.config, scene)}
        if given is not None:
            K, c2w = to_opencv(scene.views.cameras)
            figures |= given_view(scene.views.images, given, K, c2w[:, :3, :3])
        pictures = bytes_of(scene.views.images)
        if self.caption is not None:
            figures["clip"] = self.caption(pictures, scene.captions)
        into = self.rows.setdefault(row, Row())
        into.figures.append(figures)
        into.seen.append(Seen(*self.features(pictures)))


def bytes_of(images: Tensor) -> Tensor:
    """Rounds pictures to uint8, as files hold them."""
    return torch.from_numpy(to_uint8(images))


def overlap(config: EvaluateViewsConfig, scene: SceneViews) -> float | None:
    """Averages the PSNR of pairs: neighbours around the ring, or consecutive views of a path."""
    views = scene.views
    if scene.depth is not None:
        return mean(depth_overlap(views.images, scene.depth, *to_opencv(views.cameras), config.depth_error))
    views = views if config.overlap_size is None else views.resized(config.overlap_size)
    K, c2w = to_opencv(views.cameras)
    return mean(panorama_overlap(views.images, K, c2w[:, :3, :3]))


def distances(row: Row, truth: Row) -> dict[str, Callable[[Kept], float]]:
    """Gives the figures of a row that are no means over scenes. Rows of equally many scenes have the same ones: what
    is left out of the one is left out of the other."""
    every = np.arange(len(truth))

    def features(kept: Kept) -> tuple[np.ndarray, np.ndarray]:
        return row.stack("features", kept), truth.stack("features", kept if len(row) == len(truth) else every)

    def inception(kept: Kept) -> float:
        logits = row.stack("logits", kept)
        return inception_score(logits, min(SPLITS, len(logits)))[0]

    def kernel(kept: Kept) -> float:
        ours, true = features(kept)
        return kid(ours, true, 1, min(len(ours), len(true), SUBSET))[0]

    if row is truth:
        return {"is": inception}
    return {"fid": lambda kept: fid(*features(kept)), "kid": kernel, "is": inception}
