"""Options of tasks that hand out jobs to workers (no torch here)."""

from __future__ import annotations

import os
from math import prod
from typing import Literal

from pydantic import Field, model_validator

from threedgen.config.optional import require
from threedgen.config.sections import RunConfig

ENGINE = ("engine", "workers", "attempts", "address", "cpus", "gpus")
"""Keys that ``run.workers.run_jobs`` takes."""


class CrewConfig(RunConfig):
    """A run whose jobs are done by this process, by several of this machine, or on a Ray cluster."""

    engine: Literal["here", "processes", "ray"] = Field(
        "here", description="who works: this process, processes of this machine, or a Ray cluster"
    )
    workers: int = Field(1, ge=1, le=10_000, description="of the engines processes and ray, side by side")
    address: str | None = Field(None, description="of the Ray cluster; null: RAY_ADDRESS, or a new one on this machine")
    cpus: float = Field(1.0, gt=0, description="CPUs that a Ray worker asks for")
    gpus: float = Field(0.0, ge=0, description="GPUs that a Ray worker asks for")
    attempts: int = Field(3, ge=1, le=100, description="how often a job is tried that fails or loses its worker")

    @model_validator(mode="after")
    def _address(self) -> CrewConfig:
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address belongs to engine=ray (got engine={self.engine})")
        return self

    def check(self) -> None:
        if self.engine == "ray":
            require("ray", "engine: ray", "choose engine=processes")
        super().check()


def cores() -> int:
    """Counts the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def product(**factors: int) -> str:
    """Words the number of each factor: "3 prompts x 1 config x 2 seeds = 6 objects"."""
    numbers = {**factors, "object": prod(factors.values())}
    *words, made = [f"{number} {noun}{'s' * (number != 1)}" for noun, number in numbers.items()]
    return f"{' x '.join(words)} = {made}"
