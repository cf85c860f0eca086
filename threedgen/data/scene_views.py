"""Captioned views of scenes for MVDiffusion: views of panoramas, and views along camera paths (walks) with depth.

A walk has numbered frames with images, poses, depth and captions. Key frames are a subset of the frames, selected by
the overlap of their images (`geometry.warp`). A training example of n views, called an entry, has n consecutive key
frames, or it is an interpolation: two key frames as inputs of the network, and n - 2 frames between them.
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
    """N captioned views of one scene: a training example of MVDiffusion.

    Attributes:
        views: images (N, H, W, 3), in [0, 1], and their cameras.
        captions: one caption per view.
        depth: (N, H, W), metres along the viewing axis, 0 where unknown; None for a panorama.
        condition_views: indices of the views that are inputs of the network; it generates the other views.
    """

    views: Views
    captions: tuple[str, ...]
    depth: Tensor | None = None
    condition_views: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.views)


class SceneSource(Protocol):
    """List of training examples (entries), each with `n_view` views of one scene, all of the same image size.

    An implementation has `n_view`, `__len__` (number of entries), `scene(index)`, which returns the views of an entry
    as `SceneViews` (images, cameras, captions, depth), and `describe()`, which returns a line of text for the key of
    cached latents. A config selects a source by name (component of the kind "scene-source"). The source is built from
    the config, a seed and a split ("train" or "test"). The attribute `has_depth` of the config states whether the
    entries have depth.
    """

    n_view: int

    def __len__(self) -> int: ...

    def describe(self) -> str:
        """Return one line of text that identifies the training examples: part of the key of their cached latents."""

    def scene(self, index: int) -> SceneViews: ...


class Walk(Protocol):
    """Camera path through a scene, with numbered frames.

    An implementation has two properties and a method. `frames` are the numbers of all frames that may be used as views,
    ascending. `keys` are the numbers of the key frames, ascending: a subset of the frames, selected by the overlap of
    their images. `views(numbers)` reads frames and returns them as `SceneViews` (images, cameras, captions, depth).
    """

    @property
    def frames(self) -> Sequence[int]: ...

    @property
    def keys(self) -> Sequence[int]: ...

    def views(self, numbers: Sequence[int]) -> SceneViews:
        """Return images, cameras, captions and depth of the frames `numbers`. Raises ConfigError if unreadable."""


Entry = tuple[int, int]
"""Entry (k, i) of consecutive key frames: k is the index of the walk; the first key frame is `walks[k].keys[i]`."""


class WalkScenes:
    """Source (`SceneSource`) of training examples (entries) from walks, the camera paths through scenes.

    Key frames are frames of a walk that are selected by the overlap of their images. An entry has `n_view` frames of
    one walk, as one of two kinds:

    - Consecutive key frames, completed by random other frames if there are too few. The network generates all of them.
    - An interpolation: two key frames as first and last view, and frames between them. The two are inputs of the
      network, which generates the others.

    Entries are random or, with the argument `entries`, given. Given entries are always consecutive key frames, and
    `seed`, `between` and `count` do not select them.

    Args:
        walks: camera paths. Random entry i is from walk i % len(walks).
        n_view: number of views per entry.
        description: one line of text, different for different walks. It is part of the key of cached latents.
        seed: seed of random entries; entry i depends only on the seed and i.
        between: probability that a random entry is an interpolation, in [0, 1], if `n_view` is above 2.
        count: number of random entries; None: the number of walks.
        entries: pairs (k, i), one per entry, for the key frames from `walks[k].keys[i]` on; None: random entries.
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

    `walk.keys` has the numbers of the walk's key frames, a subset selected by image overlap. If it has fewer than
    `n_view` numbers from index `first` on, random other frames of the walk complete the list. `rng` chooses them; None:
    a generator with the seed `first`.
    """
    keys = list(walk.keys[first : first + n_view])
    rng = rng or np.random.default_rng(first)
    others = [number for number in walk.frames if number not in set(keys)] or keys
    missing = n_view - len(keys)
    return keys + [int(n) for n in rng.choice(others, missing, len(others) < missing)]


def between_keys(walk: Walk, n_view: int, rng: np.random.Generator) -> list[int]:
    """Return the frame numbers of a random interpolation: two key frames and `n_view` - 2 frames between them.

    `walk.keys` has the numbers of the walk's key frames, a subset selected by image overlap. The result starts with a
    random one of these numbers, A. It ends with the number B that is 2 places (INTERPOLATED_KEYS) after A in
    `walk.keys`, or 1 place if the walk has only two key frames. Between them are different random frames of the walk
    with numbers between A and B, in random order. If there are too few, the last of these frames (A if there are none)
    is repeated until the result has `n_view` numbers.
    """
    apart = min(INTERPOLATED_KEYS, len(walk.keys) - 1)
    first = int(rng.integers(len(walk.keys) - apart))
    start, end = walk.keys[first], walk.keys[first + apart]
    candidates = [number for number in walk.frames if start < number < end]
    inner = [int(number) for number in rng.permutation(candidates)[: n_view - 2]]
    padding = (inner or [start])[-1:] * (n_view - 2 - len(inner))
    return [start, *inner, *padding, end]


def windows(walks: Sequence[Walk], n_view: int) -> list[Entry]:
    """Divide the key frames of each walk into training examples (entries) of `n_view` consecutive key frames.

    Return a list of pairs (k, i), one per entry: its frames have the numbers `walks[k].keys[i : i + n_view]`. Key
    frames that remain at the end of a walk are not used.
    """
    return [(k, i) for k, walk in enumerate(walks) for i in range(0, len(walk.keys) - n_view + 1, n_view)]
