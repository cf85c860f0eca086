"""What a prior learns from users' own assets: sources of ``threedgen.data.bank``.

Several views of an asset come from one ring, evenly around from a random start, on a random grey; single ones, for the
2D share, are such views too, or pictures of a folder.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.data.bank import Captioned
from threedgen.data.photos import SUFFIXES
from threedgen.geometry.picture_file import open_picture, read_picture
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator

from .listing import find, read_rows
from .shards import Entry, Shards
from .sheet import on_grey

logger = logging.getLogger(__name__)
GREY = (0.4, 0.6)
"""Behind the assets, as for the toybox."""


class AssetViews:
    """``n_view`` views of each asset; 1: any one of its views."""

    def __init__(self, shards: Shards, entries: list[Entry], seed: int, n_view: int) -> None:
        """``entries``: those of the shards that are shown. Raises ConfigError if there are none."""
        if not entries:
            raise ConfigError("no asset is left to learn from; take fewer out of it", "held_out")
        self.shards, self.entries, self.seed, self.n_view = shards, entries, seed, n_view

    def describe(self) -> str:
        names = hashlib.sha256("\n".join(entry.name for entry in self.entries).encode()).hexdigest()[:16]
        return f"{self.n_view} views of assets {self.shards.digest}, {names}, seed {self.seed}, grey {GREY}"

    def block(self, indices: range, size: int) -> Captioned:
        rgb, c2w, captions = list[Array](), list[Array](), list[str]()
        for index in indices:
            entry = self.entries[index % len(self.entries)]
            poses, numbers, grey = np.asarray(self.shards.facts(entry)["c2w"], np.float32), *self.chosen(index)
            rgb += [on_grey(self.shards.picture(entry, number), size, grey) for number in numbers]
            c2w.append(poses[numbers])
            captions.append(entry.caption)
        return Captioned(np.stack(rgb), captions, np.concatenate(c2w))

    def chosen(self, index: int) -> tuple[list[int], float]:
        """Numbers of the views of an entry, and the grey behind them."""
        rng, around = numpy_generator(self.seed, index, "views of an asset"), self.shards.azimuths
        ring, start, grey = rng.integers(self.shards.rings), rng.integers(around), rng.uniform(*GREY)
        turns = (start + np.arange(self.n_view) * around // self.n_view) % around
        return (ring * around + turns).tolist(), float(grey)


class CaptionedPictures:
    """Single pictures of a folder, cut to their middle square."""

    n_view = 1

    def __init__(self, folder: Path) -> None:
        """The folder's captions.csv has the columns file and caption. Those that cannot be opened are left out, which
        is said. Raises ConfigError for a folder of none."""
        self.folder, self.pairs = folder, list[tuple[str, str]]()
        captions = folder / "captions.csv"
        for line, row in read_rows(find(folder, str(captions))):
            try:
                if Path(row["file"]).suffix.lower() not in SUFFIXES or not row["caption"]:
                    raise ConfigError("it should name a picture, and its caption")
                open_picture(folder / row["file"]).close()
                self.pairs.append((row["file"], row["caption"]))
            except ConfigError as error:
                logger.warning("left out: %s, line %d (%s)", captions, line, error)
        if not self.pairs:
            raise ConfigError(f"{captions} names no picture with a caption", "pictures")

    def describe(self) -> str:
        stats = ((file, caption, (self.folder / file).stat()) for file, caption in self.pairs)
        told = "\n".join(f"{file} {caption} {stat.st_size} {stat.st_mtime_ns}" for file, caption, stat in stats)
        return f"{len(self.pairs)} pictures {hashlib.sha256(told.encode()).hexdigest()[:16]}"

    def block(self, indices: range, size: int) -> Captioned:
        found = [self.pairs[index % len(self.pairs)] for index in indices]
        rgb = np.stack([on_grey(read_picture(self.folder / file), size) for file, _ in found])
        nowhere = np.tile(np.eye(4, dtype=np.float32), (len(found), 1, 1))
        return Captioned(rgb, [caption for _, caption in found], nowhere)


def split(shards: Shards, held_out: int, which: Literal["train", "held-out"]) -> list[Entry]:
    """Assets to learn from, or the ``held_out`` that are not: by their names alone, so that an asset mostly stays where
    it is when others come."""
    ordered = sorted(shards.entries, key=lambda entry: hashlib.sha256(entry.name.encode()).digest())
    kept = {entry.name for entry in ordered[:held_out]}
    return [entry for entry in shards.entries if (entry.name in kept) == (which == "held-out")]
