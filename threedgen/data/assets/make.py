"""The task "make-asset-views": users' meshes with captions become shards of views.

    RUN/views/       shards (``shards.py``) and their index
    RUN/assets.csv   each mesh, and each line of the captions: whether it was rendered, or why not, and what is odd
    RUN/sheet.png    what was read: four sides of each asset above its caption (sheet-2.png, ...); a first one is there
                     as soon as the first shard is

A shard is written whole or not at all, and known to be whole by what is written beside it: a killed run goes on with
the others. An asset at which a process dies again and again is left out, and the rest of its shard is made.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from threedgen.config import plain, tree_hash
from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.geometry.images import png, to_uint8
from threedgen.run.disk import write_atomic, write_json, writing
from threedgen.run.interrupts import Stopped
from threedgen.run.metrics import csv_table
from threedgen.run.options import ENGINE
from threedgen.run.progress import Count
from threedgen.run.threads import set_threads, threads_each
from threedgen.run.workers import run_jobs
from threedgen.train.task import Task, run_task

from .drawing import cameras, draw, read_asset
from .listing import Asset
from .options import INDEX, SHARDS, AssetsConfig, ViewsConfig
from .shards import Shards, new_shard, seal, whole
from .sheet import write_sheet

logger = logging.getLogger(__name__)
REMEDY = "make room there and run the same command again, it goes on with the shards that are missing"
LOST = "lost.json"
"""Assets at which processes died, and of what."""
SAID = 20
"""Sentences on what is left out that are said; all are in assets.csv."""


@dataclass(frozen=True)
class Job:
    """A shard to be made. ``key``: of all that decides its content, as far as sizes and times of files tell."""

    number: int
    assets: tuple[Asset, ...]
    key: str
    name: str


def make(task: Task) -> None:
    """Renders what is not there yet. Raises Stopped after Ctrl-C, ConfigError if nothing can be rendered."""
    shards = render(task.config, task.folder, task.quiet)
    left_out = len(shards.index["left_out"])
    task.summarise(assets=len(shards), left_out=left_out, views=len(shards) * shards.azimuths * shards.rings)


run = partial(run_task, make, result="sheet.png", files=("sheet.png", "assets.csv", SHARDS), again=True)


def render(config: AssetsConfig, run_folder: Path, quiet: bool) -> Shards:
    """Shards, list and sheet of a folder of meshes, in ``run_folder``. Raises Stopped, ConfigError."""
    folder, data = run_folder / SHARDS, Path(config.data).expanduser()
    with writing(folder, REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    listing = config.listing()
    every = jobs(config, data, listing.assets)
    if code := make_all(config, every, run_folder, data, quiet):
        raise Stopped(code)
    with writing(run_folder, REMEDY):
        _clear(folder, every)
        write_json(folder / INDEX, index_of(config, every, folder, listing.left_out))
        shards = Shards(folder)
        left_out = shards.index["left_out"]
        rows = [{"file": entry.file, "state": "rendered", "said": "; ".join(entry.notes)} for entry in shards.entries]
        rows += [{"file": file, "state": "left out", "said": reason} for file, reason in left_out.items()]
        write_atomic(run_folder / "assets.csv", csv_table(rows))
        _say(rows, run_folder / "assets.csv", quiet)
        if not len(shards):
            file, reason = next(iter(left_out.items()))
            raise ConfigError(f"none of the meshes in {data} can be rendered ({file}: {reason})", "data")
        write_sheet(run_folder, shards, config.sheet)
    return shards


def jobs(config: AssetsConfig, data: Path, assets: tuple[Asset, ...]) -> list[Job]:
    """All shards, in their order."""
    size, found = config.views.per_shard, list[Job]()
    settings = {"seed": config.seed, "views": plain(config.views)}
    for number, start in enumerate(range(0, len(assets), size)):
        part = assets[start : start + size]
        files = [[*asdict(asset).values(), *_mark(data / asset.file)] for asset in part]
        found.append(Job(number, part, tree_hash(settings | {"assets": files}), f"shard-{number:05d}"))
    return found


def _mark(path: Path) -> tuple[int, int]:
    """Size and time of a file, by which an edit of it is noticed."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def made(folder: Path, job: Job) -> dict[str, Any] | None:
    """What is written beside a shard; None if it is not there, is another one, or is cut short."""
    found = read_json(folder / f"{job.name}.json")
    return found if found.get("key") == job.key and whole(folder, found) else None


