"""What a generate run leaves behind: turntable, views, mesh, game-ready asset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threedgen.config import config_hash
from threedgen.config.command import command
from threedgen.config.errors import in_a_line
from threedgen.config.sections import OrbitCameraConfig
from threedgen.export.asset import ExportedAsset
from threedgen.export.asset_folder import FOLDER, clear
from threedgen.export.files.glb import save_glb
from threedgen.export.run_field import RunField, field_view
from threedgen.export.shape.from_field import FieldView, field_surface
from threedgen.export.shape.opacity import EmptyField
from threedgen.export.task import export, progress_bar, save, summary_entry, summary_notes
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import grid, to_uint8, write_mp4, write_png
from threedgen.geometry.rigs import turntable
from threedgen.run.disk import atomic_file
from threedgen.run.progress import Count
from threedgen.systems.generate.options import ResultConfig

from .system import GenerateSystem

logger = logging.getLogger(__name__)
VIEWS = 8
"""Sides on views.png, in two rows."""


def view_azimuths(options: OrbitCameraConfig) -> NDArray[np.floating]:
    """Where the cameras of the sides in views.png stand: azimuths, radians."""
    return np.deg2rad(options.azimuth) + 2 * np.pi * np.asarray(view_indices(options.n_view)) / options.n_view


def view_indices(n: int) -> list[int]:
    """Which of the ``n`` turntable pictures are on views.png: eight, evenly, or all if there are fewer."""
    count = min(VIEWS, n)
    return [k * n // count for k in range(count)]


def write_results(system: GenerateSystem, folder: Path, notes: list[str], quiet: bool = False) -> dict[str, Any]:
    """Draw and export the field; returns figures for the summary.  A field without a surface is a note, no error."""
    config = system.config
    system.eval()
    write_turn(system.pictures, config.result, folder, quiet)
    view = field_view(system.field, system.occupancy, config.march, system.device)
    provenance = {"prompt": config.prompt, "seed": config.seed, "config_hash": config_hash(config)}
    with Count("surface", 1, quiet) as count:
        figures = write_mesh(view, config.result.mesh_resolution, folder, provenance, notes)
        count.add(1)
    if not figures:
        clear(folder / FOLDER)  # of an earlier, shorter part of the run
        return {}
    return figures | (write_asset(system, folder, notes, quiet) if config.export.enabled else {})


def write_turn(pictures: Callable[[Cameras], Tensor], options: ResultConfig, folder: Path, quiet: bool = False) -> None:
    """turntable.mp4, and views.png with some of its pictures; ``pictures``: cameras -> (B, H, W, 3) in [0, 1]."""
    cameras = turntable(options.turntable)
    seen = []
    with Count("turntable", len(cameras), quiet) as count:
        for k in range(len(cameras)):
            seen.append(pictures(cameras.select([k])))
            count.add(1)
    turn = torch.cat(seen)
    write_mp4(list(turn), folder / "turntable.mp4", options.fps)
    write_views(turn[view_indices(len(turn))], folder)


def write_views(views: Any, folder: Path) -> None:
    """views.png, and the same pictures (N, H, W, 3) for programs in views.npz, uint8."""
    write_png(folder / "views.png", grid(views, VIEWS // 2))
    with atomic_file(folder / "views.npz") as file:
        np.savez_compressed(file, views=to_uint8(views))


def write_mesh(
    view: FieldView, resolution: int, folder: Path, provenance: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    """mesh.glb; returns its size. Without a surface there is none, and a note says so."""
    try:
        mesh = field_surface(view, resolution)
    except EmptyField as error:
        _note(notes, str(error))
        (folder / "mesh.glb").unlink(missing_ok=True)  # of an earlier, shorter part of the run
        return {}
    save_glb(mesh, folder / "mesh.glb", provenance)
    return {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)}


def make_asset(system: GenerateSystem, folder: Path, quiet: bool = True) -> ExportedAsset:
    """Writes the asset of the field as it is now into `folder`. Raises ConfigError; a low budget is no error."""
    config = system.config
    elevations = config.camera.elevation_range
    view = field_view(system.field, system.occupancy, config.march, system.device, elevations)
    field = RunField(view, config, system.trainer.global_step)
    with progress_bar(quiet) as on_step:
        asset = export(field, config.export, nearest_budget=True, on_step=on_step)
        save(asset, folder, config.export)
    return asset


def write_asset(system: GenerateSystem, folder: Path, notes: list[str], quiet: bool = True) -> dict[str, Any]:
    """Writes folder/asset, if it can be made; returns figures for the summary."""
    again = f" ({command('--config', 'export', f'run={folder}')} tries again)"
    return try_asset(lambda: make_asset(system, folder / FOLDER, quiet), folder, notes, again)


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
        clear(folder / FOLDER)  # of an earlier, shorter part of the run
        return {}
    for text in summary_notes(asset):
        _note(notes, text)
    return {"asset": summary_entry(asset)}


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    logger.warning("%s", text)
