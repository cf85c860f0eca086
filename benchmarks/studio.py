"""Measure the studio with up to 200 clients at once: latency of requests, memory and open files of the server.

The jobs take no time. Server and clients share the cores of this machine.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.studio import finished_run, studio
from tests.support.studio_load import load

from .table import Row, Table

CLIENTS = (2, 20, 200)


def serve(folder: Path) -> None:
    """Serve a studio with one finished run in `folder`, print its address, and stop when the input ends."""
    with pytest.MonkeyPatch.context() as patch, studio(folder, patch) as client:
        finished_run(client.root / "one")
        print(client.url, flush=True)
        sys.stdin.read()


def usage(process: int) -> tuple[float, int, float]:
    """Return the memory (RSS) in MB, the number of open files and the CPU time in seconds of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return int(kilobytes) / 1024, len(list(Path(f"/proc/{process}/fd").iterdir())), seconds


def measure(server: subprocess.Popen, url: str, clients: int, rounds: int) -> Row:
    before = usage(server.pid)
    start = time.perf_counter()
    result = load(url, "one", clients, rounds)
    seconds = time.perf_counter() - start
    time.sleep(5)  # the server notices closed streams when it writes to them
    after = usage(server.pid)
    return {
        "clients": clients, "requests": len(result.seconds), "unexpected answers": len(result.unexpected),
        "events": sum(result.events), "requests/s": len(result.seconds) / seconds,
        "server CPU, ms a request": 1000 * (after[2] - before[2]) / len(result.seconds),
        "median, ms": 1000 * result.quantile(0.5), "95 %, ms": 1000 * result.quantile(0.95),
        "maximum, ms": 1000 * result.quantile(1), "memory before, MB": before[0], "after, MB": after[0],
        "open files before": before[1], "after": after[1],
    }  # fmt: skip


def table(rounds: int) -> Table:
    """Return a table with a row per number of clients."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __spec__.name, folder]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdin is not None and server.stdout is not None
        url = server.stdout.readline().strip()
        rows = [measure(server, url, clients, rounds) for clients in CLIENTS]
        server.stdin.close()
        server.wait()
    return Table("Studio under many clients, half of them on the event stream", rows)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
