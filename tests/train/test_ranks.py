import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.support.toy_run import log, result, server
from tests.support.waiting import when
from threedgen.config.errors import OutOfMemory, WorkerLost


def start(folder: Path, **options: object) -> list[int]:
    """Start both processes, as a launcher does, and return their ids."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [address | {"NODE_RANK": "0", "LOCAL_RANK": rank} for rank in "01"]
    return [server().start(folder, devices=2, max_steps=20, environment=rank, **options) for rank in ranks]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    assert [server().wait(pid) for pid in start(folder)] == [0, 0], log(folder)
    return result(folder)


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_loss_of_a_process_ends_the_training_which_continues(tmp_path, whole, victim, number) -> None:
    folder = tmp_path
    pids = start(folder, check_seconds=0.02, pause=0.05)
    when((folder / "checkpoints" / "last.ckpt").exists)
    os.kill(pids[victim], number)
    assert server().wait(pids[1 - victim]) == WorkerLost.exit_code, log(folder)
    assert server().wait(pids[victim]) == -signal.SIGKILL and str(pids[victim]) in log(folder)
    assert [server().wait(pid) for pid in start(folder, resume=True)] == [0, 0], log(folder)
    assert result(folder) == whole


def test_process_without_memory_ends_the_training_which_continues(tmp_path: Path, whole: dict[str, object]) -> None:
    pids = start(tmp_path, check_seconds=0.02, pause=0.05, starve_at=12)
    started = time.monotonic()
    assert server().wait(pids[1]) == OutOfMemory.exit_code, log(tmp_path)
    assert server().wait(pids[0]) == WorkerLost.exit_code, log(tmp_path)
    lines = [line for line in log(tmp_path).splitlines() if "OutOfMemory" in line or str(pids[1]) in line]
    assert time.monotonic() - started < 60 and len(lines) == 2 and "3 GB" in lines[0]
    assert "Traceback" not in log(tmp_path)
    assert [server().wait(pid) for pid in start(tmp_path, resume=True)] == [0, 0], log(tmp_path)
    assert result(tmp_path) == whole
