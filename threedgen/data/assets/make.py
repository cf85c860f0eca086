"""The task "make-asset-views": render user meshes with captions into shards (tar files) of views.

    RUN/views/       shards (`shards.py`) and their index
    RUN/assets.csv   state of each mesh and each line of the captions, with notes or the reason why it is left out
    RUN/sheet.png    contact sheet: four sides of each asset (sheet-2.png, ...); available after the first shard

A killed run continues with the missing shards. An asset whose rendering kills the process repeatedly is left out.
"""

import logging
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from threedgen.config import plain, tree_hash
from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import png, to_uint8
from threedgen.geometry.poses import orbit_array
from threedgen.geometry.side_files import TEXTURES
from threedgen.run.disk import Tree, make_folder, write_atomic, write_json, writing
from threedgen.run.interrupts import Stopped
from threedgen.run.metrics import csv_table
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import numpy_generator
from threedgen.run.threads import set_threads, threads_each
from threedgen.run.worker_pool import run_jobs
from threedgen.train.task import Task, run_task

from .listing import INDEX, SHARDS, Asset
from .options import AssetsConfig, ViewsConfig
from .shards import Shards, add_asset, checksum, is_complete, new_shard, write_sheet

logger = logging.getLogger(__name__)


def read_asset(folder: Path, asset: Asset) -> ColouredMesh:
    """Read the mesh of an asset and scale it into a ball of radius 0.85 (`OBJECT_RADIUS`) at the origin.

    The mesh is converted to z up and turned about z by `asset.turn` degrees, counter-clockwise seen from above, after
    which its front should face +x. `folder` is the folder of all assets. Raises ConfigError if the file is broken,
    empty or too large.
    """
    path = folder / asset.file
    try:
        return fit_to_ball(read_mesh(path, asset.up, turn=asset.turn), OBJECT_RADIUS)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), "it", 1)) from None


def cameras(options: ViewsConfig, seed: int, name: str) -> Cameras:
    """Sample the cameras of the asset `name`, ring by ring. All cameras look at the origin; z is up.

    A ring is a circle of `options.azimuths` evenly spaced cameras, from the front of the object (azimuth 0, +x)
    counter-clockwise seen from above. The cameras of a ring have the same elevation, field of view and distance. These
    three are random for each ring, and depend only on the seed and the name.
    """
    o, rng = options, numpy_generator(seed, 0, f"views of {name}")
    fov, elevation = (np.deg2rad(rng.uniform(*bounds, o.rings)) for bounds in (o.fov, o.elevation))
    distance = rng.uniform(*o.relative_distance, o.rings) / np.tan(fov / 2)
    azimuth = np.tile(2 * np.pi * np.arange(o.azimuths) / o.azimuths, o.rings)
    fov, elevation, distance = (np.repeat(part, o.azimuths) for part in (fov, elevation, distance))
    projection = Projection.perspective(torch.from_numpy(fov).float(), o.size, o.size)
    return Cameras(torch.from_numpy(orbit_array(elevation, azimuth, distance)), projection, o.size, o.size)


PLAIN = "no colours: rendered white"  # note to the user about an asset
CRASHES = "lost.json"  # file that lists the assets whose rendering killed a process, with the reason
MAX_WARNINGS = 20
"""Maximum number of warnings in the log. The file assets.csv has all of them."""


@dataclass(frozen=True)
class Job:
    """Job of a worker: render one shard, a tar file of views of several assets.

    Attributes:
        number: index of the shard.
        assets: assets in the shard.
        key: hash of the render settings, the assets, and the sizes and times of their files. A shard on disk with
            another key is outdated.
        name: file name of the shard without suffix, such as "shard-00000".
    """

    number: int
    assets: tuple[Asset, ...]
    key: str
    name: str


def make(task: Task) -> None:
    shards = render(task.config, task.folder, task.quiet)
    left_out = len(shards.index["left_out"])
    task.summarise(assets=len(shards), left_out=left_out, views=len(shards) * shards.azimuths * shards.rings)


run = partial(run_task, make, result="sheet.png", files=("sheet.png", "assets.csv", SHARDS), rerun_finished=True)


