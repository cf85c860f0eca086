"""Stages: runs that come before a run, one after the other, each beginning from the object of the one before.

Each is a whole run in a folder of its own, RUN/stages/NAME, with its config, checkpoints and pictures; so a run that is
stopped in a stage or between two goes on there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from threedgen.export.run_field import open_field
from threedgen.run import folder as runs
from threedgen.run.text import say
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.loop import Status
from threedgen.train.task import Stopped, finished

from .system import GenerateSystem

FOLDER = "stages"


def run_stages(config: GenerateConfig, folder: Path, quiet: bool, run: Callable[..., Status]) -> Path | None:
    """Carries out what is left of the stages of `config`, by run(config, resume, quiet, start) -> status.

    Returns the folder of the last one. Raises Stopped for one that was not finished.
    """
    start = None
    for name in config.stages:
        place = folder / FOLDER / name
        stage = config.stage(name).model_copy(update={"out": str(place)})
        if not finished(place, stage.trainer.max_steps):
            if not quiet:
                say(f"stage {name}: {place}")
            runs.prepare(place)
            resume = place if runs.stored_config(place) is not None else None
            runs.write_config(place, stage)
            status = run(stage, resume, quiet, start)
            if status is not Status.FINISHED:
                raise Stopped(status)
        start = place
    return start


def start_from(system: GenerateSystem, folder: Path) -> None:
    """The object of a new run begins as that of the run in `folder`, and so does the background, if it is alike.

    Raises ConfigError if the one cannot become the other.
    """
    _, field, _, checkpoint = open_field(folder)
    system.field.start(field)
    behind = "background."
    found = {n.removeprefix(behind): v for n, v in checkpoint["state_dict"].items() if n.startswith(behind)}
    own: dict[str, Any] = system.background.state_dict()
    if {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in found.items()}:
        system.background.load_state_dict(found)
