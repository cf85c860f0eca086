"""Shards of rendered assets, as webdataset has them: tar files in which what belongs together has one name.

    shard-00000.tar     chair-0a1b2c3d.json, chair-0a1b2c3d.v00.png, ... chair-0a1b2c3d.v31.png, table-...
    shard-00000.json    what is in it, what was left out and why, its size and SHA-256: written when it is whole
    index.json          the shards together: written when all are there

NAME.json: file, caption, notes, azimuths (views of a ring), and of each view c2w (4, 4), as
``threedgen.geometry.cameras`` has it, and fov (vertical, radians). Pictures are RGBA. Equal assets give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import parse_json, read_json
from threedgen.geometry.picture_file import read_picture
from threedgen.run.disk import replacing

from .options import INDEX

OPEN = 64
"""Shards that are kept open."""
REMEDY = "render it again, by the command that made it: only what is missing is made"


class Writer:
    """Adds files to a tar file."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self.tar = tar

    def add(self, name: str, data: bytes) -> None:
        """Raises OSError."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))

    def add_asset(self, name: str, facts: dict[str, Any], pictures: list[bytes]) -> None:
        """What is known of an asset, and its views as PNG files. Raises OSError."""
        self.add(f"{name}.json", json.dumps(facts, ensure_ascii=False).encode())
        for number, picture in enumerate(pictures):
            self.add(f"{name}.v{number:02d}.png", picture)


@contextmanager
def new_shard(path: Path) -> Iterator[Writer]:
    """A shard that is there when it is whole, or never. Raises OSError."""
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield Writer(tar)


def seal(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a shard. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def whole(folder: Path, sealed: dict[str, Any]) -> bool:
    """Has a shard the size that it had?"""
    path = folder / str(sealed.get("file"))
    return path.is_file() and path.stat().st_size == sealed.get("bytes")


@dataclass(frozen=True)
class Entry:
    """An asset in a shard."""

    shard: str
    name: str
    file: str
    caption: str
    notes: tuple[str, ...] = ()


class Shards:
    """The assets in a folder of shards. Raises ConfigError, one sentence, for shards that are missing or cut short."""

    def __init__(self, folder: Path, index: dict[str, Any] | None = None) -> None:
        """``index``: of a part of them, instead of what the folder says."""
        self.folder, self.index = folder, index or read_json(folder / INDEX)
        try:
            self.azimuths, self.rings = int(self.index["azimuths"]), int(self.index["rings"])
            self.entries = [
                Entry(str(shard["file"]), asset["name"], asset["file"], asset["caption"], tuple(asset["notes"]))
                for shard in self.index["shards"]
                for asset in shard["assets"]
            ]
            for shard in self.index["shards"]:
                if not whole(folder, shard):
                    raise ConfigError(f"{folder / shard['file']} is missing or cut short: {REMEDY}")
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{folder / INDEX} is missing or damaged: {REMEDY}") from None
        self._members = lru_cache(OPEN)(self._read_names)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def digest(self) -> str:
        """16 hex digits of what all shards hold."""
        sums = "".join(str(shard["sha256"]) for shard in self.index["shards"])
        return hashlib.sha256(sums.encode()).hexdigest()[:16]

    def facts(self, entry: Entry) -> dict[str, Any]:
        """What NAME.json says."""
        found: dict[str, Any] = parse_json(self.read(entry, "json"))
        return found

    def picture(self, entry: Entry, view: int) -> Image.Image:
        """Raises ConfigError."""
        return read_picture(self.read(entry, f"v{view:02d}.png"), "a picture in a shard")

    def read(self, entry: Entry, part: str) -> bytes:
        """Raises ConfigError."""
        path = self.folder / entry.shard
        try:
            start, size = self._members(entry.shard)[f"{entry.name}.{part}"]
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except (OSError, KeyError, tarfile.TarError):
            data, size = b"", 1
        if len(data) < size:
            raise ConfigError(f"{path} has no whole {entry.name}.{part}: {REMEDY}")
        return data

    def _read_names(self, shard: str) -> dict[str, tuple[int, int]]:
        """Where in a shard the files are: their first bytes and sizes."""
        with tarfile.open(self.folder / shard, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar}
