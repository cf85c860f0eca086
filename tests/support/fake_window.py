"""Stand-in for the window of the live view, with scripted clients and clicks."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import orbit


class FakeWindow:
    """Window that records its calls in lists.

    Args:
        stop_at: number of the query of `stop_clicked` from which it is True; 0: never.
        file: JSON file for the records, written by `close`.
    """

    url = "http://127.0.0.1:1"

    def __init__(self, stop_at: int = 0, file: Path | None = None) -> None:
        self.stop_at, self.file = stop_at, file
        self.asked = self.closed = 0
        self.images: list[tuple[int, np.ndarray]] = []
        self.updates: list[tuple[float, list[str], bool]] = []

    def cameras(self, size: int) -> dict[int, Cameras]:
        """Return cameras of two clients around the object, with different aspect ratios."""
        widths = (size, round(1.5 * size))
        return {k: orbit(2, 0.3, 2.6, 0.7, size, widths[k]).select([k]) for k in range(2)}

    def show(self, client_id: int, image: np.ndarray) -> None:
        self.images.append((client_id, image))

    def update(self, progress: float, lines: list[str], busy: bool) -> None:
        self.updates.append((progress, lines, busy))

    @property
    def stop_clicked(self) -> bool:
        self.asked += 1
        return 0 < self.stop_at <= self.asked

    def close(self) -> None:
        self.closed += 1
        if self.file is not None:
            shapes = [(name, image.shape, float(image.std())) for name, image in self.images]
            updates: dict[str, Any] = {"images": shapes, "updates": self.updates}
            self.file.write_text(json.dumps(updates))
