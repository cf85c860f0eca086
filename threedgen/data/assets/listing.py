"""Which meshes of a folder have captions, and why the others are left out.

    captions.csv    file,caption[,up][,turn]
                    chairs/1.glb,a wooden chair
                    knight.ply,a knight with a red shield,z,90

``up`` is the axis that points up in this file; ``turn`` turns the asset about it, in degrees, counter-clockwise seen
from above, until its front is where it should be.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.plain_file import read_text
from threedgen.data.options import MESHES
from threedgen.run.folder import slug

Up = Literal["y", "z"]
COLUMNS = ("file", "caption", "up", "turn")


@dataclass(frozen=True)
class Asset:
    """``file``: below the folder, with slashes."""

    file: str
    caption: str
    up: Up = "y"
    turn: float = 0.0

    @property
    def name(self) -> str:
        """Of its files in a shard: without a dot, different for different files."""
        return slug(self.file)


class Listing(NamedTuple):
    """``left_out``: a sentence for each mesh, and for each line of the captions, that is not used."""

    assets: tuple[Asset, ...]
    left_out: dict[str, str]


def list_assets(folder: Path, captions: str, up: Up = "y") -> Listing:
    """The meshes with captions, in the order of their names. Raises ConfigError if there are none."""
    path = find(folder, captions)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in MESHES)
    if not files:
        raise ConfigError(f"there is no mesh ({', '.join(MESHES)}) in this folder", "data", str(folder))
    told, left_out = dict[str, Asset](), dict[str, str]()
    for line, row in read_rows(path):
        file = Path(row["file"]).as_posix()
        try:
            asset = _asset(file, row, up)
            if file not in files:
                raise ValueError(f"there is no such mesh{did_you_mean(nearest(file, files))}")
            if file in told:
                raise ValueError("it has a caption already")
            told[file] = asset
        except ValueError as error:
            left_out[f"{path.name}, line {line}"] = f"{short(file)}: {error}"
    left_out |= {file: f"it has no caption in {path.name}" for file in files if file not in told}
    if not told:
        first = f" ({next(iter(left_out))}: {next(iter(left_out.values()))})"
        raise ConfigError(f"{path} has no caption of a mesh in {folder}{first}", "captions")
    return Listing(tuple(told[file] for file in files if file in told), left_out)


def find(folder: Path, captions: str) -> Path:
    """The captions: a file where one is, or in the folder. Raises ConfigError."""
    for path in (Path(captions).expanduser(), folder / captions):
        if path.is_file():
            return path
    raise ConfigError(f"there is no file {short(captions)}, neither here nor in {folder}", "captions")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Lines of a CSV file by their numbers, and what stands in which column; the first line may name the columns.

    Raises ConfigError.
    """
    rows = csv.reader(read_text(path, "captions").removeprefix("\ufeff").splitlines())
    columns: tuple[str, ...] = COLUMNS
    try:
        for cells in rows:
            texts = [cell.strip() for cell in cells]
            if rows.line_num == 1 and {"file", "caption"} <= {text.lower() for text in texts}:
                columns = tuple(text.lower() for text in texts)
            elif any(texts):
                yield rows.line_num, dict.fromkeys(COLUMNS, "") | dict(zip(columns, texts, strict=False))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num}, cannot be read ({error})", "captions") from None


def _asset(file: str, row: dict[str, str], up: Up) -> Asset:
    """Raises ValueError, with the reason why a line says nothing of use."""
    own: Any = row["up"].lower() or up
    if not row["caption"]:
        raise ValueError("its caption is empty")
    if own not in ("y", "z"):
        raise ValueError(f"up should be y or z (got {short(row['up'], 20)})")
    try:
        turn = float(row["turn"] or 0)
    except ValueError:
        turn = float("nan")
    if not -360 <= turn <= 360:
        raise ValueError(f"turn should be degrees from -360 to 360 (got {short(row['turn'], 20)})")
    return Asset(file, row["caption"], own, turn)
