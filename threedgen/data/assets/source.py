"""Sources of training images with captions: rendered user assets, and folders of captioned images.

Both implement the interface `threedgen.data.latent_cache.ExampleSource`.
"""

import hashlib
import logging
from pathlib import Path
from typing import Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.data.latent_cache import Captioned
from threedgen.data.photos import SUFFIXES
from threedgen.geometry.image_file import load_image
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator

from .listing import read_rows
from .shards import Entry, Shards, on_grey

logger = logging.getLogger(__name__)
GREY = (0.4, 0.6)  # range of the grey value of backgrounds, as for the toybox


class AssetViews:
    """Training examples (an `ExampleSource`) from rendered assets, which are meshes with captions.

    Example i has `n_view` views, with caption and cameras, of the asset `entries[i % len(entries)]`. The stored views
    of an asset lie on rings of cameras. The views of an example are evenly spaced over the full turn of one random
    ring, counter-clockwise (seen from above) from a random first one. All have the same random grey as background.
    `seed` determines the random choices. With `other` True, an example has other views than with False, on the next
    ring if there are several and halfway between them in azimuth, and another grey. On a single ring of fewer than 2
    `n_view` views, some are the same. The constructor raises ConfigError if `entries` is empty.
    """

    def __init__(self, shards: Shards, entries: list[Entry], seed: int, n_view: int, other: bool = False) -> None:
        if not entries:
            raise ConfigError("no asset is left for training. Lower held_out.", "held_out")
        self.shards, self.entries, self.seed, self.n_view, self.other = shards, entries, seed, n_view, other

    def describe(self) -> str:
        names = hashlib.sha256("\n".join(entry.name for entry in self.entries).encode()).hexdigest()[:16]
        views = f"{self.n_view} {'other ' * self.other}views of assets {self.shards.digest}"
        return f"{views}, {names}, seed {self.seed}, grey {GREY}"

    def render_examples(self, indices: range, size: int, background: Array | None = None) -> Captioned:
        """Return examples as `ExampleSource` says. `background` (3,), in [0, 1], replaces the random grey."""
        rgb, c2w, captions = list[Array](), list[Array](), list[str]()
        for index in indices:
            entry = self.entries[index % len(self.entries)]
            poses, numbers, grey = np.asarray(self.shards.metadata(entry)["c2w"], np.float32), *self.sample(index)
            colour = grey if background is None else background
            rgb += [on_grey(self.shards.image(entry, number), size, colour) for number in numbers]
            c2w.append(poses[numbers])
            captions.append(entry.caption)
        return Captioned(np.stack(rgb), captions, np.concatenate(c2w))

    def fov(self, index: int) -> Array:
        """Return the vertical fields of view (V,) of the views of an example, in radians."""
        metadata = self.shards.metadata(self.entries[index % len(self.entries)])
        return np.asarray(metadata["fov"], np.float64)[self.sample(index)[0]]

    def sample(self, index: int) -> tuple[list[int], float]:
        """Choose the views of training example `index`: `n_view` evenly spaced views on a random ring of cameras.

        Return the indices of these views among all stored views of the asset, and the grey value of the background in
        [0, 1]. The choice depends only on the seed, `index` and `other`.
        """
        rng, n = numpy_generator(self.seed, index, "views of an asset"), self.shards.azimuths
        ring, start, greys = rng.integers(self.shards.rings), rng.integers(n), rng.uniform(*GREY, 2)
        if self.other:
            ring, start = (ring + 1) % self.shards.rings, start + max(1, n // (2 * self.n_view))
        azimuths = (start + np.arange(self.n_view) * n // self.n_view) % n
        return (ring * n + azimuths).tolist(), float(greys[int(self.other)])


class CaptionedImages:
    """Training examples (an `ExampleSource`) of single images without cameras, cropped to their middle square.

    The folder has a captions.csv with the columns file and caption. Training example i is image i % N of the N readable
    images. Unreadable images are skipped with a warning. The constructor raises ConfigError if no image is left.
    """

    n_view = 1

    def __init__(self, folder: Path) -> None:
        self.folder, self.pairs = folder, list[tuple[str, str]]()
        captions = folder / "captions.csv"
        for line, row in read_rows(captions):
            file = row["file"].replace("\\", "/")
            try:
                if Path(file).suffix.lower() not in SUFFIXES or not row["caption"]:
                    raise ConfigError("the line needs an image file and a caption")
                load_image(folder / file, max_side=64)  # the pixels too, as a truncated file has a good header
                self.pairs.append((file, row["caption"]))
            except ConfigError as error:
                logger.warning("left out: %s, line %d (%s)", captions, line, error)
        if not self.pairs:
            raise ConfigError(f"{captions} has no readable image with a caption", "pictures")

    def describe(self) -> str:
        stats = ((file, caption, (self.folder / file).stat()) for file, caption in self.pairs)
        lines = "\n".join(f"{file} {caption} {stat.st_size} {stat.st_mtime_ns}" for file, caption, stat in stats)
        return f"{len(self.pairs)} pictures {hashlib.sha256(lines.encode()).hexdigest()[:16]}"

    def render_examples(self, indices: range, size: int) -> Captioned:
        pairs = [self.pairs[index % len(self.pairs)] for index in indices]
        rgb = np.stack([on_grey(load_image(self.folder / file), size) for file, _ in pairs])
        no_pose = np.tile(np.eye(4, dtype=np.float32), (len(pairs), 1, 1))
        return Captioned(rgb, [caption for _, caption in pairs], no_pose)


def split(shards: Shards, held_out: int, which: Literal["train", "held-out"]) -> list[Entry]:
    """Return the assets of one split: the `held_out` assets that are kept out of training, or all others.

    `which` selects the split. Hashes of the asset names determine it, so most assets stay in the same split when assets
    are added.
    """
    ordered = sorted(shards.entries, key=lambda entry: hashlib.sha256(entry.name.encode()).digest())
    held_out_names = {entry.name for entry in ordered[:held_out]}
    return [entry for entry in shards.entries if (entry.name in held_out_names) == (which == "held-out")]
