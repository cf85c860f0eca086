"""The meter: a mesh is photographed from all around, a classifier looks at each picture, and the ring is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from threedgen.config import registry
from threedgen.data.coloured_mesh import Array, ColouredMesh, EmptyMesh
from threedgen.evaluation.metrics.figures import SIDES
from threedgen.evaluation.metrics.fronts import RingResult, classify_ring
from threedgen.evaluation.tables import thumbnails
from threedgen.export.run_field import open_field
from threedgen.export.surface.pictures import field_renderer
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w

from .classifiers import ViewClassifier
from .options import MeterConfig

SHOWN = 96
"""Pixels of a view on a sheet and in a report."""
FAINT = 0.1
"""A field whose opacity is below this in every pixel shows nothing."""


class RunField:
    """The field in the newest checkpoint of the run in ``folder``. Raises ConfigError if there is none that fits."""

    plain = False

    def __init__(self, folder: Path) -> None:
        config, field, occupancy, _ = open_field(folder)
        self.draw, self.folder = field_renderer(field, occupancy, config.march), folder

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """Renders (V, size, size, 3) in [0, 1] from c2w (V, 4, 4), always unlit. Raises EmptyMesh."""
        pose = torch.from_numpy(np.asarray(c2w, np.float32))
        projection = Projection.perspective(torch.full((len(pose),), fov), size, size)
        colours, opacity = self.draw(Cameras(pose, projection, size, size))
        if opacity.max() < FAINT:
            raise EmptyMesh(f"{self.folder} is empty: its field shows nothing")
        there = opacity[..., None]
        views: Array = colours * there + background * (1 - there)
        return views


@dataclass(frozen=True)
class Reading:
    """Views (V, S, S, 3) of a mesh, floats in [0, 1] or uint8, and the probability of each side in them (V, 4)."""

    views: Array
    sides: Array

    def small(self) -> Reading:
        """Shrinks the views to ``SHOWN`` pixels at most, as uint8, so that many can be kept."""
        return Reading(thumbnails(self.views, SHOWN), self.sides)


def view_labels(sides: Array) -> list[str]:
    """Words the likeliest side in each view (V, 4), and how likely: "front 0.93"."""
    return [f"{SIDES[int(view.argmax())]} {view.max():.2f}" for view in np.asarray(sides)]


class Meter:
    """Raises ConfigError if the classifier cannot be loaded."""

    def __init__(self, config: MeterConfig) -> None:
        self.config = config
        self.classifier: ViewClassifier = registry.build("view-classifier", config.classifier)
        self.azimuth = 2 * np.pi * np.arange(config.n_view) / config.n_view
        same = torch.ones(config.n_view)
        ring = torch.from_numpy(self.azimuth).float()
        self.c2w = orbit_c2w(np.deg2rad(config.elevation) * same, ring, config.distance * same).numpy()

    def classify(self, mesh: ColouredMesh | RunField, prompt: str, light: bool | None = None) -> Reading:
        """Photographs and classifies. ``light``: shade as the toybox is; None: only what has no colour of its own."""
        config, light = self.config, mesh.plain if light is None else light
        views = mesh.render(self.c2w, np.deg2rad(config.fov), config.size, config.background, light)
        sides = self.classifier.sides(torch.from_numpy(views), prompt).double().numpy()
        return Reading(views, sides)

    def judge(self, sides: Array, threshold: float, free: bool = False) -> RingResult:
        """Judges the sides (V, 4) of a ring of views."""
        return classify_ring(sides, self.azimuth, threshold, free)

    def likeness(self, views: Array, prompts: Sequence[str]) -> list[float] | None:
        """Rates how well a mesh fits each prompt, mean over its views."""
        found = self.classifier.likeness(torch.from_numpy(views), prompts)
        return None if found is None else found.double().mean(0).tolist()
