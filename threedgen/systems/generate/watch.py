"""A generate run and its live view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from threedgen.geometry.rigs import turntable
from threedgen.run.interrupts import Interrupts
from threedgen.viewer.live import LiveView
from threedgen.viewer.options import LIVE

from .asset import make
from .system import GenerateSystem


@contextmanager
def watched(system: GenerateSystem, folder: Path, interrupts: Interrupts) -> Iterator[list[pl.Callback]]:
    """Callbacks that show the run, if its config asks for it; the window stays open until the results are made."""
    if not system.config.view.enabled:
        yield []
        return

    def export() -> Path:
        place = folder / LIVE / f"{system.trainer.global_step:06d}"
        return place / next(iter(make(system, place).files))

    view = LiveView(system.config.view, lambda: open_window(system), system.pictures, export, interrupts)
    try:
        yield [view]
    finally:
        view.close()


def open_window(system: GenerateSystem) -> Any:
    """A page in a browser that begins with the view of the turntable's first picture."""
    from threedgen.viewer.viser_window import ViserWindow  # optional, see threedgen.config.optional

    config = system.config
    return ViserWindow(config.prompt, config.view.port, turntable(config.result.turntable, 1))
