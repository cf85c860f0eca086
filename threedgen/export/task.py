"""The task "export": from the checkpoint of a run to a folder with a game-ready asset."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from threedgen import __version__
from threedgen.config.errors import ConfigError
from threedgen.run import folder as runs
from threedgen.run.disk import prepared, write_json, writing
from threedgen.run.metrics import read_summary
from threedgen.run.progress import Count
from threedgen.run.text import number, say
from threedgen.run.threads import set_threads

from .asset import STEPS, ExportedAsset, make_asset
from .asset_folder import FOLDER, MANIFEST, asset_name, refuse_others, write_files
from .options import AssetConfig, ExportConfig, resize
from .run_field import RunField, open_run, provenance
from .shape.from_field import dense_surface

logger = logging.getLogger(__name__)


def run(config: ExportConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carry out a config; prints the folder. With `strict`, raises ConfigError for any finding and writes nothing."""
    set_threads(config.threads)
    folder, out, wanted = runs.run_folder(config.run, "run"), config.destination(), config.asset()
    with prepared(out, megabytes=64):
        source = open_run(folder, "cuda" if torch.cuda.is_available() else "cpu")
        with bar(quiet) as on_step:
            asset = export(source, wanted, on_step=on_step)
            save(asset, out, wanted)
    for note in asset.notes + asset.problems:
        logger.warning("%s", note)
    if out.resolve() == (folder / FOLDER).resolve():
        update_summary(folder, asset)
    if not quiet:
        say(asset.figures.get("height") or f"{number(asset.figures['size_m']['high'])} m high")
        if "height" in asset.figures:
            say(f"another height: {resize(folder, wanted.preset)}")
        say("\n".join(f"{name}  {len(data) / 1024:.0f} KB" for name, data in asset.files.items()))
        if "khronos" in asset.figures:
            say(f"Khronos validator: {asset.figures['khronos']}")
    say(str(out))
    return 0


@contextmanager
def bar(quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar over an asset's way; what it gives is to be called with the name of each step (``STEPS``) as it begins."""
    names = list(STEPS)
    with Count("asset", len(names), quiet) as count:

        def on_step(step: str) -> None:
            count.stage = f"asset: {STEPS[step]}"
            count.show(max(count.done, names.index(step)))

        yield on_step
        count.show(count.total)


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
    given, usual = config.height, source.config.usual_height()
    if given is None and usual is not None:
        config = config.model_copy(update={"height": usual[1]})
    sampled = time.perf_counter() - begun
    metadata = provenance(source.config, source.steps)
    asset = make_asset(dense, config, name, source.view, metadata, nearest_budget, on_step)
    asset.seconds = {"surface": round(sampled, 3)} | asset.seconds
    asset.notes = notes + asset.notes
    if given is None:  # else nobody need be told why
        why = f"as {usual[0]} usually is" if usual else "as a unit of the field is a metre"
        asset.figures["height"] = f"{number(asset.figures['size_m']['high'])} m high, {why}"
    if config.strict and asset.problems:
        raise ConfigError("strict: the asset was not written: " + "; ".join(asset.problems))
    return asset


def save(asset: ExportedAsset, folder: Path, config: AssetConfig) -> Path:
    """Writes an asset's files and asset.json, and removes those of an earlier export; returns the path of asset.json.

    Raises ConfigError for a disk that is full, and for a file of one of these names that is not from an export.
    """
    try:
        refuse_others(folder, asset.files)
        write_files(folder, asset.files, summary(asset, config))
    except OSError as error:
        problem = f"{folder} could not be written ({error.strerror or error}); make room there"
        raise ConfigError(problem, "out") from error
    return folder / MANIFEST


def in_summary(asset: ExportedAsset) -> dict[str, Any]:
    """What summary.json of a run says about its asset; its notes say what `noted` has."""
    return {
        "file": f"{FOLDER}/{next(iter(asset.files))}",
        "levels": asset.figures["levels"],
        "height": asset.figures.get("height", ""),
        "seconds": round(sum(asset.seconds.values()), 2),
    }


def noted(asset: ExportedAsset) -> list[str]:
    """What the notes of a run say about its asset, a sentence each."""
    return [f"asset: {text}" for text in asset.notes + asset.faults]


def update_summary(run: Path, asset: ExportedAsset) -> None:
    """Brings summary.json of a run, if it has one, up to date with the asset that it has now. Raises ConfigError."""
    told = read_summary(run)
    if not told:
        return
    figures = in_summary(asset)

    def others(key: str) -> list[Any]:
        """What stands under a key and is not of an asset."""
        found = told.get(key)
        entries = found if isinstance(found, list) else []
        return [entry for entry in entries if not str(entry).startswith((f"{FOLDER}/", "asset: ", "no asset: "))]

    with writing(run / runs.SUMMARY, "make room there and export again"):
        now = {"files": [*others("files"), figures["file"]], "notes": others("notes") + noted(asset), "asset": figures}
        write_json(run / runs.SUMMARY, told | now)


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
