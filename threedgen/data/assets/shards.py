"""Shards of rendered assets in the format of webdataset: tar files in which the files of an asset share a name.

    shard-00000.tar     chair-0a1b2c3d.json, chair-0a1b2c3d.v00.png, ... chair-0a1b2c3d.v31.png, table-...
    shard-00000.json    assets, left-out assets with reasons, size and SHA-256; written when the shard is complete
    index.json          list of all shards; written when all of them are complete

NAME.json has the fields name, file, caption, notes and azimuths (number of views per ring of cameras), and for each
view c2w (4, 4), camera-to-world with OpenGL axes, and fov (vertical, radians). Views are numbered ring by ring. Images
are RGBA with straight alpha. Equal assets give equal bytes.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from threedgen.config.errors import ConfigError, printable
from threedgen.config.plain_file import named_file, parse_json, read_bytes, read_json, require_regular_file
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import grid, write_sheets
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree, atomic_file

from .listing import INDEX

MAX_MEMBERS = 500_000  # maximum number of files in a shard; reading their names takes about 20 s
MAX_CACHED = 64  # maximum number of shards whose tables of files are kept in memory
REMEDY = "run the command that made it again; it renders only the missing shards"


def add_asset(tar: tarfile.TarFile, name: str, metadata: Tree, images: list[bytes]) -> None:
    """Add an asset to the shard `tar`: `metadata` as NAME.json, `images` (PNG bytes) as NAME.v00.png and so on.

    NAME is the argument `name`. Raises OSError if the shard cannot be written.
    """
    files = {f"{name}.json": json.dumps(metadata, ensure_ascii=False).encode()}
    for file, data in (files | {f"{name}.v{number:02d}.png": image for number, image in enumerate(images)}).items():
        info = tarfile.TarInfo(file)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


@contextmanager
def new_shard(path: Path) -> Iterator[tarfile.TarFile]:
    """Context manager that opens a shard for writing. The file appears at `path` only when it is complete.

    Raises OSError if the file cannot be written.
    """
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        yield tar


def checksum(path: Path) -> Tree:
    """Return a dict of the file name ("file"), size in bytes ("bytes") and SHA-256 ("sha256") of a shard.

    Raises OSError if the shard cannot be read.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def is_complete(folder: Path, summary: Tree) -> bool:
    """Return whether the tar file of a shard is in `folder` and has the stated size.

    `summary` is the content of the shard's JSON file, with the name ("file") and the size ("bytes") of the tar file.
    """
    try:
        path = named_file(folder, str(summary.get("file")))
    except ConfigError:
        return False
    return os.path.isfile(path) and path.stat().st_size == summary.get("bytes")


@dataclass(frozen=True)
class Entry:
    """One asset in a shard, a tar file with the rendered views of many assets.

    `shard` is the file name of the shard, `name` the common name of the asset's files in it, and `file` the original
    mesh file. `notes` are remarks for the user.
    """

    shard: str
    name: str
    file: str
    caption: str
    notes: tuple[str, ...] = ()


