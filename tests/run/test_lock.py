"""Two processes never work in one run folder; whoever died, however, locks nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.toy_task import toy  # noqa: F401
from threedgen import config
from threedgen.config import ConfigError
from threedgen.run import folder as runs
from threedgen.run import lock

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import os, sys, time
from pathlib import Path
from threedgen.run.lock import hold
hold(Path(sys.argv[1]))
if "fork" in sys.argv and not os.fork():
    time.sleep(60)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `folder`, or tried to."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])} | variables,
    )  # fmt: skip
    try:
        process.stdout.readline()
        yield process
    finally:
        with suppress(ProcessLookupError):  # it, and what it started
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_second_is_told_who_is_there(toy: Path) -> None:  # noqa: F811
    loaded = config.load("toy", ["out=here"])
    with holder(Path("here")) as other:
        with pytest.raises(ConfigError, match=rf"here is in use by process {other.pid} on .* since .* UTC: .*out="):
            runs.begin(loaded, "toy")
        assert [path.name for path in Path("here").iterdir()] == [lock.NAME]  # not even a config was written
        other.communicate("")
        begun, _ = runs.begin(loaded, "toy")  # it has ended
    lock.release(Path("here"))
    with holder(Path("here")) as other, pytest.raises(ConfigError, match=f"process {other.pid} "):
        runs.reopen("here", [])


def test_a_dead_holder_locks_nothing_not_even_by_its_children(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as other:
        other.kill()
        other.wait()
        assert (tmp_path / lock.NAME).exists()
        lock.hold(tmp_path)
        assert f"process {os.getpid()} on" in (tmp_path / lock.NAME).read_text()
        lock.hold(tmp_path)
        lock.release(tmp_path)
        lock.release(tmp_path)
        assert (tmp_path / lock.NAME).read_bytes() == b""  # it names nobody any more


def test_the_devices_of_one_run_do_not_lock_each_other_out(tmp_path: Path) -> None:
    lock.hold(tmp_path)
    with holder(tmp_path, LOCAL_RANK="1") as helper:
        assert helper.communicate()[1] == ""
    with holder(tmp_path) as other:
        assert "is in use by" in other.communicate()[1]
    lock.release(tmp_path)


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    lock.hold(tmp_path)
    assert "cannot be locked (No locks available): let nothing else work there" in caplog.text
