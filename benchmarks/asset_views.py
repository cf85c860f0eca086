"""Time the rendering of user assets by engine and number of workers, also on a Ray cluster that loses a node."""

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

from threedgen.config.optional import installed
from threedgen.places import folder

from .table import Row, Table

PER_SHARD = 4
"""Number of assets per shard. A shard is one job; small jobs let all workers finish at about the same time."""
LAUNCH = (sys.executable, str(folder("configs").parent / "launch.py"), "--quiet", "--config")


class Case(NamedTuple):
    """Row of the table: engine, number of workers, number of Ray nodes, and whether a node is killed halfway."""

    engine: str
    workers: int
    nodes: int = 0
    killed: bool = False

    def __str__(self) -> str:
        return self.engine + f", {self.nodes} nodes" * bool(self.nodes) + ", one killed" * self.killed


PROCESSES = Case("processes", 1), Case("processes", 2)
RAY = Case("ray", 2, 2), Case("ray", 2, 2, killed=True)


def table(assets: int) -> Table:
    """Make `assets` toybox meshes, and time the rendering of 32 views of each mesh, in one row for each case.

    Raises CalledProcessError if a command fails, RuntimeError if the views of two cases differ or a view is duplicated.
    """
    with tempfile.TemporaryDirectory() as temporary:
        meshes, rows = Path(temporary, "meshes"), list[Row]()
        _launch("make-toybox-assets", f"count={assets}", f"out={meshes}")
        expected, duration = list[tuple[str, str]](), 0.0
        for number, case in enumerate(PROCESSES + RAY * installed("ray")):
            out = Path(temporary, str(number))
            duration = time_rendering(case, meshes, out, duration / 2)
            files = file_digests(out / "views")
            expected = expected or files
            if files != expected or len({name for name, _ in files}) != len(files):
                raise RuntimeError(f"{case}: the shards differ from those of one process")
            views = sum(name.endswith(".png") for name, _ in files)
            rows.append({"engine": str(case), "workers": case.workers, "views": views, "seconds": duration})
            rows[-1] |= {"views/s": views / duration, "speed-up": float(rows[0]["seconds"]) / duration}
    notes = [
        f"{assets} assets, {PER_SHARD} per shard; time of the whole command, including the start of Python and of the "
        "workers. All cases write the same views, without duplicates."
    ]
    notes += [] if installed("ray") else ["Ray is not installed."]
    return Table("Rendering of user assets", rows, notes)


def time_rendering(case: Case, meshes: Path, out: Path, kill_after: float) -> float:
    """Return the duration in seconds of the command that renders `meshes` to the folder `out`.

    `kill_after` is the time in seconds until a node is killed, if the case has a killed node.
    """
    overrides = [f"data={meshes}", f"out={out}", f"views.per_shard={PER_SHARD}", f"workers={case.workers}"]
    with cluster(case.nodes) as (address, kill):
        timer = threading.Timer(kill_after, kill)
        if case.killed:
            timer.start()
        start = time.perf_counter()
        _launch("make-asset-views", *overrides, f"engine={case.engine}", *address)
        timer.cancel()
        return time.perf_counter() - start


def file_digests(views: Path) -> list[tuple[str, str]]:
    """Return (name, SHA-256) of every file in the tar files of the folder `views`."""
    found = []
    for path in sorted(views.glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [(file.name, hashlib.sha256(tar.extractfile(file).read()).hexdigest()) for file in tar]  # type: ignore[union-attr]
    return found


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Start a local Ray cluster of `nodes` nodes with one core each, and stop it at the end of the context.

    Yields config overrides with the address of the cluster, and a function that kills the last node. If `nodes` is 0,
    no cluster is started, there are no overrides, and the function does nothing.
    """
    if not nodes:
        yield [], lambda: None
        return
    from ray.cluster_utils import Cluster

    ray = Cluster()
    try:
        last = [ray.add_node(num_cpus=1, include_dashboard=False) for _ in range(nodes)][-1]
        yield [f"address={ray.address}"], lambda: ray.remove_node(last, allow_graceful=False)
    finally:
        ray.shutdown()


def _launch(*args: str) -> None:
    subprocess.run([*LAUNCH, *args], check=True, stdout=subprocess.DEVNULL)
