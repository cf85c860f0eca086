"""List of a user's meshes with captions: the mesh files in a folder, and a CSV file. Imports no torch."""

import csv
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.plain_file import read_text
from threedgen.run.disk import file_key
from threedgen.run.folder import slug

MESHES = (".glb", ".gltf", ".obj", ".ply", ".off")
MESH_FORMATS = (*MESHES, ".stl")
"""Suffixes, in lower case, of all mesh files that can be read: `MESHES`, which can have colours, and STL."""
INDEX = "index.json"  # name of the file that lists the shards and their content
SHARDS = "views"  # name of the folder of shards in a run folder
Up = Literal["y", "z"]
COLUMNS = ("file", "caption", "up", "turn")
MAX_HINTS = 100  # largest number of messages with the most similar file name, whose search is slow


def mesh_files(folder: Path, suffixes: tuple[str, ...] = MESHES) -> list[str]:
    """Return the paths of the mesh files in `folder` and all its subfolders, relative to `folder`, sorted.

    Links to folders are followed. A folder with several paths counts once, if possible with a path without links.
    Files and subfolders whose names start with "." are left out.
    """
    found, searched, roots = list[Path](), set[str](), [str(folder)]
    for root in roots:  # grows by linked folders
        for parent, folders, names in os.walk(root):
            new = (real := os.path.realpath(parent)) not in searched
            searched.add(real)
            folders[:] = sorted(name for name in folders if new and name[0] != ".")
            roots += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            found += [Path(parent, name) for name in names if new and name[0] != "."]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in suffixes)


@dataclass(frozen=True)
class Asset:
    """Mesh file with a caption.

    `file` is relative to the data folder. `up` is the up axis of the file, "y" or "z". `turn` is the rotation about
    this axis, in degrees, counter-clockwise seen from above, that is applied to the mesh.
    """

    file: str
    caption: str
    up: Up = "y"
    turn: float = 0.0

    @property
    def name(self) -> str:
        """Unique name of the asset, such as "chair-0a1b2c3d". Its files in a shard are NAME.json, NAME.v00.png ..."""
        return slug(self.file)


class Listing(NamedTuple):
    """Meshes with captions in a folder of the user.

    Attributes:
        assets: meshes to render.
        left_out: dict from mesh file or line of the captions file to the reason why it is not used.
    """

    assets: tuple[Asset, ...]
    left_out: dict[str, str]


def list_assets(folder: Path, captions: str, up: Up = "y") -> Listing:
    """List the meshes in `folder` and its subfolders that have captions, sorted by file.

    The result also has the reasons why other meshes, and lines of the captions file, are left out. `captions` is the
    path of the captions file. `up` is the up axis of meshes for which the captions file has no up axis. Raises
    ConfigError if there is no captions file, if there are no meshes, or if no mesh has a caption.
    """
    path = find_captions(folder, captions)
    files = mesh_files(folder)
    if not files:
        raise ConfigError(f"should contain meshes ({', '.join(MESHES)})", "data", str(folder))
    names, known = {file_key(file): file for file in files}, set(files)
    by_file, left_out = dict[str, Asset](), dict[str, str]()
    for line, row in read_rows(path):
        file = Path(row["file"].replace("\\", "/")).as_posix()
        file = file if file in known else names.get(file_key(file), file)
        try:
            asset = _asset(file, row, up)
            if file not in known:
                hint = did_you_mean(nearest(file, files)) if len(left_out) < MAX_HINTS else ""
                raise ValueError(f"mesh not found{hint}")
            if file in by_file:
                raise ValueError("second caption of this mesh")
            by_file[file] = asset
        except ValueError as error:
            left_out[f"{path.name}, line {line}"] = f"{short(file)}: {error}"
    left_out |= {file: f"no caption in {path.name}" for file in files if file not in by_file}
    if not by_file:
        first = f" ({next(iter(left_out))}: {next(iter(left_out.values()))})"
        raise ConfigError(
            f"{path} has no caption of a mesh in {folder}{first}. Its first line should be file,caption", "captions"
        )
    return Listing(tuple(by_file[file] for file in files if file in by_file), left_out)


def find_captions(folder: Path, captions: str) -> Path:
    """Return the path of the captions file `captions`, searched in `folder` first, then in the working directory.

    Raises ConfigError if there is no such file in either folder.
    """
    for path in (folder / captions, Path(captions).expanduser()):
        if path.is_file():
            return path
    raise ConfigError(f"there is no file {short(captions)}, neither in {folder} nor here", "captions")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells) for each row of a captions file.

    Cells are a dict from column name to text; missing cells are "". Without a header row, the columns are file,
    caption, up, turn. Raises ConfigError if the file cannot be read.
    """
    lines = [line + "\n" for line in read_text(path, "captions").splitlines()]
    rows = csv.reader(lines, delimiter=_delimiter(lines), skipinitialspace=True)
    columns: tuple[str, ...] = COLUMNS
    try:
        for cells in rows:
            texts = [" ".join(cell.splitlines()).strip() for cell in cells]
            if {"file", "caption"} <= {text.lower() for text in texts}:
                columns = tuple(text.lower() for text in texts)
            elif any(texts) and not texts[0].startswith(("#", "sep=")):  # the latter is a separator for Excel
                if columns[-1] == "caption":  # with commas and without quotes
                    texts[len(columns) - 1 :] = [", ".join(filter(None, texts[len(columns) - 1 :]))]
                yield rows.line_num, dict.fromkeys(COLUMNS, "") | dict(zip(columns, texts, strict=False))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}, cannot be read ({error})", "captions") from None


def _delimiter(lines: list[str]) -> str:
    # first separator outside quotes
    unquoted = (re.sub(r'"[^"]*"', "", line) for line in lines if line[:1] != "#")
    return next((match[0] for line in unquoted if (match := re.search(r"[,;\t]", line))), ",")


def _asset(file: str, row: dict[str, str], up: Up) -> Asset:
    own: Any = row["up"].lower() or up
    if not row["caption"]:
        raise ValueError("empty caption")
    if own not in ("y", "z"):
        raise ValueError(f"up should be y or z (got {short(row['up'], 20)})")
    try:
        turn = float(row["turn"].replace(",", ".") or 0)
    except ValueError:
        turn = float("nan")
    if not -360 <= turn <= 360:
        raise ValueError(f"turn should be degrees from -360 to 360 (got {short(row['turn'], 20)})")
    return Asset(file, row["caption"], own, turn)
