"""Pairs of views for the training of novel-view models: from an archive, or straight from the marked toybox.

Opening, decoding and resizing 50 pictures of a scene costs more than a training step spends on it, so a scene is read
once and then taken from a cache, in the form in which the model wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array
from threedgen.run.cache import BlockCache

from .layout import scenes, split_folder
from .make import Job, scene
from .options import MakeSRNToyboxConfig, SRNPairsConfig, ToyboxPairsConfig
from .reader import open_instance

NEAREST = 6
"""Of 50 random views about those within 35 degrees."""
Places = Sequence[int] | Array


class ArchiveScenes:
    """The scenes of a split, in the order of their names, ``size`` pixels a side, with equally many ``views``; those of
    one kind are ``kinds`` places apart."""

    kinds = 1

    def __init__(self, config: SRNPairsConfig, size: int) -> None:
        """Raises ConfigError if there are none; the first one says how many views each of them has."""
        self.config, self.size = config, size
        self.folders = scenes(split_folder(config.path, config.split))
        self.views = len(open_instance(self.folders[0], config.up))

    def __len__(self) -> int:
        return len(self.folders)

    def scene(self, index: int) -> Views:
        """All views of a scene. Raises ConfigError naming a file that cannot be read."""
        instance = open_instance(self.folders[index], self.config.up)
        if len(instance) < self.views:
            raise ConfigError(
                f"{instance.folder} has {len(instance)} views, but {self.folders[0].name} has {self.views}: "
                "all scenes should have as many"
            )
        return instance.views(range(self.views), self.size)

    def describe(self) -> str:
        """What decides the pictures."""
        return f"{self.folders[0].parent.resolve()}, {len(self)} scenes, up {self.config.up}"


class ToyboxScenes:
    """Marked cars and chairs by turns, as ``make-srn-toybox`` with the same seed writes them for training."""

    def __init__(self, config: ToyboxPairsConfig, size: int, seed: int) -> None:
        self.count, self.views, self.kinds = config.scenes, config.views, len(config.families)
        counts = {"train": config.scenes, "train_views": config.views}
        self.config = MakeSRNToyboxConfig(
            task="make-srn-toybox", seed=seed, families=config.families, size=size, **counts
        )

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Views:
        number, family = divmod(index, self.kinds)
        return scene(self.config, Job(self.config.families[family], "train", number))

    def describe(self) -> str:
        return f"marked toybox, seed {self.config.seed}, {', '.join(self.config.families)}, {self.count} scenes"


Source = ArchiveScenes | ToyboxScenes


def open_source(config: SRNPairsConfig | ToyboxPairsConfig, size: int, seed: int) -> Source:
    """What a config describes, in pictures of ``size`` pixels a side. Raises ConfigError."""
    return ArchiveScenes(config, size) if isinstance(config, SRNPairsConfig) else ToyboxScenes(config, size, seed)


class PairBank:
    """Views of the scenes of a ``source``; the last ``held_out`` scenes are not for training.

    ``encode``: pictures (V, H, W, 3) -> what is kept of them (V, C, h, w), as float16; none: the pictures, 8-bit.
    ``told``: what decides the encoding.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        size: int,
        held_out: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        told: str = "",
    ) -> None:
        """Raises ConfigError if no scenes are left to train on."""
        if len(source) <= held_out:
            raise ConfigError(f"there are {len(source)} scenes, too few to hold out {held_out}", "data")
        self.source, self.encode, self.size = source, encode, size
        self.train, self.held_out = len(source) - held_out, held_out
        count, views = len(source), source.views
        one = torch.zeros(1, size, size, 3)
        shape, dtype = (one.shape[1:], np.uint8) if encode is None else (encode(one).shape[1:], np.float16)
        text = f"{source.describe()}\n{views} views of {size} px\n{told}\n"
        entry = np.dtype([("view", dtype, tuple(shape)), ("camera", np.float32, (25,))])
        self.kept = BlockCache(folder, "views", count, (views,), entry, text)

    def fill(self, index: int) -> None:
        """Read and keep a scene."""
        views = self.source.scene(index)
        entries = np.empty(len(views), self.kept.dtype)
        if self.encode is None:
            entries["view"] = to_uint8(views.images)
        else:
            kept = [self.encode(part) for part in views.images.split(16)]
            entries["view"] = torch.cat(kept).float().cpu().numpy()
        entries["camera"] = torch.cat([views.at.c2w.flatten(1), views.at.K.flatten(1)], dim=1).numpy()
        self.kept.store(index, entries[None])

    def views(self, chosen: Places, places: Places) -> tuple[Tensor, Tensor, Tensor]:
        """Of some scenes a view each: what is kept of it, (B, H, W, 3) in [0, 1] or (B, C, h, w), and its camera: pose
        (B, 4, 4) and K (B, 3, 3)."""
        for index in self.kept.lacking(chosen):
            self.fill(index)
        entries = np.stack([self.kept[scene][place] for scene, place in zip(chosen, places, strict=True)])
        kept, numbers = (torch.from_numpy(np.ascontiguousarray(entries[part])).float() for part in ("view", "camera"))
        pose, K = numbers[:, :16].unflatten(1, (4, 4)), numbers[:, 16:].unflatten(1, (3, 3))
        return kept / 255 if self.encode is None else kept, pose, K

    def pairs(
        self, chosen: Places, rng: np.random.Generator, near: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two different views of each scene: conditions, targets, poses of both (B, 2, 4, 4), K (B, 3, 3).

        ``near``: in this share of the pairs the target's camera is one of the ``NEAREST`` to the condition's.
        """
        count = self.source.views
        first = rng.integers(0, count, len(chosen))
        second = (first + rng.integers(1, count, len(chosen))) % count
        for k in np.flatnonzero(rng.random(len(chosen)) < near).tolist():
            second[k] = rng.choice(self.neighbours(int(chosen[k]), int(first[k])))
        (x, pose, K), (y, other, _) = self.views(chosen, first), self.views(chosen, second)
        return x, y, torch.stack([pose, other], dim=1), K

    def neighbours(self, index: int, place: int) -> Array:
        """The views of a scene whose cameras are ``NEAREST`` to that of one of them, as seen from the origin."""
        for lacking in self.kept.lacking([index]):
            self.fill(lacking)
        position = self.kept[index]["camera"][:, [3, 7, 11]]
        toward = position / np.linalg.norm(position, axis=1, keepdims=True)
        order = np.argsort(-(toward @ toward[place]), kind="stable")
        return order[order != place][:NEAREST]
