"""Walks through scenes: numbered frames with poses, depth and captions, and what is chosen of them to learn from.

Key frames (``geometry.overlap``) are drawn together, and the frames between two of them when these are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np

from threedgen.run.seeding import numpy_generator

from .scene_views import SceneViews


class Walk(Protocol):
    """One walk. ``frames``: the numbers of those that can be used, ``keys``: of the key frames; both ascend."""

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def keys(self) -> Sequence[int]: ...

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Frames by their numbers, with depth. Raises ConfigError naming a file that cannot be read."""
        ...


class Entry(NamedTuple):
    """``n_view`` consecutive key frames of a walk, from its key frame number ``first`` on."""

    walk: int
    first: int


class WalkScenes:
    """A source (``SceneSource``) of ``n_view`` views of walks, with depth.

    Entry ``index`` is of the walk index % len(walks), random by (``seed``, index): consecutive key frames or, in the
    share ``between`` of the entries, frames between two key frames which are given. With ``entries`` these, and no
    others, in their order. ``told``: what decides the walks, in a line.
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        n_view: int,
        told: str,
        seed: int = 0,
        between: float = 0.0,
        apart: int = 2,
        count: int | None = None,
        entries: Sequence[Entry] | None = None,
    ) -> None:
        self.walks, self.n_view, self.told, self.seed = walks, n_view, told, seed
        self.between, self.apart, self.entries = between, apart, entries
        self.count = len(entries) if entries is not None else count or len(walks)

    def __len__(self) -> int:
        return self.count

    def describe(self) -> str:
        way = f"{len(self)} chosen" if self.entries is not None else f"seed {self.seed}"
        return f"{self.n_view} views of walks, {way}, {self.between:g} between keys {self.apart} apart, of {self.told}"

    def scene(self, index: int) -> SceneViews:
        if self.entries is not None:
            walk = self.walks[self.entries[index].walk]
            return walk.views(window(walk, self.n_view, self.entries[index].first))
        rng, walk = numpy_generator(self.seed, index, "walks"), self.walks[index % len(self.walks)]
        if self.n_view > 2 and len(walk.keys) > 1 and rng.random() < self.between:
            views = walk.views(between_keys(walk, self.n_view, rng, self.apart))
            return replace(views, given=(0, self.n_view - 1))
        first = int(rng.integers(max(1, len(walk.keys) - self.n_view + 1)))
        return walk.views(window(walk, self.n_view, first, rng))


def window(walk: Walk, n_view: int, first: int, rng: np.random.Generator | None = None) -> list[int]:
    """Numbers of ``n_view`` key frames from the key frame ``first`` on; too few are filled up with other frames."""
    found = list(walk.keys[first : first + n_view])
    rng = rng or np.random.default_rng(first)
    others = [number for number in walk.frames if number not in set(found)] or found
    return found + [int(n) for n in rng.choice(others, n_view - len(found), len(others) < n_view - len(found))]


def between_keys(walk: Walk, n_view: int, rng: np.random.Generator, apart: int = 2) -> list[int]:
    """Numbers of a key frame, ``n_view`` - 2 random frames, and the key frame ``apart`` key frames later.

    What lies between is in random order; if it is too little, the last is repeated.
    """
    apart = min(apart, len(walk.keys) - 1)
    place = int(rng.integers(len(walk.keys) - apart))
    start, end = walk.keys[place], walk.keys[place + apart]
    inner = [number for number in walk.frames if start < number < end]
    chosen = [int(number) for number in rng.permutation(inner)[: n_view - 2]]
    padding = (chosen or [start])[-1:] * (n_view - 2 - len(chosen))
    return [start, *chosen, *padding, end]


def windows(walks: Sequence[Walk], n_view: int) -> list[Entry]:
    """Lists the entries that cover the key frames of walks without a common one; rests are left out."""
    return [Entry(k, i) for k, walk in enumerate(walks) for i in range(0, len(walk.keys) - n_view + 1, n_view)]
