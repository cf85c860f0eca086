import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from tests.support.errors import refused
from tests.support.marks import unix
from tests.support.waiting import when
from tests.support.worker_jobs import Job, work
from threedgen.config import plugins
from threedgen.config.errors import WorkerLost
from threedgen.run import watch, worker_pool, workers
from threedgen.run.options import WorkersConfig
from threedgen.run.worker_pool import run_jobs

ENGINES = ("here", "processes")


class Run:
    """Calls of ``run_jobs`` in a folder, with their results and failures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[str, int] = {}
        self.failed: dict[str, str] = {}

    def job(self, name: str, trouble: str = "", once: bool = False) -> Job:
        return Job(name, str(self.folder), trouble, once)

    def __call__(self, jobs: Any, engine: str = "processes", workers: int = 2, **options: Any) -> int:
        def on_done(job: Job, process: int) -> None:
            assert job.name not in self.done
            self.done[job.name] = process

        def on_failed(job: Job, reason: str) -> None:
            self.failed[job.name] = reason

        config = WorkersConfig(task="test", engine=engine, workers=workers, **{"attempts": 1, **options})
        return run_jobs(jobs, work, on_done, on_failed, config)

    def wait_for(self, pattern: str, count: int) -> list[Path]:
        return when(lambda: len(found := list(self.folder.glob(pattern))) >= count and found, pattern)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def send_signals(run: Run, pattern: str, count: int, signals: list[signal.Signals]) -> None:
    """Send signals to this process, one per second, when ``count`` files exist."""

    def send() -> None:
        run.wait_for(pattern, count)
        for signal_ in signals:
            os.kill(os.getpid(), signal_)
            time.sleep(1)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("engine", ENGINES)
def test_run_jobs_retries_failed_jobs(run: Run, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    jobs = [run.job("a"), run.job("b", "fail", once=True), run.job("c", "fail"), *map(run.job, "defg")]
    assert run(jobs, engine, attempts=3) == 0
    assert set(run.done) == set("abdefg") and run.failed == {"c": "ValueError: no memory"}
    assert caplog.text.count("Traceback") == 1 and "in fail" in caplog.text
    assert [job.traces("started") for job in jobs] == [1, 2, 3, 1, 1, 1, 1]
    assert len(set(run.done.values())) <= 2 and (os.getpid() in run.done.values()) == (engine == "here")


@pytest.mark.parametrize("engine", ENGINES)
def test_run_jobs_retries_a_job_without_memory(run: Run, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    jobs = [run.job("once", "starve", once=True), run.job("always", "starve"), run.job("a")]
    assert run(jobs, engine, attempts=2) == 0
    assert set(run.done) == {"once", "a"} and set(run.failed) == {"always"} and "3 GB" in run.failed["always"]
    assert sorted(record.levelname for record in caplog.records) == ["ERROR", "WARNING", "WARNING"]
    assert all(record.getMessage().count("\n") == 0 for record in caplog.records)
    assert run([run.job("always")], engine) == 0 and "always" in run.done


@unix
def test_run_jobs_replaces_a_dead_or_frozen_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "CHECK_SECONDS", 0.05)
    troubles = [run.job("once", "die", once=True), run.job("always", "die"), run.job("frozen", "freeze", once=True)]
    jobs = [*troubles, *map(run.job, "abcdef")]
    assert run(jobs, attempts=3) == 0
    assert set(run.done) == {"once", "frozen", *"abcdef"} and set(run.failed) == {"always"}
    assert "BrokenProcessPool" in run.failed["always"]
    assert [job.traces("started") for job in jobs] == [2, 3, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("chosen", "gpus"), [(None, ["0", "1", "0"]), ("5,7,9", ["5", "7", "5"]), ("", [None] * 3)])
def test_each_local_process_has_one_gpu(run: Run, monkeypatch, chosen: str | None, gpus: list[str | None]) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0 if chosen == "" else 2)
    monkeypatch.setattr(worker_pool, "LocalProcess", lambda gpu: seen.append(gpu) or workers.Worker())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert run([run.job("a")], workers=3) == 0 and seen == gpus


def test_restarted_process_keeps_its_gpu() -> None:
    worker = workers.LocalProcess("5")
    for _ in range(2):
        assert worker.pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES").result() == "5"
        worker.close()
        worker.restart()
    worker.close()


def test_run_jobs_stops_if_workers_keep_dying(run: Run) -> None:
    with refused(None, 5, kind=WorkerLost):
        run([run.job(name, "die") for name in "abcdefgh"], attempts=1)
    assert len(run.failed) == 4 and not run.done


@pytest.mark.parametrize("engine", ENGINES)
def test_run_jobs_raises_config_errors_and_stops_after_a_stopped_job(run: Run, engine: str) -> None:
    with refused(None, "weights: there are none"):
        run([run.job("e", "mistake"), run.job("f")], engine, workers=1, attempts=3)
    run.done.clear()
    jobs = [run.job("a", "obeyed", once=True), run.job("b"), run.job("c"), run.job("d")]
    assert run(jobs, engine, workers=1) == 143 and not run.done and not run.failed
    assert run(jobs, engine, workers=1) == 0 and set(run.done) == set("abcd")


@pytest.mark.parametrize(("signal_", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_lets_workers_save(run: Run, signal_: signal.Signals, code: int) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    jobs = [run.job(name, "wait", once=True) for name in "ab"] + [run.job("c")]
    send_signals(run, "*.started.*", 2, [signal_])
    assert run(jobs) == code and not run.done and not run.failed
    assert [job.traces("saved") for job in jobs] == [1, 1, 0] and jobs[2].traces("started") == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert run(jobs) == 0 and set(run.done) == set("abc")


def test_second_ctrl_c_kills_the_workers(run: Run) -> None:
    send_signals(run, "a.deaf.*", 1, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        run([run.job("a", "deaf"), run.job("b")], workers=1)
    process = int(run.wait_for("a.deaf.*", 1)[0].read_text())
    when(lambda: not psutil.pid_exists(process), "the end", 30)


class FakeRay:
    """Replacement of the module ray, with tasks whose results the test sets."""

    def __init__(self) -> None:
        self.options: list[Any] = []
        self.init: Callable[..., None] = lambda **options: self.options.append(options)
        self.answers: list[Any] = []
        self.cancel: Callable[..., None] = lambda reference, force: None
        self.nodes: Callable[[], object] = list
        self.pending = False

    def remote(self, **options: Any) -> Any:
        self.options.append(options)
        return lambda task: SimpleNamespace(remote=lambda *arguments: self.submitted(task, *arguments))

    def submitted(self, task: Any, *arguments: Any) -> Any:
        future: Future[Any] = Future()
        if self.pending:
            pass
        elif answer := self.answers.pop(0) if self.answers else None:
            future.set_exception(answer)
        else:
            future.set_result(task(*arguments))
        return SimpleNamespace(future=lambda: future)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_ray_options_and_retries(run: Run, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "LOADED", {"json": plugins.Plugin(Path("json.py"), "")})
    fake_ray.answers = [RuntimeError("the worker died"), None, RuntimeError("the node died")]
    jobs = [run.job("a"), run.job("b", "fail", once=True), run.job("c")]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a process started with &
    try:
        assert run(jobs, "ray", attempts=3, address="there:1", cpus=2, gpus=0.5) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(run.done) == set("abc") and not run.failed
    connected, task = fake_ray.options
    assert connected["address"] == "there:1" and os.getcwd() in connected["runtime_env"]["env_vars"]["PYTHONPATH"]
    assert connected["runtime_env"]["worker_process_setup_hook"].__name__ == "setup"
    assert task == {"num_cpus": 2, "num_gpus": 0.5, "max_retries": 0}


@pytest.mark.parametrize(("variable", "address"), [("there:2", "there:2"), ("", "local")])
def test_default_ray_cluster(run: Run, fake_ray: FakeRay, monkeypatch, variable: str, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    assert run([run.job("a")], "ray") == 0
    assert fake_ray.options[0]["address"] == address


def test_lost_or_missing_ray_cluster_is_said(run: Run, fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOST_SECONDS", 0.3)
    fake_ray.pending, fake_ray.nodes = True, lambda: time.sleep(100)
    with pytest.raises(WorkerLost):
        run([run.job("a")], "ray")

    def init(**options: Any) -> None:
        raise ConnectionError("no\nsuch host")

    fake_ray.init = init
    with refused("address", "no such host", "'there'"):
        run([run.job("a")], "ray", address="there")


@pytest.mark.slow
def test_ray_retries_after_a_killed_or_frozen_worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(watch, "CHECK_SECONDS", 0.5)
    jobs = [run.job("a", "die", once=True), run.job("b", "fail", once=True), run.job("c"), run.job("d", "die")]
    jobs.append(run.job("e", "freeze", once=True))
    assert run(jobs, "ray", attempts=2, cpus=0.5) == 0
    assert set(run.done) == set("abce") and set(run.failed) == {"d"}
    assert [job.traces("started") for job in jobs] == [2, 2, 1, 2, 2]
