"""The game-ready asset at the end of a generate run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from threedgen.errors import ConfigError
from threedgen.export.export_run import export, save
from threedgen.export.options import FOLDER
from threedgen.export.run_field import RunField, view_of
from threedgen.readable import visible

from .generate import GenerateSystem

logger = logging.getLogger(__name__)


def write_asset(system: GenerateSystem, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Writes folder/asset; returns figures for the summary.

    The run is done, so whatever stands in the way of the asset (a full field, a strict check) is a note and no error;
    a budget that the shape does not allow becomes the nearest. Raises ConfigError for a full disk alone.
    """
    config, field = system.config, system.field
    view = view_of(field, system.occupancy, config.march, system.device)
    try:
        asset = export(RunField(view, config, system.trainer.global_step), config.export, nearest_budget=True)
    except ConfigError as error:
        _note(notes, f"no asset: {error}")
        shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of an earlier, shorter part of the run
        return {}
    save(asset, folder / FOLDER, config.export)
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
