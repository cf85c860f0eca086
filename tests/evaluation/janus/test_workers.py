"""The Janus benchmark in several processes that are killed: no job is lost or repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.janus_bench import log, method, report, stub, table, words  # noqa: F401
from threedgen import cli

ROOT = Path(__file__).parents[3]
SLOW = ["overrides=[seconds=0.5]", "seeds=[0, 1, 2, 3, 4, 5]", "engine=processes", "workers=2"]


def begin(*more: str) -> subprocess.Popen[bytes]:
    """Start a benchmark in another process."""
    Path("main.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support import janus_stub; from threedgen import cli\n"
        "if __name__ == '__main__':\n    janus_stub.register(); sys.exit(cli.main(sys.argv[1:]))\n"
    )
    return subprocess.Popen([sys.executable, "main.py", *words(*more)], start_new_session=True)


def after_lines(process: subprocess.Popen[bytes], count: int) -> None:
    """Wait for ``count`` more lines in the log."""
    before, deadline = log().total(), time.monotonic() + 400
    while log().total() < before + count and time.monotonic() < deadline:
        assert process.poll() is None, "it was over already"
        time.sleep(0.1)


def finished(folder: Path = Path("run")) -> set[str]:
    """Return the keys of finished jobs."""
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/job.json")}
    return {key for key, record in records.items() if record["state"] == "finished"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_benchmark_survives_a_lost_worker(engine: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray")
    method("dies", "trouble: dies once")
    more = [f"engine={engine}", "workers=2", "seeds=[0]", "cpus=0.5"]
    assert cli.main(words(*more, methods="[dies, good]")) == 0
    assert [row["states"] for row in report()["methods"]] == [{"seen": 2}] * 2
    for line, count in log().items():
        assert count == (2 if line.startswith("begun dies") else 1), line


@pytest.mark.slow
def test_killed_benchmark_gives_the_table_of_an_undisturbed_one() -> None:
    """SIGKILL of the main process at random moments."""
    rng, kept, before = np.random.default_rng(), set[str](), log()
    for _ in range(2):
        process = begin(*SLOW)
        after_lines(process, 3)
        time.sleep(rng.uniform(0, 1.5))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over already"
        time.sleep(1)
        now = log()
        time.sleep(1)
        assert log() == now, "its workers live on"
        assert all(now[f"begun {key}"] == before[f"begun {key}"] for key in kept)
        kept, before = finished(), now
        assert 0 < len(kept) < 24
    assert cli.main(words(*SLOW)) == 0
    assert len(finished()) == 24 and all(log()[f"begun {key}"] == before[f"begun {key}"] for key in kept)
    assert cli.main(words(*SLOW, "out=undisturbed", "engine=here")) == 0
    assert table() == table(Path("undisturbed"))


@pytest.mark.slow
@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_benchmark_resumes(signal_: signal.Signals, code: int) -> None:
    process = begin(*SLOW)
    after_lines(process, 5)
    process.send_signal(signal_)
    assert process.wait(300) == code
    left, kept = log(), finished()
    records = [json.loads(path.read_text()) for path in Path("run").glob("runs/*/job.json")]
    assert kept and all(record["seconds"] > 0 for record in records)
    time.sleep(1)
    assert log() == left and not Path("run/report.json").exists()
    assert cli.main(words(*SLOW)) == 0
    assert len(finished()) == 24 and all(log()[f"begun {key}"] == 1 for key in kept)
    assert [row["states"] for row in table()] == [{"seen": 12}] * 2
