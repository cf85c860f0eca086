"""A task that takes a known time and makes nothing, so that what is measured is the benchmark around it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from pydantic import Field

from threedgen.config import registry
from threedgen.config.sections import RunConfig
from threedgen.run.metrics import write_summary

TIMES = "times.json"


class WaitConfig(RunConfig):
    """Waits."""

    prompt: str = ""
    seconds: float = Field(10.0, ge=0)


def register() -> None:
    registry.register("task", "wait", "benchmarks.janus_stub:run", "benchmarks.janus_stub:WaitConfig")


def run(config: WaitConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Leaves behind when it began and ended, and in which process."""
    begun = time.time()
    time.sleep(config.seconds)
    folder = Path(str(config.out))
    times = {"begun": begun, "ended": time.time(), "worker": os.getpid()}
    (folder / TIMES).write_text(json.dumps(times), encoding="utf-8")
    write_summary(folder, config, config.seconds, status="finished")
    return 0
