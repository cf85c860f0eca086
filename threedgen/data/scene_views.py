"""Captioned views of scenes for MVDiffusion: views of panoramas, and views along camera paths (walks) with depth.

A walk has numbered frames with poses, depth and captions. Key frames are a subset of the frames, selected by the
overlap of their images (`geometry.warp`). A training entry of n views has n consecutive key frames, or it is an
interpolation: two key frames as inputs of the model, and n - 2 frames between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from threedgen.geometry.views import Views
from threedgen.run.seeding import numpy_generator

INTERPOLATED_KEYS = 2  # distance from the first to the last view of an interpolation, in key frames (paper: 1)


@dataclass(frozen=True)
class SceneViews:
    """N captioned views of one scene: a training entry of MVDiffusion.

    Attributes:
        views: images (N, H, W, 3), in [0, 1], and their cameras.
        captions: one caption per view.
        depth: (N, H, W), metres along the viewing axis, 0 where unknown; None for a panorama.
        condition_views: indices of the views that are inputs of the model; the model generates the other views.
    """

    views: Views
    captions: tuple[str, ...]
    depth: Tensor | None = None
    condition_views: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.views)


class SceneSource(Protocol):
    """Deterministic list of training entries. Each entry has `n_view` views of one scene, all of the same image size.

    The registry builds a source of the kind "scene-source" from a config, a seed and a split ("train" or "test"). The
    attribute `has_depth` of the config states whether the entries have depth.
    """

    n_view: int

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Return one line of text that identifies everything that determines the entries, for the cache key."""

    def scene(self, index: int) -> SceneViews: ...


class Walk(Protocol):
    """Camera path through a scene, with numbered frames.

    `frames` are the numbers of all usable frames, ascending. `keys` are the numbers of the key frames, a subset,
    ascending.
    """

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def keys(self) -> Sequence[int]: ...

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Return the views, with depth, of the frames `numbers`. Raises ConfigError if a file is unreadable."""


Entry = tuple[int, int]
"""Entry of consecutive key frames: index of the walk, and index of the first key frame in `keys` of this walk."""


class WalkScenes:
    """Source (`SceneSource`) of training entries from camera paths (walks). Random entry i is from walk i % len(walks).

    An entry has consecutive key frames, or it is an interpolation: two key frames as inputs, with frames between them.

    Args:
        walks: camera paths.
        n_view: number of views per entry.
        description: one line of text that identifies everything that determines the walks.
        seed: seed of random entries; entry i depends only on the seed and i.
        between: fraction of the entries that are interpolations, in [0, 1].
        count: number of random entries; None: as many as there are walks.
        entries: entries to use instead of random ones: (index of the walk, index of the first key frame).
    """

    def __init__(
        self,
        walks: Sequence[Walk],
        n_view: int,
        description: str,
        seed: int = 0,
        between: float = 0.0,
        count: int | None = None,
        entries: Sequence[Entry] | None = None,
    ) -> None:
        self.walks, self.n_view, self.description, self.seed = walks, n_view, description, seed
        self.between, self.entries = between, entries
        self.count = len(entries) if entries is not None else count or len(walks)

    def __len__(self) -> int:
        return self.count

    def describe(self) -> str:
        mode = f"{len(self)} chosen" if self.entries is not None else f"seed {self.seed}"
        between = f"{self.between:g} between keys {INTERPOLATED_KEYS} apart"
        return f"{self.n_view} views of walks, {mode}, {between}, of {self.description}"

    def scene(self, index: int) -> SceneViews:
        if self.entries is not None:
            number, first = self.entries[index]
            return self.walks[number].views(window(self.walks[number], self.n_view, first))
        rng, walk = numpy_generator(self.seed, index, "walks"), self.walks[index % len(self.walks)]
        if self.n_view > 2 and len(walk.keys) > 1 and rng.random() < self.between:
            views = walk.views(between_keys(walk, self.n_view, rng))
            return replace(views, condition_views=(0, self.n_view - 1))
        first = int(rng.integers(max(1, len(walk.keys) - self.n_view + 1)))
        return walk.views(window(walk, self.n_view, first, rng))


def window(walk: Walk, n_view: int, first: int, rng: np.random.Generator | None = None) -> list[int]:
    """Return the frame numbers of `n_view` consecutive key frames, starting with the key frame `walk.keys[first]`.

    If too few key frames follow, random other frames of the walk complete the list. `rng` selects these frames; None: a
    generator with the seed `first` selects them.
    """
    keys = list(walk.keys[first : first + n_view])
    rng = rng or np.random.default_rng(first)
    others = [number for number in walk.frames if number not in set(keys)] or keys
    missing = n_view - len(keys)
    return keys + [int(n) for n in rng.choice(others, missing, len(others) < missing)]


def between_keys(walk: Walk, n_view: int, rng: np.random.Generator) -> list[int]:
    """Return the frame numbers of a random interpolation: two key frames and `n_view` - 2 frames between them.

    The first number is a random key frame, and the last one is `INTERPOLATED_KEYS` key frames later. The frames between
    the two are random and in random order. If the walk has too few frames there, the last chosen one is repeated, or
    the first key frame if there is none.
    """
    apart = min(INTERPOLATED_KEYS, len(walk.keys) - 1)
    first = int(rng.integers(len(walk.keys) - apart))
    start, end = walk.keys[first], walk.keys[first + apart]
    candidates = [number for number in walk.frames if start < number < end]
    inner = [int(number) for number in rng.permutation(candidates)[: n_view - 2]]
    padding = (inner or [start])[-1:] * (n_view - 2 - len(inner))
    return [start, *inner, *padding, end]


def windows(walks: Sequence[Walk], n_view: int) -> list[Entry]:
    """Divide the key frames of each walk into entries of `n_view` consecutive key frames.

    Return for each entry the index of its walk and the index of its first key frame in `keys` of this walk. The
    remaining key frames at the end of a walk are not used.
    """
    return [(k, i) for k, walk in enumerate(walks) for i in range(0, len(walk.keys) - n_view + 1, n_view)]
