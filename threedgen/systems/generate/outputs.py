"""What a generate run leaves behind: turntable, views, mesh, game-ready asset; and the object that Python gets back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from threedgen.config import config_hash
from threedgen.config.errors import in_a_line
from threedgen.config.sections import OrbitCameraConfig
from threedgen.export.asset import ExportedAsset
from threedgen.export.files.glb import save_glb
from threedgen.export.options import FOLDER
from threedgen.export.run_field import RunField, view_of
from threedgen.export.shape.from_field import FieldView, surface_of
from threedgen.export.shape.opacity import EmptyField
from threedgen.export.task import export, save
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import grid, to_uint8, write_mp4, write_png
from threedgen.geometry.rigs import turntable
from threedgen.run.folder import replacing
from threedgen.run.metrics import read_summary
from threedgen.run.text import say
from threedgen.systems.generate.options import ResultConfig

from .system import GenerateSystem

logger = logging.getLogger(__name__)
VIEWS = 8
"""Sides on views.png, in two rows."""
FILES = ("preview.png", "turntable.mp4", "views.png", "views.npz", "mesh.glb")
"""What a run makes, as far as it can."""


def _file(name: str, about: str) -> Any:
    return property(lambda run: run.file(name), doc=f"{name}: {about}")


@dataclass(frozen=True)
class Run:
    """A run folder and its files; a file that the run could not make is None."""

    folder: Path
    status: str

    preview = _file("preview.png", "the views that the prior sampled from the prompt")
    turntable = _file("turntable.mp4", "one turn around the result")
    views = _file("views.png", "eight sides of the result")
    mesh = _file("mesh.glb", "vertex colours, +Y up, front +Z")
    report = _file("report.html", "all of it on one page")
    summary = _file("summary.json", "time, memory, versions, seed")

    def file(self, name: str) -> Path | None:
        """The file of this name in the folder, if there is one."""
        path = self.folder / name
        return path if path.exists() else None

    @property
    def asset(self) -> Path | None:
        """The GLB in asset/: textured, within the triangle budget; its levels of detail and collider lie beside it."""
        figures = read_summary(self.folder).get("asset")
        return self.file(str(figures["file"])) if isinstance(figures, dict) and "file" in figures else None


def tell(run: Run, quiet: bool = False) -> None:
    """Prints where a run's asset and page are, and last its folder."""
    height = (read_summary(run.folder).get("asset") or {}).get("height", "")
    for name, path, more in (("asset", run.asset, height), ("page", run.report, "")):
        if path is not None and not quiet:
            say(f"{name}: {path}{f' ({more})' if more else ''}")
    say(str(run.folder))


def view_azimuths(options: OrbitCameraConfig) -> NDArray[np.floating]:
    """Where the cameras of the sides in views.png stand: azimuths, radians."""
    return np.deg2rad(options.azimuth) + 2 * np.pi * np.asarray(view_indices(options.n_view)) / options.n_view


def view_indices(n: int) -> list[int]:
    """Which of the ``n`` turntable pictures are on views.png: eight, evenly, or all if there are fewer."""
    count = min(VIEWS, n)
    return [k * n // count for k in range(count)]


def write_results(system: GenerateSystem, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Draw and export the field; returns figures for the summary.  A field without a surface is a note, no error."""
    config = system.config
    system.eval()
    write_turn(system.pictures, config.result, folder)
    view = view_of(system.field, system.occupancy, config.march, system.device)
    provenance = {"prompt": config.prompt, "seed": config.seed, "config_hash": config_hash(config)}
    figures = write_mesh(view, config.result.mesh_resolution, folder, provenance, notes)
    if not figures:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of an earlier, shorter part of the run
        return {}
    return figures | (write_asset(system, folder, notes) if config.export.enabled else {})


def write_turn(pictures: Callable[[Cameras], Tensor], options: ResultConfig, folder: Path) -> None:
    """turntable.mp4, and views.png with some of its pictures; ``pictures``: cameras -> (B, H, W, 3) in [0, 1]."""
    turn = pictures(turntable(options.turntable))
    write_mp4(list(turn), folder / "turntable.mp4", options.fps)
    write_views(turn[view_indices(len(turn))], folder)


def write_views(views: Any, folder: Path) -> None:
    """views.png, and the same pictures (N, H, W, 3) for programs in views.npz, uint8."""
    write_png(folder / "views.png", grid(views, VIEWS // 2))
    with replacing(folder / "views.npz") as file:
        np.savez_compressed(file, views=to_uint8(views))


def write_mesh(
    view: FieldView, resolution: int, folder: Path, provenance: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """mesh.glb; returns its size. Without a surface there is none, and a note says so."""
    try:
        mesh = surface_of(view, resolution)
    except EmptyField as error:
        _note(notes, str(error))
        (folder / "mesh.glb").unlink(missing_ok=True)  # of an earlier, shorter part of the run
        return {}
    save_glb(mesh, folder / "mesh.glb", provenance)
    return {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)}


def make_asset(system: GenerateSystem, folder: Path) -> ExportedAsset:
    """Writes the asset of the field as it is now into `folder`. Raises ConfigError; a low budget is no error."""
    config = system.config
    elevations = config.camera.elevation_range
    view = view_of(system.field, system.occupancy, config.march, system.device, elevations)
    asset = export(RunField(view, config, system.trainer.global_step), config.export, nearest_budget=True)
    save(asset, folder, config.export)
    return asset


def write_asset(system: GenerateSystem, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Writes folder/asset, if it can be made; returns figures for the summary."""
    again = f" (launch.py --config export run={folder} tries again)"
    return try_asset(lambda: make_asset(system, folder / FOLDER), folder, notes, again)


def try_asset(make: Callable[[], ExportedAsset], folder: Path, notes: list[str], again: str = "") -> dict[str, Any]:
    """Has folder/asset written by `make`; returns figures for the summary. `again`: how to try once more.

    The run is done, so whatever stands in the way of its asset (a full field, a strict check, a full disk, Ctrl-C, a
    fault in a library) is one note and no error, and there is no asset; a budget that the shape does not allow becomes
    the nearest.
    """
    try:
        asset = make()
    except (Exception, KeyboardInterrupt) as error:
        logger.debug("no asset", exc_info=error)
        _note(notes, f"no asset: {in_a_line(error)}{again}")
        shutil.rmtree(folder / FOLDER, ignore_errors=True)  # half of it, or that of an earlier, shorter part of the run
        return {}
    for text in asset.notes + asset.faults:
        _note(notes, f"asset: {text}")
    return {
        "asset": {
            "file": f"{FOLDER}/{next(iter(asset.files))}",
            "levels": asset.figures["levels"],
            "height": asset.figures.get("height", ""),
            "seconds": round(sum(asset.seconds.values()), 2),
        }
    }


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    logger.warning("%s", text)