def make_all(config: AssetsConfig, every: list[Job], run_folder: Path, data: Path, quiet: bool) -> int:
    """Makes the shards that are not there; returns 0, or the exit code for the signal that stopped it."""
    folder = run_folder / SHARDS
    work = partial(
        make_shard,
        views=config.views,
        seed=config.seed,
        folder=Path(os.path.abspath(folder)),
        data=Path(os.path.abspath(data)),
        threads=threads_each(config),
    )
    who = config.model_dump(include=set(ENGINE))
    while left := [job for job in every if made(folder, job) is None]:
        done = sum(len(job.assets) for job in every) - sum(len(job.assets) for job in left)
        with Count("assets", done + sum(len(job.assets) for job in left), quiet, done=done) as count:

            def on_done(job: Job, _: None, count: Count = count) -> None:
                count.add(len(job.assets), job.assets[-1].caption)
                first = Shards(folder, index_of(config, [job], folder, {}))
                if len(first) and not (run_folder / "sheet.png").exists():  # to look at while the others are made
                    with writing(run_folder, REMEDY):
                        write_sheet(run_folder, first, config.sheet)

            if code := run_jobs(left, work, on_done, partial(give_up, folder=folder), **who):
                return code
    return 0


def give_up(job: Job, reason: str, folder: Path) -> None:
    """Of a shard whose making failed again and again, the asset at which it did is left out from now on."""
    at = read_json(folder / f"{job.name}.at") or {"file": job.assets[0].file, "mark": None}
    logger.warning("given up: %s (%s)", at["file"], reason)
    with writing(folder, REMEDY):
        lost = {str(at["file"]): {"mark": at["mark"], "reason": f"it cannot be rendered ({reason})"}}
        write_json(folder / LOST, read_json(folder / LOST) | lost)


def make_shard(job: Job, views: ViewsConfig, seed: int, folder: Path, data: Path, threads: int | None) -> None:
    """In a worker. Raises ConfigError if the disk is full."""
    set_threads(threads)
    left_out, entries, lost = dict[str, str](), list[dict[str, Any]](), read_json(folder / LOST)
    path, mark = folder / f"{job.name}.tar", folder / f"{job.name}.at"
    with writing(folder, REMEDY):
        (folder / f"{job.name}.json").unlink(missing_ok=True)
        with new_shard(path) as shard:
            for asset in job.assets:
                now = {"file": asset.file, "mark": list(_mark(data / asset.file))}
                write_json(mark, now)
                try:
                    if (known := lost.get(asset.file, {})).get("mark", 0) in (now["mark"], None):
                        raise ConfigError(str(known["reason"]))
                    read = read_asset(data, asset)
                except ConfigError as error:
                    left_out[asset.file] = str(error)
                    continue
                at = cameras(views, seed, asset.name)
                pictures = [png(picture) for picture in to_uint8(draw(read.mesh, at, views))]
                entry = {"name": asset.name, "file": asset.file, "caption": asset.caption, "notes": list(read.notes)}
                poses = {"azimuths": views.azimuths, "c2w": at.c2w.tolist(), "fov": at.fov.tolist()}
                shard.add_asset(asset.name, entry | poses, pictures)
                entries.append(entry)
        sealed = seal(path) | {"key": job.key, "assets": entries, "left_out": left_out}
        write_json(folder / f"{job.name}.json", sealed)
        mark.unlink(missing_ok=True)


def index_of(config: AssetsConfig, every: list[Job], folder: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """What index.json says: the shards in the order of the jobs, and all that is left out."""
    found = [made(folder, job) or {} for job in every]
    left_out = left_out | {file: reason for shard in found for file, reason in shard["left_out"].items()}
    shards = [{key: shard[key] for key in ("file", "bytes", "sha256", "assets")} for shard in found if shard["assets"]]
    return {"format": "webdataset", **plain(config.views), "seed": config.seed, "shards": shards, "left_out": left_out}


def _clear(folder: Path, every: list[Job]) -> None:
    """Takes away shards of an earlier state of the folder, when there were more. Raises OSError."""
    names = {job.name for job in every}
    for path in folder.glob("shard-*"):
        if path.suffix in (".tar", ".json", ".at") and path.stem not in names:
            path.unlink()


def _say(rows: list[dict[str, str]], path: Path, quiet: bool) -> None:
    """A sentence for each asset of which there is something to say, on stderr."""
    sentences = [(row["state"], row["file"], row["said"]) for row in reversed(rows) if row["said"]]
    for state, file, said in sentences[:SAID]:
        logger.warning("%s: %s (%s)", "left out" if state == "left out" else "note", file, said)
    if len(sentences) > SAID:
        logger.warning("and %d more: see %s", len(sentences) - SAID, path)
