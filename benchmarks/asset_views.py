"""Rendering users' assets, by engine and number of workers; through Ray on local nodes, one of which is killed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from threedgen import folder
from threedgen.config.optional import installed

from .table import Row, Table

PER_SHARD = 4
"""Assets of a shard, which is a job: few, so that all workers end at about the same time."""
LAUNCH = (sys.executable, str(folder("configs").parent / "launch.py"), "--quiet", "--config")


class Case(NamedTuple):
    """Who renders; ``nodes``: of a Ray cluster; ``killed``: one of them halfway."""

    engine: str
    workers: int
    nodes: int = 0
    killed: bool = False

    def __str__(self) -> str:
        return self.engine + f", {self.nodes} nodes" * bool(self.nodes) + ", one killed" * self.killed


PROCESSES = Case("processes", 1), Case("processes", 2)
RAY = Case("ray", 2, 2), Case("ray", 2, 2, killed=True)


def table(assets: int) -> Table:
    """``assets`` toys, exported and rendered from 32 sides each, by one after the other.

    Raises CalledProcessError for a command that fails, RuntimeError if anything is lost, made twice, or another one.
    """
    with tempfile.TemporaryDirectory() as place:
        meshes, rows = Path(place, "meshes"), list[Row]()
        _launch("make-toybox-assets", f"count={assets}", f"out={meshes}")
        truth, took = list[tuple[str, str]](), 0.0
        for number, case in enumerate(PROCESSES + RAY * installed("ray")):
            out = Path(place, str(number))
            took = seconds(case, meshes, out, took / 2)
            found = contents(out / "views")
            truth = truth or found
            if found != truth or len({name for name, _ in found}) != len(found):
                raise RuntimeError(f"{case}: the shards hold other views than those of one process")
            views = sum(name.endswith(".png") for name, _ in found)
            rows.append({"engine": str(case), "workers": case.workers, "views": views, "seconds": took})
            rows[-1] |= {"views/s": views / took, "speed-up": float(rows[0]["seconds"]) / took}
    notes = [
        f"{assets} assets, {PER_SHARD} in a shard; the whole command, with the start of Python and of the workers. "
        "All leave the same views, each once."
    ]
    notes += [] if installed("ray") else ["Ray is not installed here."]
    return Table("Rendering users' assets", rows, notes)


def seconds(case: Case, meshes: Path, out: Path, until_killed: float) -> float:
    """How long the command takes."""
    words = [f"data={meshes}", f"out={out}", f"views.per_shard={PER_SHARD}", f"workers={case.workers}"]
    with cluster(case.nodes) as (address, kill):
        timer = threading.Timer(until_killed, kill)
        if case.killed:
            timer.start()
        begun = time.perf_counter()
        _launch("make-asset-views", *words, f"engine={case.engine}", *address)
        timer.cancel()
        return time.perf_counter() - begun


def contents(views: Path) -> list[tuple[str, str]]:
    """Name and digest of all that the shards hold."""
    found = []
    for path in sorted(views.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(one.name, hashlib.sha256(tar.extractfile(one).read()).hexdigest()) for one in tar]  # type: ignore[union-attr]
    return found


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Ray on so many local nodes of a core each: the word that names it, and what kills its last node."""
    if not nodes:
        yield [], lambda: None
        return
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        last = [made.add_node(num_cpus=1, include_dashboard=False) for _ in range(nodes)][-1]
        yield [f"address={made.address}"], lambda: made.remove_node(last, allow_graceful=False)
    finally:
        made.shutdown()


def _launch(*words: str) -> None:
    subprocess.run([*LAUNCH, *words], check=True, stdout=subprocess.DEVNULL)
