"""Read-only view of a run folder. Its files may have been edited by hand, so every value is checked."""

from __future__ import annotations

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
"""Tasks whose runs have a report page: their result is one object."""
STATES = ("finished", "interrupted", "failed", "unfinished")
MAX_VIEWS, VIEWS_PER_ROW = 8, 4
"""Maximum number of images on views.png, and images per row."""


@dataclass(frozen=True)
class Record:
    """config.yaml and summary.json of a run as plain data, and values derived from them."""

    folder: Path
    config: Tree
    summary: Tree
    text: str = ""
    """Text of config.yaml."""

    def file(self, name: str) -> Path | None:
        """Return the path of a file of the run; None if it does not exist."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def asset(self) -> Tree:
        """Content of asset/asset.json; {} if the run has no asset."""
        return read_manifest(self.folder / FOLDER)

    @property
    def model(self) -> Path | None:
        """File for the 3D view: the GLB asset, else mesh.glb, else None."""
        first = Path(str(next(iter(self.asset.get("files", {})), ""))).name  # later entries are LODs and colliders
        asset = self.file(f"{FOLDER}/{first}") if first.lower().endswith(".glb") else None
        return asset or self.file("mesh.glb")

    def option(self, *keys: str) -> Any:
        """Return a value of the config, such as option("trainer", "max_steps"); None if it is missing."""
        return _inside(self.config, keys)

    def metadata(self, *keys: str) -> Any:
        """Return a value of the summary, in the same way."""
        return _inside(self.summary, keys)

    @property
    def prompt(self) -> str:
        """Prompt, or the name of the input image."""
        return str(self.option("prompt") or Path(str(self.option("image") or "(no prompt)")).stem)

    @property
    def seed(self) -> str:
        return "?" if self.option("seed") is None else str(self.option("seed"))

    @property
    def method(self) -> str:
        """Config of the run, with the overrides that a batch recorded; "" if unknown."""
        return str(read_json(self.folder / "job.json").get("method") or stored_config_name(self.text))

    @property
    def choices(self) -> list[str]:
        """Prior, distillation and field names that differ from the shipped config and are not in `method`."""
        defaults = _default_names(self.method.partition(" ")[0])
        own = {part: self.option(part, "name") for part in defaults}
        changed = [f"{part}.name={name}" for part, name in own.items() if name not in (None, defaults[part])]
        return [text for text in changed if text not in self.method.split()]

    @property
    def steps(self) -> int | None:
        """Number of completed optimisation steps; None if the summary has none."""
        return as_int(self.metadata("steps"))

    @property
    def max_steps(self) -> int | None:
        return as_int(self.option("trainer", "max_steps"))

    @property
    def n_views(self) -> int:
        """Number of images on views.png, in rows of VIEWS_PER_ROW."""
        return min(MAX_VIEWS, max(1, as_int(self.option("result", "turntable", "n_view")) or MAX_VIEWS))

    @property
    def seconds(self) -> float | None:
        return as_float(self.metadata("seconds"))

    @property
    def state(self) -> str:
        """One of STATES. A finished run whose max_steps was increased afterwards is unfinished."""
        status = self.metadata("status")
        longer = status == "finished" and (self.steps or 0) < (self.max_steps or 0)
        return str(status) if isinstance(status, str) and status in STATES and not longer else "unfinished"

    @property
    def notes(self) -> list[str]:
        """Warnings of the run, such as prompt words outside the prior's vocabulary."""
        notes = self.metadata("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def reason(self) -> str:
        """Reason for an early stop; "" if there is none."""
        return str(self.metadata("reason") or "")

    @property
    def ended(self) -> datetime:
        """End time (UTC); without one in the summary, the time of the last change of its files."""
        try:
            return datetime.fromisoformat(str(self.metadata("ended"))).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            names = (SUMMARY,) if self.summary else ("metrics.jsonl", CONFIG)
            changed = [path.stat().st_mtime for path in map(self.file, names) if path]
            return datetime.fromtimestamp(max(changed, default=0.0), UTC)


def read_record(folder: Path) -> Record:
    """Read the run in a folder. Raises ConfigError for an unreadable config or summary, or another task."""
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
    """Return the prior, distillation and field names of a shipped config; {} for any other config."""
    tree: Tree = {}
    with suppress(ConfigError):
        tree = plain(load(name)) if name in shipped() else {}
    return {part: tree[part]["name"] for part in ("prior", "distillation", "field") if part in tree}


def _inside(tree: object, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def as_float(value: Any) -> float | None:
    """Return a number as a finite float; None for any other value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def as_int(value: object) -> int | None:
    """Return a number as an int; None for any other value."""
    number = as_float(value)
    return None if number is None else int(number)
