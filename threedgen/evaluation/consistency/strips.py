"""Draws views side by side: how a figure of consistency looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.geometry.images import grid, one_size, readable, to_uint8, write_png
from threedgen.geometry.views import Views

from .scenes import Scene, evenly

VIEWS = 10
"""Views of a strip: the given one, if there is one, then others evenly chosen from all, in their order."""


class Strips:
    """Collects views of the first ``count`` scenes, a strip for each row."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._strips: dict[str, dict[str, list[np.ndarray]]] = {}

    def add(self, scene: Scene, row: str, views: Views) -> None:
        if scene.name not in self._strips and len(self._strips) >= self.count:
            return
        targets = scene.targets
        chosen = [targets[k] for k in evenly(len(targets), VIEWS - len(scene.condition))]
        strip = list(to_uint8(views.images[[*scene.condition, *chosen]]))
        self._strips.setdefault(scene.name, {})[row] = strip

    def write(self, path: Path) -> None:
        """Writes a line for each scene and row, each as wide as the longest; nothing if there are no strips."""
        lines = [(f"{name} {row}", strip) for name, rows in self._strips.items() for row, strip in rows.items()]
        if not lines:
            return
        columns, nothing = max(len(strip) for _, strip in lines), np.full((1, 1, 3), 255, np.uint8)
        cells = [cell for _, strip in lines for cell in [*strip, *[nothing] * (columns - len(strip))]]
        labels = [text for label, _ in lines for text in [label, *[""] * (columns - 1)]]
        write_png(path, grid(readable(np.stack(one_size(cells))), columns, labels))
