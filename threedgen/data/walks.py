"""Training entries from walks: numbered frames with poses, depth and captions.

An entry is a run of consecutive key frames (`geometry.overlap`), or two key frames as conditions and frames between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from threedgen.run.seeding import numpy_generator

from .scene_views import SceneViews


class Walk(Protocol):
    """One walk. `frames`: numbers of the usable frames, `keys`: numbers of the key frames, both in ascending order."""

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def keys(self) -> Sequence[int]: ...

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Return frames by number, with depth. Raises ConfigError for an unreadable file."""
        ...


class Entry(NamedTuple):
    """Window of consecutive key frames: index of the walk, and of the first key frame in it."""

    walk: int
    first: int


class WalkScenes:
    """Source (`SceneSource`) of `n_view` views with depth from walks; entry i comes from walk i % len(walks).

    Args:
        description: one line with everything that determines the walks.
        between: share of interpolation entries: two key frames, `apart` key frames from each other, are conditions.
        count: number of entries; None: one per walk.
        entries: fixed entries instead of random ones, which are keyed by (seed, index).
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        n_view: int,
        description: str,
        seed: int = 0,
        between: float = 0.0,
        apart: int = 2,
        count: int | None = None,
        entries: Sequence[Entry] | None = None,
    ) -> None:
        self.walks, self.n_view, self.description, self.seed = walks, n_view, description, seed
        self.between, self.apart, self.entries = between, apart, entries
        self.count = len(entries) if entries is not None else count or len(walks)

    def __len__(self) -> int:
        return self.count

    def describe(self) -> str:
        mode = f"{len(self)} chosen" if self.entries is not None else f"seed {self.seed}"
        between = f"{self.between:g} between keys {self.apart} apart"
        return f"{self.n_view} views of walks, {mode}, {between}, of {self.description}"

    def scene(self, index: int) -> SceneViews:
        if self.entries is not None:
            walk = self.walks[self.entries[index].walk]
            return walk.views(window(walk, self.n_view, self.entries[index].first))
        rng, walk = numpy_generator(self.seed, index, "walks"), self.walks[index % len(self.walks)]
        if self.n_view > 2 and len(walk.keys) > 1 and rng.random() < self.between:
            views = walk.views(between_keys(walk, self.n_view, rng, self.apart))
            return replace(views, condition_views=(0, self.n_view - 1))
        first = int(rng.integers(max(1, len(walk.keys) - self.n_view + 1)))
        return walk.views(window(walk, self.n_view, first, rng))


def window(walk: Walk, n_view: int, first: int, rng: np.random.Generator | None = None) -> list[int]:
    """Return the numbers of `n_view` key frames from index `first`; random other frames replace missing key frames."""
    keys = list(walk.keys[first : first + n_view])
    rng = rng or np.random.default_rng(first)
    others = [number for number in walk.frames if number not in set(keys)] or keys
    missing = n_view - len(keys)
    return keys + [int(n) for n in rng.choice(others, missing, len(others) < missing)]


def between_keys(walk: Walk, n_view: int, rng: np.random.Generator, apart: int = 2) -> list[int]:
    """Return the numbers of a random key frame, of `n_view` - 2 frames between in random order (the last one repeats if
    there are too few), and of the key frame `apart` key frames later."""
    apart = min(apart, len(walk.keys) - 1)
    first = int(rng.integers(len(walk.keys) - apart))
    start, end = walk.keys[first], walk.keys[first + apart]
    candidates = [number for number in walk.frames if start < number < end]
    inner = [int(number) for number in rng.permutation(candidates)[: n_view - 2]]
    padding = (inner or [start])[-1:] * (n_view - 2 - len(inner))
    return [start, *inner, *padding, end]


def windows(walks: Sequence[Walk], n_view: int) -> list[Entry]:
    """List the windows that cover the key frames of walks without overlap; incomplete windows are dropped."""
    return [Entry(k, i) for k, walk in enumerate(walks) for i in range(0, len(walk.keys) - n_view + 1, n_view)]
