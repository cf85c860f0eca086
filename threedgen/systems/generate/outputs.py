"""Writers of the results of a run: turntable, views, mesh, game-ready asset, and the files of exporter plug-ins."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threedgen.config import config_hash, registry
from threedgen.config.command import command
from threedgen.config.errors import one_line, storage_error
from threedgen.config.sections import OrbitCameraConfig
from threedgen.export.asset import ExportedAsset
from threedgen.export.asset_folder import FOLDER, clear
from threedgen.export.files.glb import save_glb
from threedgen.export.run_field import RunField, field_view
from threedgen.export.shape.from_field import FieldView, field_surface
from threedgen.export.shape.opacity import EmptyField
from threedgen.export.task import export, summary_entry
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import grid, to_uint8, write_mp4, write_png
from threedgen.geometry.rigs import turntable
from threedgen.run.disk import Tree, atomic_file
from threedgen.run.progress import ProgressDisplay

from .sections import ResultConfig
from .system import GenerateSystem

logger = logging.getLogger(__name__)
OWN_ENTRIES = frozenset(
    "asset config config_hash ended environment folder metrics notes peak_memory_mib plugins preset prompt reason "
    "seconds seconds_of seed status steps task triangles vertices".split()
)
"""Names that entries of exporter plug-ins in summary.json cannot have."""
VIEWS = 8  # number of views in views.png, in two rows


def view_azimuths(options: OrbitCameraConfig) -> NDArray[np.floating]:
    """Return the azimuths (n,) in radians of the n <= 8 images in views.png, which are frames of the turntable.

    Azimuth 0 is the front; azimuths increase counter-clockwise, seen from above. `options` are the turntable's options.
    """
    return 2 * np.pi * np.asarray(view_indices(options.n_view)) / options.n_view


def view_indices(n: int) -> list[int]:
    """Return which of the `n` turntable frames are in views.png: 8 evenly spaced indices, or all if `n` is below 8."""
    count = min(VIEWS, n)
    return [k * n // count for k in range(count)]


def write_results(system: GenerateSystem, folder: Path, notes: list[str], quiet: bool = False) -> Tree:
    """Render and export the object to the run folder, and return entries for summary.json.

    The entries are "vertices" and "triangles" (counts of mesh.glb), "asset" (file, triangles, height and export time of
    the textured mesh), "metrics" (values of metric plug-ins by name, null if not finite), and those of exporter
    plug-ins; their lists "files" are joined. Entries of plug-ins with a name in `OWN_ENTRIES` are left out, and an
    object without a surface gets neither mesh nor asset; a warning is then appended to `notes`. `quiet`: show no
    progress.
    """
    config = system.config
    system.eval()
    write_turn(system.images, config.result, folder, quiet)
    figures: Tree = {}
    if config.metrics:
        with torch.no_grad():
            measured = system.measure(system.trainer.global_step)
        figures["metrics"] = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    for name in config.result.exporters:
        entries: Tree = registry.implementation("exporter", name)(system, folder) or {}
        if taken := sorted(OWN_ENTRIES & entries.keys()):
            _note(notes, f"entries of result.exporters={name} left out: {', '.join(taken)}. Give them other names")
        files = [*figures.get("files", ()), *entries.get("files", ())]
        figures |= {key: value for key, value in entries.items() if key not in OWN_ENTRIES} | {"files": files}
    view = field_view(system.field, system.occupancy, config.march, system.device, material=system.material)
    provenance: Tree = {"prompt": config.prompt, "seed": config.seed, "config_hash": config_hash(config)}
    with ProgressDisplay("surface", 1, quiet) as count:
        mesh = write_mesh(view, config.result.mesh_resolution, folder, provenance, notes)
        count.add(1)
    if not mesh:
        clear(folder / FOLDER)  # the asset of an earlier, shorter part of the run
        return figures
    return figures | mesh | (write_asset(system, folder, notes, quiet) if config.export.enabled else {})


def write_turn(images: Callable[[Cameras], Tensor], options: ResultConfig, folder: Path, quiet: bool = False) -> None:
    """Write turntable.mp4, and eight of its frames (all if it has fewer) as views.png and views.npz.

    `images` is a function that renders B cameras to images (B, H, W, 3) in [0, 1]. `options` has the cameras of the
    turntable and its frames per second. `quiet`: show no progress.
    """
    cameras = turntable(options.turntable)
    frames = []
    with ProgressDisplay("turntable", len(cameras), quiet) as count:
        for k in range(len(cameras)):
            frames.append(images(cameras.select([k])))
            count.add(1)
    turn = torch.cat(frames)
    write_mp4(list(turn), folder / "turntable.mp4", options.fps)
    write_views(turn[view_indices(len(turn))], folder)


def write_views(views: Tensor, folder: Path) -> None:
    """Write images (N, H, W, 3) in [0, 1] as a contact sheet views.png, and as the uint8 array `views` in views.npz."""
    write_png(folder / "views.png", grid(views, VIEWS // 2))
    with atomic_file(folder / "views.npz") as file:
        np.savez_compressed(file, views=to_uint8(views))


def write_mesh(view: FieldView, resolution: int, folder: Path, provenance: Tree, notes: list[str]) -> Tree:
    """Extract the surface of a field by marching cubes with `resolution` grid points per axis, and write mesh.glb.

    `view` has the density and colour of the field as functions. `provenance` (prompt, seed, config hash) is stored in
    the file. Returns {"vertices": count, "triangles": count}. For a field without a surface, it appends a warning to
    `notes` (for summary.json), writes no file and returns an empty dict.
    """
    try:
        mesh = field_surface(view, resolution)
    except EmptyField as error:
        _note(notes, str(error))
        (folder / "mesh.glb").unlink(missing_ok=True)  # the mesh of an earlier, shorter part of the run
        return {}
    save_glb(mesh, folder / "mesh.glb", provenance)
    return {"vertices": len(mesh.vertices), "triangles": len(mesh.faces)}


def write_asset(system: GenerateSystem, folder: Path, notes: list[str], quiet: bool = True) -> Tree:
    """Write the textured mesh to folder/asset, and return its entry for summary.json; {} after an error.

    If the triangle budget (maximum number of triangles) is too small for the object, the smallest possible budget is
    used. The entry is {"asset": JSON object with file, triangles of each level of detail, height and seconds}. Errors
    are appended to `notes`, the warnings for summary.json; only a full or failed disk raises an error. `quiet`: show no
    progress.
    """
    config = system.config
    retry = f" ({command('--config', 'export', f'run={folder}')} tries again)"

    def make() -> ExportedAsset:
        elevations = config.camera.elevation_range
        view = field_view(system.field, system.occupancy, config.march, system.device, elevations, system.material)
        field = RunField(view, config, system.trainer.global_step)
        return export(field, config.export, folder / FOLDER, nearest_budget=True, quiet=quiet)

    return try_asset(make, folder, notes, retry)


def try_asset(make: Callable[[], ExportedAsset], folder: Path, notes: list[str], retry: str = "") -> Tree:
    """Call `make`, which writes folder/asset, and turn every error into a note, except errors of the disk.

    The other results of the run must survive any error, such as a bug in a library. Errors of a full or failed disk
    are raised, since the user can repeat the command when the disk has space again.

    Args:
        make: function that writes the asset (textured mesh) to folder/asset and returns it.
        notes: warnings for summary.json. The function appends the error or the warnings of the asset.
        retry: text that follows an error and says how to try again.

    Returns:
        {"asset": JSON object with file, triangles of each level of detail, height and seconds} for summary.json, or
        an empty dict after an error.
    """
    try:
        asset = make()
    except Exception as error:
        if storage_error(error):
            raise
        logger.debug("no asset", exc_info=error)
        _note(notes, f"no asset: {one_line(error)}{retry}")
        clear(folder / FOLDER)  # the asset of an earlier, shorter part of the run
        return {}
    for text in asset.notes:
        _note(notes, f"asset: {text}")
    return {"asset": summary_entry(asset)}


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    logger.warning("%s", text)
