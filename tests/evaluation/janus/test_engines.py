"""Workers of the Janus benchmark: replaced when they die, stopped when asked, nothing lost and nothing done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.janus_bench import log, method, report, stub, table, words  # noqa: F401
from threedgen import cli
from threedgen.config import ConfigError, load, registry
from threedgen.evaluation.janus import engines
from threedgen.evaluation.janus.worker import STOPPED

ROOT = Path(__file__).parents[3]


class FakeWorker:
    def __init__(self, codes: list[int | None]) -> None:
        self.codes, self.ended = codes, 0

    def code(self) -> int | None:
        return 143 if self.ended else self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def end(self) -> None:
        self.ended += 1


def supervise(lives: list[list[int | None]], count: int, attempts: int = 1) -> tuple[int, list[FakeWorker]]:
    made: list[FakeWorker] = []

    def start(number: int) -> FakeWorker:
        made.append(FakeWorker(lives[len(made)]))
        return made[-1]

    return engines.supervise(start, count, attempts, lambda: 0), made


def test_workers_that_die_are_replaced_until_all_have_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "POLL", 0.001)
    code, made = supervise([[None, None, 0], [None, -9], [None, 0]], 2)
    assert code == 0 and len(made) == 3 and not any(worker.ended for worker in made)
    code, made = supervise([[None, 143], [None]], 2)  # one was stopped: the other is too, and none is replaced
    assert code == 143 and len(made) == 2 and made[1].ended >= 1
    with pytest.raises(ConfigError, match="5 workers died"):
        supervise([[1]] * 20, 2)
    assert STOPPED == (130, 143)


@pytest.mark.parametrize(("signal_", "wanted"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_workers_are_asked_to_stop_when_a_benchmark_is(
    signal_: signal.Signals, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "POLL", 0.001)
    workers = [FakeWorker([None]), FakeWorker([None])]
    rounds = iter(range(100))

    def progress() -> int:
        if next(rounds) == 3:
            os.kill(os.getpid(), signal_)
        return 0

    before = signal.getsignal(signal_)
    assert engines.supervise(lambda number: workers[number], 2, 1, progress) == wanted
    assert [worker.ended for worker in workers] == [1, 1] and signal.getsignal(signal_) == before


@pytest.mark.slow
def test_processes_survive_the_death_of_one() -> None:
    method("dies", "trouble: dies once")
    assert cli.main(words("engine=processes", "workers=2", "seeds=[0]", "lost_after=100", methods="[dies, good]")) == 0
    assert [row["states"] for row in report()["methods"]] == [{"seen": 2}] * 2
    for line, count in log().items():
        assert count == (2 if line.startswith("begun dies") else 1), line


@pytest.mark.slow
def test_a_benchmark_killed_twice_gives_the_table_of_an_undisturbed_one() -> None:
    """SIGKILL at random moments, to the one that began; its workers notice, and nothing is done twice."""
    slow = ["overrides=[seconds=0.5]", "seeds=[0, 1, 2, 3, 4, 5]", "engine=processes", "workers=2"]
    slow += ["heartbeat=1", "lost_after=100"]  # a busy machine beats late
    rng = np.random.default_rng()
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + (
        "from tests.support import janus_stub; from threedgen import cli\n"
        "if __name__ == '__main__':\n    janus_stub.register(); sys.exit(cli.main(sys.argv[1:]))\n"
    )
    Path("main.py").write_text(code)
    for round_ in range(2):
        before = sum(log().values())
        process = subprocess.Popen([sys.executable, "main.py", *words(*slow)], start_new_session=True)
        deadline = time.monotonic() + 400
        while sum(log().values()) < before + 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, 1.5))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -9, f"round {round_}: it was over already"
    assert cli.main(words(*slow)) == 0
    killed = table()
    done = {line: count for line, count in log().items() if line.startswith("done")}
    assert len(done) == 24 and set(done.values()) == {1}
    assert cli.main(words(*slow, "out=undisturbed", "engine=here")) == 0
    Path("run").rename("killed")
    Path("undisturbed").rename("run")
    assert table() == killed


def test_what_ray_says_of_a_task_becomes_an_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for Ray: what is asked of it, and how its answers are read."""

    class RayError(Exception):
        cause: Exception | None = None

    class TaskCancelledError(RayError):
        pass

    answers: list[Any] = []
    asked: list[Any] = []

    def remote(**options: Any) -> Any:
        asked.append(options)
        return lambda task: SimpleNamespace(remote=lambda *arguments: asked.append((task, arguments)) or "reference")

    def get(reference: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    fake = SimpleNamespace(
        remote=remote, get=get, wait=lambda references, timeout: ((references, []) if answers else ([], references)),
        cancel=lambda reference: asked.append("cancel"), exceptions=SimpleNamespace(
            RayError=RayError, TaskCancelledError=TaskCancelledError),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", fake)
    config = load("janus-benchmark", ["engine=processes", "out=run", "cpus=2"])
    worker = engines.RayWorker(config, 3)
    task, (given, table, number) = asked[1]
    assert asked[0] == {"num_cpus": 2, "num_gpus": 0, "max_retries": 0, "max_calls": 1}
    assert number == 3 and table is registry.TABLE and given.out == str(Path("run").resolve())
    monkeypatch.setattr(engines, "work", lambda *given: signal.getsignal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it begins with &
    try:
        assert task(given, table, number) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert worker.code() is None
    wrong = RayError("the task failed")
    wrong.cause = ConfigError("methods: no such config")
    answers += [0, 143, RayError("the worker died"), TaskCancelledError("stopped"), wrong]
    assert [worker.code() for _ in range(4)] == [0, 143, 1, 130]
    with pytest.raises(ConfigError, match="no such config"):
        worker.code()
    worker.end()
    assert asked[-1] == "cancel"


@pytest.mark.slow
def test_ray_loses_nothing_when_a_worker_is_killed() -> None:
    pytest.importorskip("ray")
    method("dies", "trouble: dies once")
    more = ["engine=ray", "workers=2", "seeds=[0]", "cpus=0.5", "lost_after=100"]
    assert cli.main(words(*more, methods="[dies, good]")) == 0
    assert [row["states"] for row in report()["methods"]] == [{"seen": 2}] * 2
    for line, count in log().items():
        assert count == (2 if line.startswith("begun dies") else 1), line
