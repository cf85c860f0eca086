"""Pairs of views for training novel-view models, from an SRN archive or the marked toybox.

Decoding and resizing the 50 images of a scene costs more than a training step on it, so a scene is read once and cached
in the form that the model takes.
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

N_NEAREST = 6
"""Neighbours of a view; of 50 random views about those within 35 degrees."""
Indices = Sequence[int] | Array


class ArchiveScenes:
    """Scenes of a split, sorted by name, at `size` pixels per side. All have as many views as the first one."""

    n_families = 1
    """Families of objects; scenes of one family have equal index modulo `n_families`."""

    def __init__(self, config: SRNPairsConfig, size: int) -> None:
        self.config, self.size = config, size
        self.folders = scenes(split_folder(config.path, config.split))
        self.views = len(open_instance(self.folders[0], config.up))

    def __len__(self) -> int:
        return len(self.folders)

    def scene(self, index: int) -> Views:
        """Read all views of a scene. Raises ConfigError for an unreadable file."""
        instance = open_instance(self.folders[index], self.config.up)
        if len(instance) < self.views:
            wrong = f"{instance.folder} has {len(instance)} views, but {self.folders[0].name} has {self.views}"
            raise ConfigError(f"{wrong}. All scenes of a split need the same number.")
        return instance.views(range(self.views), self.size)

    def describe(self) -> str:
        """Return one line with everything that determines the images."""
        return f"{self.folders[0].parent.resolve()}, {len(self)} scenes, up {self.config.up}"


class ToyboxScenes:
    """Marked cars and chairs in alternation, equal to the training scenes of `make-srn-toybox` with the same seed."""

    def __init__(self, config: ToyboxPairsConfig, size: int, seed: int) -> None:
        self.count, self.views, self.n_families = config.scenes, config.views, len(config.families)
        counts = {"train": config.scenes, "train_views": config.views}
        self.config = MakeSRNToyboxConfig(
            task="make-srn-toybox", seed=seed, families=config.families, size=size, **counts
        )

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Views:
        number, family = divmod(index, self.n_families)
        return scene(self.config, Job(self.config.families[family], "train", number))

    def describe(self) -> str:
        return f"marked toybox, seed {self.config.seed}, {', '.join(self.config.families)}, {self.count} scenes"


Source = ArchiveScenes | ToyboxScenes


def open_source(config: SRNPairsConfig | ToyboxPairsConfig, size: int, seed: int) -> Source:
    """Build the source of a config, with images of `size` pixels per side. Raises ConfigError."""
    return ArchiveScenes(config, size) if isinstance(config, SRNPairsConfig) else ToyboxScenes(config, size, seed)


class PairBank:
    """Disk cache of the views of a source's scenes. Raises ConfigError if no scenes are left for training.

    Args:
        size: image side, pixels.
        held_out: number of last scenes not used for training.
        encode: maps images (V, H, W, 3) to latents (V, C, h, w), stored as float16; None: store the images, 8 bits.
        encoder: text that determines the encoding.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        size: int,
        held_out: int,
        encode: Callable[[Tensor], Tensor] | None = None,
        encoder: str = "",
    ) -> None:
        if len(source) <= held_out:
            raise ConfigError(f"there are {len(source)} scenes, too few to hold out {held_out}", "data")
        self.source, self.encode, self.size = source, encode, size
        self.train, self.held_out = len(source) - held_out, held_out
        count, views = len(source), source.views
        one = torch.zeros(1, size, size, 3)
        shape, dtype = (one.shape[1:], np.uint8) if encode is None else (encode(one).shape[1:], np.float16)
        text = f"{source.describe()}\n{views} views of {size} px\n{encoder}\n"
        entry = np.dtype([("view", dtype, tuple(shape)), ("camera", np.float32, (25,))])
        self.cache = BlockCache(folder, "views", count, (views,), entry, text)

    def fill(self, index: int) -> None:
        """Read, encode and store a scene."""
        views = self.source.scene(index)
        entries = np.empty(len(views), self.cache.dtype)
        if self.encode is None:
            entries["view"] = to_uint8(views.images)
        else:
            latents = [self.encode(part) for part in views.images.split(16)]
            entries["view"] = torch.cat(latents).float().cpu().numpy()
        entries["camera"] = torch.cat([views.cameras.c2w.flatten(1), views.cameras.K.flatten(1)], dim=1).numpy()
        self.cache.store(index, entries[None])

    def views(self, scenes: Indices, views: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """Return one view per scene: images (B, H, W, 3) or latents (B, C, h, w), c2w (B, 4, 4), K (B, 3, 3)."""
        for index in self.cache.missing_blocks(scenes):
            self.fill(index)
        entries = np.stack([self.cache[scene][view] for scene, view in zip(scenes, views, strict=True)])
        x, camera = (torch.from_numpy(np.ascontiguousarray(entries[field])).float() for field in ("view", "camera"))
        c2w, K = camera[:, :16].unflatten(1, (4, 4)), camera[:, 16:].unflatten(1, (3, 3))
        return x / 255 if self.encode is None else x, c2w, K

    def pairs(
        self, scenes: Indices, rng: np.random.Generator, near: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample two views of each scene: conditions, targets (as from `views`), c2w (B, 2, 4, 4) and K (B, 3, 3).

        `near`: share of pairs whose target is one of the `N_NEAREST` neighbours of the condition.
        """
        count = self.source.views
        first = rng.integers(0, count, len(scenes))
        second = (first + rng.integers(1, count, len(scenes))) % count
        for k in np.flatnonzero(rng.random(len(scenes)) < near).tolist():
            second[k] = rng.choice(self.neighbours(int(scenes[k]), int(first[k])))
        (x, c2w, K), (y, c2w_target, _) = self.views(scenes, first), self.views(scenes, second)
        return x, y, torch.stack([c2w, c2w_target], dim=1), K

    def neighbours(self, scene: int, view: int) -> Array:
        """Return the `N_NEAREST` views of a scene whose camera directions from the origin are closest to `view`'s."""
        for block in self.cache.missing_blocks([scene]):
            self.fill(block)
        position = self.cache[scene]["camera"][:, [3, 7, 11]]
        direction = position / np.linalg.norm(position, axis=1, keepdims=True)
        order = np.argsort(-(direction @ direction[view]), kind="stable")
        return order[order != view][:N_NEAREST]