def render(config: AssetsConfig, run_folder: Path, quiet: bool) -> Shards:
    """Render the meshes in the folder `config.data` into shards. Return a reader of all shards.

    Shards, assets.csv and the contact sheet are written to `run_folder`. `quiet` hides the progress bar. Raises Stopped
    after Ctrl-C or SIGTERM, and ConfigError if no mesh can be rendered.
    """
    folder, data = run_folder / SHARDS, Path(config.data).expanduser()
    with writing(folder):
        make_folder(folder)
    listing = config.listing()
    every = jobs(config, data, listing.assets)
    if code := make_shards(config, every, run_folder, data, quiet):
        raise Stopped(code)
    with writing(run_folder):
        _remove_stale(folder, every)
        write_json(folder / INDEX, build_index(config, every, folder, listing.left_out))
        shards = Shards(folder)
        left_out = shards.index["left_out"]
        rows = [{"file": entry.file, "state": "rendered", "note": "; ".join(entry.notes)} for entry in shards.entries]
        rows += [{"file": file, "state": "left out", "note": reason} for file, reason in left_out.items()]
        write_atomic(run_folder / "assets.csv", csv_table(rows))
        _log_notes(rows, run_folder / "assets.csv")
        if not len(shards):
            file, reason = next(iter(left_out.items()))
            raise ConfigError(f"no mesh in {data} can be rendered ({file}: {reason})", "data")
        write_sheet(run_folder, shards, config.sheet)
    return shards


def jobs(config: AssetsConfig, data: Path, assets: tuple[Asset, ...]) -> list[Job]:
    """Divide the assets into shards (tar files) of at most `config.views.per_shard` assets. Return one job per shard.

    The jobs are in the order of the assets. `data` is the folder of the mesh files.
    """
    size, result = config.views.per_shard, list[Job]()
    settings = {"seed": config.seed, "views": plain(config.views)}
    for number, start in enumerate(range(0, len(assets), size)):
        part = assets[start : start + size]
        files = [[*asdict(asset).values(), *_size_and_time(data / asset.file)] for asset in part]
        result.append(Job(number, part, tree_hash(settings | {"assets": files}), f"shard-{number:05d}"))
    return result


