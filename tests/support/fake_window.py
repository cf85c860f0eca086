"""A window of the live view that nobody sees: two people look into it, and its buttons press themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from threedgen.geometry.rigs import orbit
from threedgen.viewer.live import Eye


def eyes(count: int = 2) -> list[Eye]:
    """People around the object, with screens of different shapes."""
    poses = orbit(2, 0.3, 2.6, 0.7, 8, 8).c2w
    return [Eye(name, poses[name], 0.7, 1.0 + 0.5 * name) for name in range(count)]


class FakeWindow:
    """`presses`: {how often the buttons were asked for: the button pressed then}; what happens is kept in lists.

    With a `file`, what was shown and told is written there when the window is closed.
    """

    url = "http://127.0.0.1:1"

    def __init__(self, presses: dict[str, str] | None = None, file: Path | None = None, people: int = 2) -> None:
        self.presses, self.file, self.people = presses or {}, file, people
        self.asked = self.closed = 0
        self.pictures: list[tuple[int, np.ndarray]] = []
        self.told: list[tuple[float, list[str], bool]] = []

    def eyes(self) -> list[Eye]:
        return eyes(self.people)

    def show(self, eye: Eye, picture: np.ndarray) -> None:
        self.pictures.append((eye.name, picture))

    def tell(self, done: float, lines: list[str], busy: bool) -> None:
        self.told.append((done, lines, busy))

    def pressed(self) -> set[str]:
        self.asked += 1
        return set(filter(None, self.presses.get(str(self.asked), "").split()))

    def close(self) -> None:
        self.closed += 1
        if self.file is not None:
            shapes = [(name, picture.shape, float(picture.std())) for name, picture in self.pictures]
            told: dict[str, Any] = {"pictures": shapes, "told": self.told}
            self.file.write_text(json.dumps(told))
