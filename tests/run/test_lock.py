import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.errors import refused
from tests.support.toy_task import toy  # noqa: F401
from threedgen import config
from threedgen.run import folder as runs
from threedgen.run import lock

fcntl = pytest.importorskip("fcntl")

HOLDER = """
import os, sys, time
from pathlib import Path
from threedgen.run.lock import acquire
acquire(Path(sys.argv[1]))
if "fork" in sys.argv and not os.fork():
    time.sleep(60)
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, *words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start another process that locks `folder`, or tries to."""
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
        with suppress(ProcessLookupError):  # with its child processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_open_run_names_the_process_that_uses_the_folder(toy: Path) -> None:  # noqa: F811
    loaded = config.load("toy", ["out=here"])
    with holder(Path("here")) as other:
        with refused("out", "here", f"process {other.pid} on ", " UTC"):
            runs.open_run(loaded, "toy")
        assert [path.name for path in Path("here").iterdir()] == [lock.NAME], "no config was written"
        other.communicate("")
        runs.open_run(loaded, "toy")  # the other process has ended
    lock.release(Path("here"))
    with holder(Path("here")) as other, refused("out", f"process {other.pid} "):
        runs.reopen("here", [])


def test_runs_that_start_in_the_same_moment_get_different_folders(toy: Path, monkeypatch) -> None:  # noqa: F811
    loaded, choose = config.load("toy"), runs.choose_folder
    first, _ = choose(loaded, "toy")
    with holder(first):
        chosen = iter([(first, None)])  # before the other process had locked it
        monkeypatch.setattr(runs, "choose_folder", lambda *words: next(chosen, None) or choose(*words))
        assert runs.open_run(loaded, "toy")[0].out == f"{first}-2"
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert choose(loaded, "toy")[0] == first, "ranks share the folder"


def test_lock_ends_with_its_process_even_if_a_child_lives(tmp_path: Path) -> None:
    with holder(tmp_path, "fork") as other:
        other.kill()
        other.wait()
        assert (tmp_path / lock.NAME).exists()
        lock.acquire(tmp_path)
        assert f"process {os.getpid()} on" in (tmp_path / lock.NAME).read_text()
        lock.acquire(tmp_path)
        lock.release(tmp_path)
        lock.release(tmp_path)
        assert (tmp_path / lock.NAME).read_bytes() == b""


def test_ranks_of_one_run_share_the_lock_and_a_file_system_may_have_none(tmp_path, monkeypatch, caplog) -> None:
    lock.acquire(tmp_path)
    with holder(tmp_path, LOCAL_RANK="1") as rank:
        assert rank.communicate()[1] == ""
    with holder(tmp_path) as other:
        assert f"process {os.getpid()} on " in other.communicate()[1]
    lock.release(tmp_path)

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    lock.acquire(tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(tmp_path) in caplog.text and os.strerror(errno.ENOLCK) in caplog.text