def _size_and_time(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def read_finished(folder: Path, job: Job) -> Tree | None:
    """Return the content of a shard's JSON file in `folder`; None if the shard is missing, outdated or truncated.

    The content is the name, size and SHA-256 of the tar file, the key (`Job.key`), the rendered assets, the left-out
    assets with reasons, and the modification times of "side_files": files that were read with the meshes, and folders
    to which missing ones may have been added.
    """
    found = read_json(folder / f"{job.name}.json")
    unchanged = found.get("key") == job.key and all(
        _modified(Path(path)) == time for path, time in found.get("side_files", {}).items()
    )
    return found if unchanged and is_complete(folder, found) else None


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def make_shards(config: AssetsConfig, every: list[Job], run_folder: Path, data: Path, quiet: bool) -> int:
    """Render the missing shards in parallel workers, and write them to RUN/views/, where RUN is `run_folder`.

    `every` lists the jobs of all shards, also of finished ones. `data` is the folder of the meshes. Return 0 if all
    shards are finished, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    folder = run_folder / SHARDS
    work = partial(
        make_shard,
        views=config.views,
        seed=config.seed,
        folder=Path(os.path.abspath(folder)),
        data=Path(os.path.abspath(data)),
        threads=threads_each(config),
    )
    total = sum(len(job.assets) for job in every)
    while missing := [job for job in every if read_finished(folder, job) is None]:
        done = total - sum(len(job.assets) for job in missing)
        with ProgressDisplay("assets", total, quiet, done=done) as count:

            def on_done(job: Job, _: None, count: ProgressDisplay = count) -> None:
                count.add(len(job.assets), job.assets[-1].caption)
                first = Shards(folder, build_index(config, [job], folder, {}))
                if len(first) and not (run_folder / "sheet.png").exists():  # an early preview
                    with writing(run_folder):
                        write_sheet(run_folder, first, config.sheet)

            if code := run_jobs(missing, work, on_done, partial(skip_asset, folder=folder), config):
                return code
    return 0


def skip_asset(job: Job, reason: str, folder: Path) -> None:
    """Add the asset at which a job failed repeatedly to lost.json in `folder`, the list of assets to leave out.

    The asset is the one that the worker began last. Its file name is in NAME.at in `folder` (NAME is `job.name`), which
    the worker writes before it renders an asset. If there is no such file, it is the first asset of the job. `reason`
    is the error message of the last attempt; it is stored in lost.json.
    """
    current = read_json(folder / f"{job.name}.at") or {"file": job.assets[0].file, "mark": None}
    logger.warning("asset skipped after repeated failures: %s (%s)", current["file"], reason)
    with writing(folder):
        crash = {str(current["file"]): {"mark": current["mark"], "reason": f"cannot be rendered ({reason})"}}
        write_json(folder / CRASHES, read_json(folder / CRASHES) | crash)


def make_shard(job: Job, views: ViewsConfig, seed: int, folder: Path, data: Path, threads: int | None) -> None:
    """Render the assets of one shard in a worker, and write the shard to two files in `folder`; NAME is `job.name`.

    - NAME.tar: views, captions and cameras of the rendered assets.
    - NAME.json: size and SHA-256 of NAME.tar, list of its assets, and left-out assets with reasons.

    An asset is left out if its mesh cannot be read, or if lost.json in `folder` lists it: a worker has failed at it
    repeatedly (`skip_asset`). If the mesh file has changed since that failure, the asset is rendered nevertheless.

    Args:
        job: name and assets of the shard.
        views: options of the cameras, the light and the image size.
        seed: seed of the random cameras.
        folder: folder of the shards.
        data: folder of the meshes.
        threads: number of CPU threads; None: one per core.

    Raises:
        DiskFull, FileError: if the shard cannot be written.
    """
    set_threads(threads)
    left_out, entries, crashes = dict[str, str](), list[Tree](), read_json(folder / CRASHES)
    side_files = dict[str, int | None]()
    path, current_file = folder / f"{job.name}.tar", folder / f"{job.name}.at"
    with writing(folder):
        (folder / f"{job.name}.json").unlink(missing_ok=True)
        with new_shard(path) as shard:
            for asset in job.assets:
                current = {"file": asset.file, "mark": list(_size_and_time(data / asset.file))}
                write_json(current_file, current)
                try:
                    if (crash := crashes.get(asset.file, {})).get("mark", 0) in (current["mark"], None):
                        raise ConfigError(str(crash["reason"]))
                    mesh = read_asset(data, asset)
                except ConfigError as error:
                    left_out[asset.file] = str(error)
                    continue
                places = list(mesh.side_files)
                if mesh.notes:  # of missing textures, for example
                    place = (data / asset.file).resolve().parent
                    places += [place, place / TEXTURES, place.parent / TEXTURES]
                side_files |= {str(path): _modified(path) for path in places}  # before they can change while rendering
                at = cameras(views, seed, asset.name)
                images = [png(image) for image in to_uint8(mesh.render_views(at, None, views.light))]
                notes = [*([PLAIN] if mesh.plain else []), *mesh.notes]
                entry = {"name": asset.name, "file": asset.file, "caption": asset.caption, "notes": notes}
                poses = {"azimuths": views.azimuths, "c2w": at.c2w.tolist(), "fov": at.fov.tolist()}
                add_asset(shard, asset.name, entry | poses, images)
                entries.append(entry)
        summary = checksum(path) | {"key": job.key, "assets": entries, "left_out": left_out, "side_files": side_files}
        write_json(folder / f"{job.name}.json", summary)
        current_file.unlink(missing_ok=True)


def build_index(config: AssetsConfig, every: list[Job], folder: Path, left_out: dict[str, str]) -> Tree:
    """Return the content of index.json: render settings, shards in the order of `every`, left-out assets with reasons.

    Args:
        config: options of the rendering.
        every: jobs of the shards, which must all be finished. Shards without assets are omitted.
        folder: folder of the shards.
        left_out: what is in no job, with reasons: dict from mesh file ("chair.glb") or line of the captions file
            ("captions.csv, line 3") to reason. The result also lists the assets that could not be rendered.
    """
    found = [read_json(folder / f"{job.name}.json") for job in every]
    left_out = left_out | {file: reason for shard in found for file, reason in shard["left_out"].items()}
    shards = [{key: shard[key] for key in ("file", "bytes", "sha256", "assets")} for shard in found if shard["assets"]]
    return {"format": "webdataset", **plain(config.views), "seed": config.seed, "shards": shards, "left_out": left_out}


def _remove_stale(folder: Path, every: list[Job]) -> None:
    names = {job.name for job in every}
    for path in folder.glob("shard-*"):
        if path.suffix in (".tar", ".json", ".at") and path.stem not in names:
            path.unlink()


def _log_notes(rows: list[dict[str, str]], path: Path) -> None:
    notes = [(row["state"], row["file"], row["note"]) for row in reversed(rows) if row["note"]]
    for state, file, note in notes[:MAX_WARNINGS]:
        logger.warning("%s: %s (%s)", "left out" if state == "left out" else "note", file, note)
    if len(notes) > MAX_WARNINGS:
        logger.warning("%d more notes: see %s", len(notes) - MAX_WARNINGS, path)
