"""The game-ready asset at the end of a generate run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from threedgen.config.errors import in_a_line
from threedgen.export.asset import ExportedAsset
from threedgen.export.options import FOLDER
from threedgen.export.run_field import RunField, view_of
from threedgen.export.task import export, save
from threedgen.run.text import visible

from .system import GenerateSystem

logger = logging.getLogger(__name__)


def make(system: GenerateSystem, folder: Path) -> ExportedAsset:
    """Writes the asset of the field as it is now into `folder`. Raises ConfigError; a low budget is no error."""
    config = system.config
    view = view_of(system.field, system.occupancy, config.march, system.device)
    asset = export(RunField(view, config, system.trainer.global_step), config.export, nearest_budget=True)
    save(asset, folder, config.export)
    return asset


def write_asset(system: GenerateSystem, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Writes folder/asset; returns figures for the summary.

    The run is done, so whatever stands in the way of its asset (a full field, a strict check, a full disk, Ctrl-C, a
    fault in a library) is one note and no error, and there is no asset; a budget that the shape does not allow becomes
    the nearest.
    """
    try:
        asset = make(system, folder / FOLDER)
    except (Exception, KeyboardInterrupt) as error:
        logger.debug("no asset", exc_info=error)
        _note(notes, f"no asset: {in_a_line(error)} (launch.py --config export run={folder} tries again)")
        shutil.rmtree(folder / FOLDER, ignore_errors=True)  # half of it, or that of an earlier, shorter part of the run
        return {}
    for text in asset.notes + asset.problems:
        _note(notes, f"asset: {text}")
    return {
        "asset": {
            "file": f"{FOLDER}/{next(iter(asset.files))}",
            "levels": asset.figures["levels"],
            "seconds": round(sum(asset.seconds.values()), 2),
        }
    }


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    logger.warning("%s", visible(text))
