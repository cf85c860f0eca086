"""The task "export": from the checkpoint of a run to a folder with a game-ready asset."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from threedgen import __version__
from threedgen.config.command import command
from threedgen.config.errors import ConfigError
from threedgen.run import folder as runs
from threedgen.run.folder import clear_unfinished, write_atomic, write_json
from threedgen.run.text import number, say
from threedgen.run.threads import set_threads

from .asset import ExportedAsset, make_asset
from .options import FOLDER, MANIFEST, AssetConfig, ExportConfig, read_manifest
from .run_field import RunField, asset_name, open_run, provenance
from .shape.from_field import dense_surface

logger = logging.getLogger(__name__)

RESIZE = command("--config", "export", "run=RUN", "height=METRES")
FILE_NAME = r"\w+(\.glb|\.usdz|_obj\.zip)"
"""What the files of an asset are called."""


def run(config: ExportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carry out a config; prints the folder. With `strict`, raises ConfigError for any finding and writes nothing."""
    set_threads(config.threads)
    folder = runs.run_folder(config.run, "run")
    out = folder / FOLDER if config.out is None else runs.user_path(config.out, "out")
    runs.prepare(out, megabytes=64)
    source = open_run(folder, "cuda" if torch.cuda.is_available() else "cpu")
    asset = export(source, config)
    save(asset, out, config)
    for note in asset.notes + asset.problems:
        logger.warning("%s", note)
    if not quiet:
        say(asset.figures["height"])
        say("\n".join(f"{name}  {len(data) / 1024:.0f} KB" for name, data in asset.files.items()))
        if "khronos" in asset.figures:
            say(f"Khronos validator: {asset.figures['khronos']}")
    say(str(out))
    return 0


def export(
    source: RunField,
    config: AssetConfig,
    nearest_budget: bool = False,
    on_step: Callable[[str], object] = lambda step: None,
) -> ExportedAsset:
    """The asset of a run's field. Raises ConfigError, with `strict` also for what the checker finds.

    ``on_step``: called with the name of each step (``asset.STEPS``) as it begins.
    """
    on_step("surface")
    begun = time.perf_counter()
    dense, notes = dense_surface(source.view, config.grid)
    expected = source.config.trainer.max_steps
    if source.steps < expected:
        notes.append(f"the run is not finished: {source.steps} of {expected} steps")
    name = asset_name(config.name or source.config.prompt)
    usual = source.config.usual_height() if config.height is None else None
    config = config if usual is None else config.model_copy(update={"height": usual[1]})
    sampled = time.perf_counter() - begun
    metadata = provenance(source.config, source.steps)
    asset = make_asset(dense, config, name, source.view, metadata, nearest_budget, on_step)
    asset.seconds = {"surface": round(sampled, 3)} | asset.seconds
    asset.notes = notes + asset.notes
    asset.figures["height"] = height_of(asset, config, usual)
    if config.strict and asset.problems:
        raise ConfigError("strict: the asset was not written: " + "; ".join(asset.problems))
    return asset


def height_of(asset: ExportedAsset, config: AssetConfig, usual: tuple[str, float] | None) -> str:
    """How tall it is, and why, in a line, with the command that changes it."""
    metres = f"{number(asset.figures['size_m'][2])} m high"
    if usual is not None:
        return f"{metres}, as {usual[0]} usually is ({RESIZE} for another)"
    return metres if config.height is not None else f"{metres} ({RESIZE} for what it is to be)"


def save(asset: ExportedAsset, folder: Path, config: AssetConfig) -> Path:
    """Writes an asset's files and asset.json, each whole or not at all; those of an earlier export are removed.

    asset.json comes last, so it lists only what is there. Raises ConfigError for a disk that is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_unfinished(folder)
        before = _own_files(folder)
        for name, data in asset.files.items():
            write_atomic(folder / name, data)
        write_json(path := folder / MANIFEST, summary(asset, config))
        for path_before in before - {folder / name for name in asset.files}:
            path_before.unlink(missing_ok=True)
    except OSError as error:
        problem = f"{folder} could not be written ({error.strerror or error}); make room there"
        raise ConfigError(problem, "out") from error
    return path


def _own_files(folder: Path) -> set[Path]:
    """The files of an earlier export: of a name that an asset's file has, and still with the content that its
    asset.json tells. Anyone may have written that, and anything may lie beside it."""
    told = read_manifest(folder).get("sha256")
    sums = {n: s for n, s in told.items() if re.fullmatch(FILE_NAME, n)} if isinstance(told, dict) else {}
    found = {folder / name: digest for name, digest in sums.items() if (folder / name).is_file()}
    return {path for path, digest in found.items() if hashlib.sha256(path.read_bytes()).hexdigest() == digest}


def summary(asset: ExportedAsset, config: AssetConfig) -> dict[str, Any]:
    """What asset.json tells: files and their sizes, findings, notes, how long each step took."""
    return {
        "name": asset.name,
        "version": __version__,
        "preset": config.preset,
        "texture": config.texels,
        **asset.figures,
        "files": {name: len(data) for name, data in asset.files.items()},
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in asset.files.items()},
        "findings": {name: [asdict(found) for found in all_found] for name, all_found in asset.findings.items()},
        "notes": asset.notes,
        "seconds": asset.seconds,
    }
