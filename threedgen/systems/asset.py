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

    The run is done, so whatever stands in the way of its asset (a full field, a strict check, a full disk, Ctrl-C, a
    fault in a library) is one note and no error, and there is no asset; a budget that the shape does not allow becomes
    the nearest.
    """
    config, field = system.config, system.field
    try:
        view = view_of(field, system.occupancy, config.march, system.device)
        asset = export(RunField(view, config, system.trainer.global_step), config.export, nearest_budget=True)
        save(asset, folder / FOLDER, config.export)
    except (Exception, KeyboardInterrupt) as error:
        logger.debug("no asset", exc_info=error)
        _note(notes, f"no asset: {_reason(error)} (launch.py --config export run={folder} tries again)")
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


def _reason(error: BaseException) -> str:
    """What stood in the way, on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C"
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _note(notes: list[str], text: str) -> None:
    notes.append(text)
    logger.warning("%s", visible(text))
