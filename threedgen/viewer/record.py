"""Data of a run, read from the files in its folder for the report page, the gallery and the studio."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, FiniteFloat, ValidationError

from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_json
from threedgen.export.asset_folder import FOLDER, MANIFEST
from threedgen.run.disk import Tree
from threedgen.run.folder import CONFIG, JOB, SUMMARY, stored_config, stored_config_name

TASKS = ("generate", "image-to-3d")  # tasks whose runs have a report page; the result of such a run is one object
MAX_VIEWS, VIEWS_PER_ROW = 8, 4  # maximum number of views in the image grid views.png, and number of views per row


class Environment(BaseModel):
    """Entries of summary.json about the machine: processor, cores, system, and versions of packages."""

    cpu: str | None = None
    cores: int | None = None
    platform: str | None = None
    versions: dict[str, str | None] = {}


class Summary(BaseModel):
    """Entries of summary.json (results of a run) for report page and gallery: status, duration, triangles, ..."""

    status: str = "unfinished"
    reason: str = ""
    notes: list[str] = []
    steps: int | None = None
    seconds: FiniteFloat | None = None
    seconds_of: dict[str, FiniteFloat] = {}
    peak_memory_mib: FiniteFloat | None = None
    ended: datetime | None = None
    triangles: int | None = None
    vertices: int | None = None
    environment: Environment = Environment()


class Asset(BaseModel):
    """Entries of asset.json (about an exported asset) for report page and gallery: files, triangles, size, ..."""

    files: dict[str, int] = {}
    texture: int | None = None
    levels: dict[str, int] = {}
    size_m: dict[str, FiniteFloat] = {}
    height: str = ""
    khronos: str = ""


Entries = TypeVar("Entries", bound=BaseModel)


@dataclass(frozen=True)
class Record:
    """Data of a run for its report page and gallery card.

    Attributes:
        folder: folder of the run.
        config: content of config.yaml, as nested dicts.
        summary: entries of summary.json, such as status and duration.
        asset: entries of asset.json, such as files and texture size; defaults without an export.
        text: text of config.yaml.
    """

    folder: Path
    config: Tree
    summary: Summary
    asset: Asset = field(default_factory=Asset)
    text: str = ""  # text of config.yaml

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the run's folder; None if the file does not exist."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def model(self) -> Path | None:
        """Path of the mesh for the 3D view, None if there is none.

        It is the first of these files that exists: GLB file of the exported asset, mesh.glb, textured.glb.
        """
        first = Path(next(iter(self.asset.files), "")).name  # later entries are LODs and colliders
        asset = self.file(f"{FOLDER}/{first}") if first.lower().endswith(".glb") else None
        return asset or self.file("mesh.glb") or self.file("textured.glb")

    @property
    def splats(self) -> Path | None:
        """Path of the GLB file with 3D Gaussians; None if the run did not export them."""
        return self.file("gaussians.glb")

    def option(self, *keys: str) -> Any:
        """Return a value of the config by its nested keys, such as "trainer", "max_steps"; None if a key is missing."""
        tree: Any = self.config
        for key in keys:
            tree = tree.get(key) if isinstance(tree, dict) else None
        return tree

    def count(self, *keys: str) -> int | None:
        """Return the config value at nested keys, such as "trainer", "max_steps"; None if it is no positive integer."""
        value = self.option(*keys)
        return value if type(value) is int and value > 0 else None

    @property
    def prompt(self) -> str:
        """Prompt of the run, or the file name of its input image without the suffix."""
        return str(self.option("prompt") or Path(str(self.option("image") or "(no prompt)")).stem)

    @property
    def method(self) -> str:
        """Name of the config with which the object was made; "" if unknown.

        If a task that makes many objects, such as `batch`, started the run, the name can be followed by key=value
        changes of the config, as in "mvdream-toybox size=32".
        """
        return str(read_json(self.folder / JOB).get("method") or stored_config_name(self.text))

    @property
    def max_steps(self) -> int | None:
        return self.count("trainer", "max_steps")

    @property
    def n_views(self) -> int:
        """Number of views in the image grid views.png, which has VIEWS_PER_ROW views per row."""
        return min(MAX_VIEWS, self.count("result", "turntable", "n_view") or MAX_VIEWS)

    @property
    def state(self) -> str:
        """State of the run: "finished", "interrupted", "failed" or "unfinished".

        An interrupted run was stopped early by the user and wrote its result. Runs that are still active or were killed
        are "unfinished", and so is a finished run whose max_steps was increased afterwards.
        """
        status = self.summary.status
        longer = status == "finished" and (self.summary.steps or 0) < (self.max_steps or 0)
        return status if status in ("finished", "interrupted", "failed") and not longer else "unfinished"

    @property
    def has_result(self) -> bool:
        """Whether the run wrote its object, at its end or after an early stop. Other runs have at most checkpoints."""
        return self.state in ("finished", "interrupted")

    @property
    def ended(self) -> datetime:
        """Time at which the run ended, in UTC.

        It is the entry "ended" of summary.json. Without this entry, it is the time of the last change of the first of
        these files that exists: summary.json, metrics.jsonl, config.yaml.
        """
        if self.summary.ended is not None:
            return self.summary.ended.astimezone(UTC)
        path = self.file(SUMMARY) or self.file("metrics.jsonl") or self.file(CONFIG)
        return datetime.fromtimestamp(path.stat().st_mtime if path else 0.0, UTC)


def read_record(folder: Path, tasks: Sequence[str] = TASKS) -> Record:
    """Read the data of the run in `folder`.

    Raises ConfigError if the config of the run is missing or damaged, if its task is not one of `tasks` (default: the
    tasks that make one object per run), or if its summary is damaged.
    """
    config = stored_config(folder)
    if config is None:
        raise ConfigError(f"{folder / CONFIG} is missing or damaged. Give the folder of a run")
    if config.get("task") not in tasks:
        raise ConfigError(f"{folder} is a run of the task {short(config.get('task'))}, not of {' or '.join(tasks)}")
    summary = _read(Summary, folder / SUMMARY)
    if summary is None:
        again = command("--resume", str(folder))
        raise ConfigError(f"{folder / SUMMARY} is damaged. Run `{again}` to write it again")
    asset = _read(Asset, folder / FOLDER / MANIFEST) or Asset()
    return Record(folder, config, summary, asset, (folder / CONFIG).read_text(encoding="utf-8"))


def _read(model: type[Entries], path: Path) -> Entries | None:
    # defaults if the file does not exist, None if it is invalid
    tree = read_json(path)
    with suppress(ValidationError):
        return model.model_validate(tree) if tree or not path.exists() else None
    return None
