"""Options of tasks that run jobs in workers, and number of CPU cores and rank of this process. Imports no torch."""

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from threedgen.config.errors import short
from threedgen.config.optional import require
from threedgen.config.sections import RunConfig


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"should name {short(repeated[0])} once")
    return values


Names = Annotated[tuple[str, ...], AfterValidator(_distinct)]  # type of options that are a list of different texts
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], AfterValidator(_distinct)]
Engine = Literal["here", "processes", "ray"]  # where jobs run: in this process, in local processes or on a Ray cluster


class WorkersConfig(RunConfig):
    """Options of a task that consists of jobs, which run in this process, in local processes, or on a Ray cluster.

    Base class of the options of such tasks, for example "batch". Users set where the jobs run, the number of workers,
    the attempts per job and, for Ray, the address of the cluster and the CPUs and GPUs per worker.
    """

    engine: Engine = Field("here", description="where jobs run: this process, local processes, or a Ray cluster")
    workers: int = Field(1, ge=1, le=10_000, description="number of parallel workers of the engines processes and ray")
    address: str | None = Field(None, description="address of the Ray cluster; null: RAY_ADDRESS, or a new local one")
    cpus: float = Field(1.0, gt=0, description="CPUs per Ray worker")
    gpus: float = Field(0.0, ge=0, description="GPUs per Ray worker")
    attempts: int = Field(3, ge=1, le=100, description="attempts per job that fails or loses its worker")

    @model_validator(mode="after")
    def _address(self) -> "WorkersConfig":
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"address belongs to engine=ray (got engine={self.engine})")
        return self

    def check(self) -> None:
        if self.engine == "ray":
            require("ray", "engine: ray", "choose engine=processes")
        super().check()


def cores() -> int:
    """Return the number of logical CPU cores that this process may use (its CPU affinity, where the system has one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_RANKS = "RANK LOCAL_RANK NODE_RANK SLURM_PROCID JSM_NAMESPACE_RANK".split()
"""Rank variables set by launchers of distributed runs. In every process except rank 0, at least one is not 0."""


def local_rank() -> int:
    """Return the rank of this process among those of the run on its machine, from 0. It is also the index of its GPU.

    It is 0 if the run is not distributed.
    """
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def is_rank_zero() -> bool:
    """Return whether this process is rank 0 of all processes of the run on all machines; only rank 0 writes and prints.

    True if the run is not distributed.
    """
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
