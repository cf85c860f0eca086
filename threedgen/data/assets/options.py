"""Config models of the tasks that read user assets, and the list of meshes with captions. Imports no torch."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError, did_you_mean, key_prefix, nearest, short
from threedgen.config.plain_file import read_text
from threedgen.config.sections import Elevations, Fovs, Positives
from threedgen.data.options import MESHES, mesh_files
from threedgen.guidance.weights.tokens import caption_notes
from threedgen.run.disk import file_key
from threedgen.run.folder import slug, user_path
from threedgen.run.options import Engine, WorkersConfig, cores

Up = Literal["y", "z"]
COLUMNS = ("file", "caption", "up", "turn")
MAX_HINTS = 100  # largest number of messages with the most similar file name, whose search is slow


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


INDEX = "index.json"  # name of the file that lists the shards and their content
SHARDS = "views"  # name of the folder of shards in a run folder


class ViewsConfig(Config):
    """Options of the rings of cameras that render an asset, as in MVDream (arXiv 2308.16512), section 4.1.

    The cameras of a ring have the same elevation, field of view and distance.
    """

    azimuths: int = Field(32, ge=4, le=360, description="views per ring, evenly spaced; the first shows the front")
    rings: int = Field(1, ge=1, le=16, description="rings per asset, each with its own elevation, fov and distance")
    size: int = Field(256, ge=16, le=2048, description="side of a view, pixels")
    elevation: Elevations = Field((0.0, 30.0), description="range of elevations above the horizon, degrees")
    fov: Fovs = Field((15.0, 60.0), description="range of vertical fields of view, degrees")
    relative_distance: Positives = Field(
        (0.9, 1.1), description="range of camera distances, in units of 1 / tan(fov / 2)"
    )
    light: bool = Field(True, description="shading from the camera and from above; false: unlit base colours")
    per_shard: int = Field(32, ge=1, le=10_000, description="assets per shard, the unit that a killed run repeats")


class AssetsConfig(WorkersConfig):
    """Base class of the options of tasks that read meshes with captions from the user, and render them if necessary.

    Options: folder and up axis of the meshes, captions file, cameras of the rendered views, parallel workers.
    """

    data: str = Field("", description="folder of GLB, glTF, OBJ, PLY or OFF files, or a run of make-asset-views")
    captions: str = Field(
        "captions.csv",
        min_length=1,
        description="CSV file with columns file, caption and optionally up, turn; in data or else here",
    )
    up: Literal["y", "z"] = Field("y", description="up axis of the files; y-up files face +z, z-up files +x")
    views: ViewsConfig = ViewsConfig()
    sheet: int = Field(120, ge=1, le=10_000, description="number of assets on the contact sheet")
    engine: Engine = Field("processes", description="where to render: this process, local processes, a Ray cluster")
    workers: int = Field(
        default_factory=cores, ge=1, le=10_000, description="number of workers of the engines processes and ray"
    )

    @property
    def rendered(self) -> Path | None:
        """Folder of shards (tar files with rendered views) that the option `data` names; None if it names no shards.

        `data` is either the folder of a finished run of make-asset-views, which has the shards in a subfolder, or this
        subfolder, or a folder of meshes. For meshes the result is None.
        """
        folder = user_path(self.data, "data")
        # a folder of meshes may have an index.json of its own
        folders = (path for path in (folder, folder / SHARDS) if (path / INDEX).is_file())
        return next((path for path in folders if any(path.glob("shard-*.tar"))), None)

    def listing(self) -> Listing:
        return list_assets(user_path(self.data, "data"), self.captions, self.up)

    def asset_captions(self) -> list[str]:
        """Return the captions of all assets, of their shards if they are rendered."""
        if self.rendered is None:
            return [asset.caption for asset in self.listing().assets]
        from .shards import Shards  # imports numpy

        return [entry.caption for entry in Shards(self.rendered).entries]

    def notes(self) -> list[str]:
        prior: Any = getattr(self, "prior", None)
        with key_prefix("prior"):
            vocabulary = None if prior is None else prior.vocabulary()
        return [*super().notes(), *(caption_notes(self.asset_captions(), vocabulary) if vocabulary else [])]

    def check(self) -> None:
        super().check()
        if not self.data.strip():
            raise ConfigError("is missing. Give a folder, such as data=assets.", "data")
        if not user_path(self.data, "data").is_dir():
            raise ConfigError("should be a folder with meshes", "data", self.data)
        if self.rendered is None:
            self.listing()


class MakeAssetViewsConfig(AssetsConfig):
    """Options of the task "make-asset-views", which renders captioned meshes into webdataset shards of views."""
