"""The second part of a generate run: the object is optimised, then its turntable, mesh, asset and page are made."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from torch import Tensor

from threedgen.export.run_field import open_field
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import turntable
from threedgen.guidance.prior import Prior
from threedgen.run.disk import writing
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.train.callbacks import FiniteGuard
from threedgen.train.status import Status
from threedgen.train.task import Task
from threedgen.viewer.live import LiveView
from threedgen.viewer.options import LIVE
from threedgen.viewer.report import PAGE, write_report

from .outputs import make_asset, write_results
from .system import GenerateSystem

STOPPING = (
    "stopping after this step; turntable, {made} and page are then made of what there is (Ctrl-C again leaves at once)"
)
RESULTS = (
    "turntable, {made} and page are being made (Ctrl-C again leaves at once, or without the asset while that is made)"
)
"""What Ctrl-C does in the two parts of a run, for the terminal."""


def optimise(
    task: Task,
    prior: Prior,
    text: Tensor,
    views: Tensor | None,
    cameras: Cameras | None,
    notes: list[str],
    start: Path | None,
) -> Status:
    """Trains the object, from that of the run in `start` if given, and makes its files; `notes` go to the summary."""
    config, folder = task.config, task.folder
    system = GenerateSystem(config, prior, text, views if config.warm_steps else None, cameras)
    if start is not None:
        start_from(system, start)  # a checkpoint, if there is one, comes after it
    made = "asset" if config.export.enabled else "mesh"
    with Interrupts(STOPPING.format(made=made)) as interrupts, ExitStack() as stack:
        watchers: list[LiveView] = []
        if config.view.enabled:  # the window stays open until the results are made
            watchers = [stack.enter_context(closing(live_view(system, folder, interrupts)))]
        status = task.fit(system, ("opacity", "t"), watchers, interrupts)
        seconds, trained = system.seconds(), time.monotonic()
        if status is Status.TERMINATED or not task.is_global_zero:
            return status
        failed = status is Status.FAILED
        interrupts.note = RESULTS.format(made=made)
        with writing(folder):
            figures: dict[str, Any] = {} if failed else write_results(system, folder, notes, task.quiet)
            if failed:
                callbacks = system.trainer.callbacks  # type: ignore[attr-defined]
                figures["reason"] = next(c.failure for c in callbacks if isinstance(c, FiniteGuard))
            seconds["export"] = time.monotonic() - trained
            asset = [figures["asset"]["file"]] if "asset" in figures else []  # a run that has lost it makes it again
            task.summarise(
                status,
                steps=system.trainer.global_step,
                notes=notes,
                files=[*asset, PAGE],
                seconds_of={name: round(took, 2) for name, took in seconds.items()},
                **figures,
            )
            with Count("page", 1, task.quiet) as count:
                write_report(folder)  # it shows the summary, so it comes last; a run without it is not finished
                count.add(1)
    return status


def start_from(system: GenerateSystem, folder: Path) -> None:
    """The object of a new run begins as that of the run in `folder`, and so does the background, if it is alike.

    Raises ConfigError if the one cannot become the other.
    """
    _, field, _, checkpoint = open_field(folder)
    system.field.init_from(field)
    system.blank = False
    behind = "background."
    found = {n.removeprefix(behind): v for n, v in checkpoint["state_dict"].items() if n.startswith(behind)}
    own: dict[str, Any] = system.background.state_dict()
    if {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in found.items()}:
        system.background.load_state_dict(found)


def live_view(system: GenerateSystem, folder: Path, interrupts: Interrupts) -> LiveView:
    """What shows a run while it optimises, see threedgen.viewer.live."""

    def export() -> Path:
        place = folder / LIVE / f"{system.trainer.global_step:06d}"
        return place / next(iter(make_asset(system, place).files))

    return LiveView(system.config.view, lambda: open_window(system), system.pictures, export, interrupts)


def open_window(system: GenerateSystem) -> Any:
    """A page in a browser that begins with the view of the turntable's first picture."""
    from threedgen.viewer.viser_window import ViserWindow  # optional, see threedgen.config.optional

    config = system.config
    return ViserWindow(config.prompt, config.view.port, turntable(config.result.turntable, 1))