class Shards:
    """Reader for a folder of shards: tar files with rendered views of assets (meshes with captions).

    `entries` lists the assets of all shards. `index` is the content of index.json; None: it is read from the folder.
    The constructor raises ConfigError if the index is missing or damaged, or if a shard is missing or truncated.
    """

    def __init__(self, folder: Path, index: Tree | None = None) -> None:
        self.folder, self.index = folder, index or read_json(folder / INDEX)
        try:
            self.azimuths, self.rings = int(self.index["azimuths"]), int(self.index["rings"])
            self.entries = [
                Entry(str(shard["file"]), asset["name"], asset["file"], asset["caption"], tuple(asset["notes"]))
                for shard in self.index["shards"]
                for asset in shard["assets"]
            ]
            for shard in self.index["shards"]:
                if not is_complete(folder, shard):
                    raise ConfigError(
                        f"{folder / printable(shard['file'])} is missing, truncated or not in the folder: {REMEDY}"
                    )
            if not all(isinstance(text, str) for entry in self.entries for text in (entry.name, entry.caption)):
                raise TypeError("names and captions are texts")
        except (KeyError, TypeError, ValueError):
            raise ConfigError(f"{folder / INDEX} is missing or damaged: {REMEDY}") from None
        self._members = lru_cache(MAX_CACHED)(self._read_members)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def digest(self) -> str:
        """Hash of the content of all shards, 16 hexadecimal digits."""
        sums = "".join(str(shard["sha256"]) for shard in self.index["shards"])
        return hashlib.sha256(sums.encode()).hexdigest()[:16]

    def metadata(self, entry: Entry) -> Tree:
        """Read the metadata of an asset from its NAME.json: name, file, caption, notes, views per ring, and cameras.

        "azimuths" is the number of views per ring of cameras. For each view, "c2w" has the pose (4, 4), camera-to-world
        with OpenGL axes, and "fov" the vertical field of view in radians. Raises ConfigError if the file is missing or
        damaged.
        """
        data = self.read(entry, "json")
        with suppress(KeyError, TypeError, ValueError):
            found: Tree = parse_json(data)
            poses = np.array(found["c2w"], np.float32)
            if poses.shape[1:] == (4, 4) and np.isfinite(poses).all():
                return found
        raise ConfigError(f"{printable(entry.name)}.json is damaged in {self.folder / entry.shard}: {REMEDY}")

    def image(self, entry: Entry, view: int) -> Image.Image:
        """Read the image of view number `view` of an asset. Raises ConfigError if the file is missing or truncated."""
        return load_image(self.read(entry, f"v{view:02d}.png"), "an image in a shard")

    def read(self, entry: Entry, part: str) -> bytes:
        """Return the bytes of a file of an asset in its shard. `part` is the end of the file name, such as "v00.png".

        Raises ConfigError if the file is missing or truncated.
        """
        path = self.folder / entry.shard
        try:
            start, size = self._members(entry.shard)[f"{entry.name}.{part}"]
            data = read_bytes(path, start=start, count=size)
        except (OSError, KeyError, tarfile.TarError):
            data, size = b"", 1
        if len(data) < size:
            raise ConfigError(f"{printable(entry.name)}.{part} is missing or truncated in {path}: {REMEDY}")
        return data

    def _read_members(self, shard: str) -> dict[str, tuple[int, int]]:
        # only plain files, as `add_asset` writes them: other kinds of members can state any size
        members, left = dict[str, tuple[int, int]](), MAX_MEMBERS
        with require_regular_file(self.folder / shard).open("rb") as file:
            while any(block := file.read(tarfile.BLOCKSIZE)):
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                kinds = tarfile.REGTYPE, tarfile.AREGTYPE
                if member.type not in kinds or not 0 <= member.size < 1 << 40 or not left:
                    raise tarfile.TarError(member.name)
                start = file.tell()
                members[member.name], left = (start, member.size), left - 1
                file.seek(start - -member.size // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE)
        return members


SIDES, SIDE_PIXELS, COLUMNS, PER_PAGE = 4, 96, 3, 60
"""Contact sheet: views per asset, side of a view in pixels, assets per row, and assets per page."""


def write_sheet(folder: Path, shards: Shards, max_count: int) -> None:
    """Write contact sheets sheet.png, sheet-2.png, ... to `folder`, in place of those of an earlier run.

    They show four views, caption, file name and notes of at most `max_count` assets, evenly spaced in the list of all
    assets. Raises OSError if a sheet cannot be written, and ConfigError if an image is missing or truncated.
    """
    count = min(max_count, len(shards))
    subset = [shards.entries[k * len(shards) // count] for k in range(count)]
    labels = [" - ".join([entry.caption, entry.file, *entry.notes]) for entry in subset]
    pages = [slice(start, start + PER_PAGE) for start in range(0, count, PER_PAGE)]
    write_sheets(
        folder, (grid([sides(shards, entry) for entry in subset[page]], COLUMNS, labels[page]) for page in pages)
    )


def sides(shards: Shards, entry: Entry) -> Array:
    """Return four views of an asset (front, left, back, right) on grey, in one row of an image.

    The image is (S, 4 S, 3), in [0, 1], with S = 96 (`SIDE_PIXELS`). The views are from the first ring of cameras.
    """
    views = (k * shards.azimuths // SIDES for k in range(SIDES))
    return np.concatenate([on_grey(shards.image(entry, view), SIDE_PIXELS) for view in views], axis=1)


def on_grey(image: Image.Image, size: int, grey: float | Array = 0.5) -> Array:
    """Composite an image on a background of value or colour `grey` in [0, 1], crop it to its middle square, resize it.

    Return (size, size, 3), float32, in [0, 1].
    """
    pixels = np.asarray(image.convert("RGBA"), np.float32) / 255
    rgb = pixels[..., :3] * pixels[..., 3:] + grey * (1 - pixels[..., 3:])
    side = min(rgb.shape[:2])
    top, left = ((length - side) // 2 for length in rgb.shape[:2])
    return resize(rgb[top : top + side, left : left + side], size)


def resize(pixels: Array, size: int) -> Array:
    """Resize a square image, with three channels in [0, 1], to (size, size, 3), float32, bicubic with antialiasing."""
    if pixels.shape[:2] == (size, size):
        return np.asarray(pixels, np.float32)
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band], np.float32)) for band in range(3)]
    small = [np.asarray(band.resize((size, size), Image.Resampling.BICUBIC)) for band in bands]
    return np.clip(np.stack(small, -1), 0, 1)
