"""A run as its folder tells it. Anybody may have changed the files, so nothing in them is taken on trust."""

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
from threedgen.run.folder import CONFIG, SUMMARY, made_of, stored_config
from threedgen.run.metrics import read_summary

TASKS = ("generate", "image-to-3d")
"""Whose runs have a page: they leave one object."""
STATES = ("finished", "interrupted", "failed", "unfinished")
SIDES, ROW = 8, 4
"""Pictures on views.png, at most, and in a row of it."""


@dataclass(frozen=True)
class Record:
    """config.yaml and summary.json of a run as plain data, and what follows from the two."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    text: str = ""
    """config.yaml as it is written."""

    def file(self, name: str) -> Path | None:
        """Finds a file of the run, if it is there."""
        path = self.folder / name
        return path if path.is_file() else None

    @property
    def asset(self) -> dict[str, Any]:
        """asset/asset.json; {} if the run has no asset."""
        return read_manifest(self.folder / FOLDER)

    @property
    def model(self) -> Path | None:
        """The file to turn: the asset, if it is there as a GLB; else mesh.glb; None if neither is there."""
        first = Path(str(next(iter(self.asset.get("files", {})), ""))).name  # colliders come later
        asset = self.file(f"{FOLDER}/{first}") if first.lower().endswith(".glb") else None
        return asset or self.file("mesh.glb")

    def option(self, *keys: str) -> Any:
        """Looks up a value of the config, such as option("trainer", "max_steps"); None if it is not there."""
        return _inside(self.config, keys)

    def metadata(self, *keys: str) -> Any:
        """Looks up a value of the summary, in the same way."""
        return _inside(self.summary, keys)

    @property
    def prompt(self) -> str:
        """What was asked for, in words or by the name of a picture."""
        return str(self.option("prompt") or Path(str(self.option("image") or "(no prompt)")).stem)

    @property
    def seed(self) -> str:
        return "?" if self.option("seed") is None else str(self.option("seed"))

    @property
    def method(self) -> str:
        """The config that made it, with its changes if a batch of runs has noted them; "" if nobody says."""
        return str(read_json(self.folder / "job.json").get("method") or made_of(self.text))

    @property
    def choices(self) -> list[str]:
        """Where it has another choice than the shipped config that made it, and `method` does not say so."""
        usual = _usual(self.method.partition(" ")[0])
        own = {part: self.option(part, "name") for part in usual}
        changed = [f"{part}.name={name}" for part, name in own.items() if name not in (None, usual[part])]
        return [text for text in changed if text not in self.method.split()]

    @property
    def steps(self) -> int | None:
        """Optimisation steps done, as far as the summary says."""
        return as_int(self.metadata("steps"))

    @property
    def max_steps(self) -> int | None:
        return as_int(self.option("trainer", "max_steps"))

    @property
    def sides(self) -> int:
        """How many pictures are on views.png, in rows of ROW."""
        return min(SIDES, max(1, as_int(self.option("result", "turntable", "n_view")) or SIDES))

    @property
    def seconds(self) -> float | None:
        return as_float(self.metadata("seconds"))

    @property
    def state(self) -> str:
        """One of STATES. A finished run that was made longer since then is unfinished."""
        status = self.metadata("status")
        longer = status == "finished" and (self.steps or 0) < (self.max_steps or 0)
        return str(status) if isinstance(status, str) and status in STATES and not longer else "unfinished"

    @property
    def notes(self) -> list[str]:
        """What the user should know, such as words that the prior did not understand."""
        notes = self.metadata("notes")
        return [str(note) for note in notes] if isinstance(notes, list) else []

    @property
    def reason(self) -> str:
        """Why it stopped before its end; "" if it did not, or nobody says."""
        return str(self.metadata("reason") or "")

    @property
    def ended(self) -> datetime:
        """When it ended (UTC); while it has not, or does not say, when its files last changed."""
        try:
            return datetime.fromisoformat(str(self.metadata("ended"))).astimezone(UTC)
        except (ValueError, OverflowError, OSError):
            names = (SUMMARY,) if self.summary else ("metrics.jsonl", CONFIG)
            changed = [path.stat().st_mtime for path in map(self.file, names) if path]
            return datetime.fromtimestamp(max(changed, default=0.0), UTC)


def read_record(folder: Path) -> Record:
    """Reads the run in a folder. Raises ConfigError if config or summary cannot be read, or it is of another task."""
    config = stored_config(folder)
    if config is None:
        raise ConfigError(f"{folder / CONFIG} holds no config: it is not there, or no longer whole")
    if config.get("task") not in TASKS:
        raise ConfigError(
            f"{folder} should hold a run of the task {' or '.join(TASKS)} (it is of {short(config.get('task'))})"
        )
    summary = read_summary(folder)
    if not summary and (folder / SUMMARY).exists():
        again = command("--resume", str(folder))
        raise ConfigError(f"{folder / SUMMARY} is damaged; {again} goes on with the run and writes it anew")
    return Record(folder, config, summary, (folder / CONFIG).read_text(encoding="utf-8"))


@cache
def _usual(name: str) -> dict[str, Any]:
    """Reads the choices of a shipped config; {} for any other, and for one that has none."""
    tree: dict[str, Any] = {}
    with suppress(ConfigError):
        tree = plain(load(name, quiet=True)) if name in shipped() else {}
    return {part: tree[part]["name"] for part in ("prior", "distillation", "field") if part in tree}


def _inside(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def as_float(value: Any) -> float | None:
    """Reads a number of a file as a finite float; None for anything else."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= sys.float_info.max else None


def as_int(value: Any) -> int | None:
    """Reads a number of a file as an int; None for anything else."""
    number = as_float(value)
    return None if number is None else int(number)
