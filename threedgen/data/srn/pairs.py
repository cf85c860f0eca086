"""Pairs of views for training novel-view models, from an SRN archive or another source of scenes.

Decoding the 50 images of a scene takes longer than a training step, so views are cached on disk as images or latents.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from threedgen.config.errors import ConfigError
from threedgen.data.files import files_hash, warn_left_out
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import Views
from threedgen.run.arrays import Array
from threedgen.run.cache import BlockCache

from .options import SRNPairsConfig
from .reader import open_instance
from .scene_files import image_files, scenes, split_folder

Indices = Sequence[int] | Array


class PairSource(Protocol):
    """Source of scenes with several views each, for training novel-view models on pairs of views of a scene.

    An implementation has the attributes below, `__len__` (number of scenes), `scene(index)`, which returns all views
    (images and cameras) of a scene, and `describe()`, which returns a line of text for the key of the cache of views
    (`PairCache`). A config selects a source by name (component of the kind "pair-source"). The source is built from the
    config, an image size and a seed.

    Attributes:
        views: number of views of each scene.
        n_families: number of object families (kinds of objects, such as cars), 1 if all scenes count as one family.
            Scene i belongs to the family i % n_families.
    """

    views: int
    n_families: int

    def __len__(self) -> int: ...

    def scene(self, index: int) -> Views:
        """Return all views of the scene `index`. Raises ConfigError if a file is unreadable."""

    def describe(self) -> str:
        """Return one line of text for the key of the cache of views (`PairCache`); it differs if the images differ."""


class ArchiveScenes:
    """Source of the scenes of a split of the SRN archives, sorted by name, with images of `size` x `size` pixels.

    It is a `PairSource` for training novel-view models. SRN: Scene Representation Networks. Each scene has as many
    views as most scenes; further views of a scene are not used. Scenes with fewer views, or with an image or a pose
    missing, are left out with a warning. The constructor raises ConfigError if no scene is left.
    """

    n_families = 1

    def __init__(self, config: SRNPairsConfig, size: int, seed: int = 0) -> None:
        self.config, self.size = config, size
        files, problems = dict[Path, list[Path]](), list[str]()
        for folder in scenes(split_folder(config.path, config.split)):
            try:
                files[folder] = image_files(folder, min_views=2)
            except ConfigError as error:
                problems.append(error.problem)
        self.views = Counter(map(len, files.values())).most_common(1)[0][0] if files else 0
        few = {folder: len(images) for folder, images in files.items() if len(images) < self.views}
        problems += [f"{folder} has {count} views instead of {self.views}" for folder, count in few.items()]
        self.files = {folder: images for folder, images in files.items() if folder not in few}
        self.folders = list(self.files)
        warn_left_out(problems, len(self), "scenes")

    def __len__(self) -> int:
        return len(self.folders)

    def scene(self, index: int) -> Views:
        instance = open_instance(self.folders[index], self.config.up)
        if not np.allclose(instance.K, instance.K[0], rtol=0, atol=1e-3 * instance.height):
            raise ConfigError(
                f"{instance.folder} has views with different intrinsics. 3DiM needs the same for all views."
            )
        return instance.views(range(self.views), self.size)

    def describe(self) -> str:
        files = list[Path]()
        for folder, images in self.files.items():
            poses = [folder / "pose" / f"{image.stem}.txt" for image in images]
            files += [*images, *poses, folder / "intrinsics.txt", *sorted(folder.glob("intrinsics/*.txt"))]
        return f"{self.folders[0].parent.resolve()}, {len(self)} scenes, up {self.config.up}, {files_hash(files)}"


class PairCache:
    """Disk cache of all views of all scenes of a source, as images or latents. `views` and `pairs` read from the cache.

    A scene is read from the source and encoded on first use.

    Args:
        folder: folder of the cache files.
        source: scenes to cache.
        size: image side, pixels.
        held_out: number of scenes at the end of the source that are not used for training; fewer than all.
        encode: function from images (V, H, W, 3), in [0, 1], to latents (V, C, h, w), which are stored as float16;
            None: the images are stored with 8 bits per channel.
        encoder: text that identifies `encode`, part of the cache key; different functions need different texts.
    """

    def __init__(
        self,
        folder: Path,
        source: PairSource,
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
        """Return one view of each of B scenes.

        Args:
            scenes: (B,), indices of the scenes.
            views: (B,), index of the view in each scene.

        Returns:
            Images (B, H, W, 3) in [0, 1], or latents (B, C, h, w) if the cache has the argument `encode`;
            camera-to-world poses (B, 4, 4), OpenGL axes; and intrinsics K (B, 3, 3), always in pixels of the images.
        """
        for index in self.cache.missing_blocks(scenes):
            self.fill(index)
        entries = np.stack([self.cache[scene][view] for scene, view in zip(scenes, views, strict=True)])
        x, camera = (torch.from_numpy(np.ascontiguousarray(entries[field])).float() for field in ("view", "camera"))
        c2w, K = camera[:, :16].unflatten(1, (4, 4)), camera[:, 16:].unflatten(1, (3, 3))
        return x / 255 if self.encode is None else x, c2w, K

    def pairs(self, scenes: Indices, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample two different random views of each of the B `scenes`: a condition and a target.

        Returns:
            Conditions and targets, each as images (B, H, W, 3) in [0, 1], or as latents (B, C, h, w) if the cache has
            the argument `encode`. Camera-to-world poses (B, 2, 4, 4), OpenGL axes, with the condition at index 0 and
            the target at index 1. Intrinsics K (B, 3, 3) of the conditions, always in pixels of the images.
        """
        count = self.source.views
        first = rng.integers(0, count, len(scenes))
        second = (first + rng.integers(1, count, len(scenes))) % count
        (x, c2w, K), (y, c2w_target, _) = self.views(scenes, first), self.views(scenes, second)
        return x, y, torch.stack([c2w, c2w_target], dim=1), K
