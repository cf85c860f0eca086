"""A picture of views side by side: what a figure of consistency looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.images import grid, readable, to_uint8, write_png
from threedgen.views import Views

from .scenes import Scene

VIEWS = 10
"""Views of a strip: the given one, if there is one, then others evenly chosen from all, in their order."""


class Strips:
    """Collects views of the first ``count`` scenes, a strip for each row."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._strips: dict[tuple[str, str], np.ndarray] = {}

    def add(self, scene: Scene, row: str, views: Views) -> None:
        if scene.name not in {name for name, _ in self._strips} and self._scenes() >= self.count:
            return
        targets = scene.targets
        wanted = VIEWS - len(scene.condition)
        even = np.unique(np.round(np.linspace(0, len(targets) - 1, min(wanted, len(targets)))).astype(int))
        places = [*scene.condition, *(targets[k] for k in even)]
        self._strips[scene.name, row] = to_uint8(views.images[places])

    def write(self, path: Path) -> None:
        """A line for each scene and row, each as wide as the longest; nothing if there are no strips."""
        if not self._strips:
            return
        names = list(dict.fromkeys(name for name, _ in self._strips))
        lines = [(key, strip) for name in names for key, strip in self._strips.items() if key[0] == name]
        shape = tuple(max(strip.shape[axis] for _, strip in lines) for axis in range(3))
        cells, labels = [], []
        for (name, row), strip in lines:
            whole = np.full((*shape, 3), 255, np.uint8)
            whole[: strip.shape[0], : strip.shape[1], : strip.shape[2]] = strip
            cells.append(whole)
            labels += [f"{name} {row}"] + [""] * (shape[0] - 1)
        write_png(path, grid(readable(np.concatenate(cells)), shape[0], labels))

    def _scenes(self) -> int:
        return len({name for name, _ in self._strips})
