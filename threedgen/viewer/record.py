"""Read the files of a run folder for the pages. A user may have edited the files, so every value is checked."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from threedgen.config import load, plain, shipped
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_json
from threedgen.export.asset_folder import FOLDER, read_manifest
from threedgen.run.disk import Tree
from threedgen.run.folder import CONFIG, SUMMARY, stored_config, stored_config_name
from threedgen.run.metrics import read_summary

TASKS = ("generate", "image-to-3d")
"""Tasks whose runs have a report page. The result of such a run is one object."""
STATES = ("finished", "interrupted", "failed", "unfinished")
MAX_VIEWS, VIEWS_PER_ROW = 8, 4
"""Maximum number of views in the image grid views.png, and number of views per row."""


@dataclass(frozen=True)
class Record:
    """Data of a run for its report page and gallery card: config.yaml, summary.json, and values derived from them."""

    folder: Path
    config: Tree
    summary: Tree
    text: str = ""
    """Text of config.yaml."""

    def file(self, name: str) -> Path | None:
        """Return the path of a file in the run's folder; None if the file does not exist."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def asset(self) -> Tree:
        """Content of asset/asset.json; empty if the run has no asset."""
        return read_manifest(self.folder / FOLDER)

    @property
    def model(self) -> Path | None:
        """Path of the file for the 3D view: the asset's GLB, or mesh.glb if there is no such GLB, or None."""
        first = Path(str(next(iter(self.asset.get("files", {})), ""))).name  # later entries are LODs and colliders
        asset = self.file(f"{FOLDER}/{first}") if first.lower().endswith(".glb") else None
        return asset or self.file("mesh.glb")

    def option(self, *keys: str) -> Any:
        """Return a value of the config by its nested keys, as in option("trainer", "max_steps"); None if missing."""
        return _inside(self.config, keys)

    def metadata(self, *keys: str) -> Any:
        """Return a value of summary.json by its nested keys; None if missing."""
        return _inside(self.summary, keys)

    @property
    def prompt(self) -> str:
        """Prompt of the run, or the file name of its input image without the suffix."""
        return str(self.option("prompt") or Path(str(self.option("image") or "(no prompt)")).stem)

    @property
    def seed(self) -> str:
        return "?" if self.option("seed") is None else str(self.option("seed"))

    @property
    def method(self) -> str:
        """Name of the run's config, followed by the overrides that a batch recorded; "" if unknown."""
        return str(read_json(self.folder / "job.json").get("method") or stored_config_name(self.text))

    @property
    def choices(self) -> list[str]:
        """Overrides such as "prior.name=mvdream" that differ from the shipped config and are not part of `method`.

        Only the names of prior, distillation and field are compared.
        """
        defaults = _default_names(self.method.partition(" ")[0])
        own = {part: self.option(part, "name") for part in defaults}
        changed = [f"{part}.name={name}" for part, name in own.items() if name not in (None, defaults[part])]
        return [text for text in changed if text not in self.method.split()]

    @property
    def steps(self) -> int | None:
        """Number of completed training steps; None if the summary does not contain it."""
        return as_int(self.metadata("steps"))

    @property
    def max_steps(self) -> int | None:
        return as_int(self.option("trainer", "max_steps"))

    @property
    def n_views(self) -> int:
        """Number of views in the image grid views.png, which has VIEWS_PER_ROW views per row."""
        return min(MAX_VIEWS, max(1, as_int(self.option("result", "turntable", "n_view")) or MAX_VIEWS))

    @property
    def seconds(self) -> float | None:
        return as_float(self.metadata("seconds"))

    @property
    def state(self) -> str:
        """State of the run, one of STATES. A finished run whose max_steps was increased later counts as unfinished."""
        status = self.metadata("status")
        longer = status == "finished" and (self.steps or 0) < (self.max_steps or 0)
        return str(status) if isinstance(status, str) and status in STATES and not longer else "unfinished"

    @property
    def notes(self) -> list[str]:
        """Warnings of the run as sentences, for example about prompt words outside the prior's vocabulary."""
        notes = self.metadata("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def reason(self) -> str:
        """Reason why the run stopped early; "" if it did not."""
        return str(self.metadata("reason") or "")

    @property
    def ended(self) -> datetime:
        """Time when the run ended, in UTC. If the summary does not contain it, the last change of the run's files."""
        try:
            return datetime.fromisoformat(str(self.metadata("ended"))).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            names = (SUMMARY,) if self.summary else ("metrics.jsonl", CONFIG)
            changed = [path.stat().st_mtime for path in map(self.file, names) if path]
            return datetime.fromtimestamp(max(changed, default=0.0), UTC)


def read_record(folder: Path) -> Record:
    """Read the run in a folder.

    Raises ConfigError if the config or the summary is unreadable, or if the run's task is not in TASKS.
    """
    config = stored_config(folder)
    if config is None:
        raise ConfigError(f"{folder / CONFIG} is missing or damaged. Give the folder of a run")
    if config.get("task") not in TASKS:
        raise ConfigError(f"{folder} is a run of the task {short(config.get('task'))}, not of {' or '.join(TASKS)}")
    summary = read_summary(folder)
    if not summary and (folder / SUMMARY).exists():
        again = command("--resume", str(folder))
        raise ConfigError(f"{folder / SUMMARY} is damaged. Run `{again}` to write it again")
    return Record(folder, config, summary, (folder / CONFIG).read_text(encoding="utf-8"))


@cache
def _default_names(name: str) -> Tree:
    """Return the names of prior, distillation and field in a shipped config; an empty dict for any other config."""
    tree: Tree = {}
    with suppress(ConfigError):
        tree = plain(load(name)) if name in shipped() else {}
    return {part: tree[part]["name"] for part in ("prior", "distillation", "field") if part in tree}


def _inside(tree: object, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def as_float(value: Any) -> float | None:
    """Return a finite number as a float; None for any other value, including a bool."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def as_int(value: object) -> int | None:
    """Return a finite number, rounded towards zero, as an int; None for any other value, including a bool."""
    number = as_float(value)
    return None if number is None else int(number)
