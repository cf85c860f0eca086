"""Who works on which job: claims in a folder that several workers and machines share."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from threedgen.evaluation.janus.claims import FAILED, FINISHED, REFUSED, RELEASED, STUMBLED, Claims


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_machine(name: str, **options: Any) -> Claims:
    return Claims(Path("claims"), **({"heartbeat": 0.05, "lost_after": 0.3} | options), _place=name)


def test_a_job_has_one_worker_at_a_time() -> None:
    here, there = of_machine("here"), of_machine("there")
    claim = here.take("job", 0)
    assert claim is not None and there.take("job", 0) is None and there.newest() == {"job": 1}
    with claim:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert there.take("job", 1) is None  # it shows signs of life
            time.sleep(0.05)
        claim.end(FINISHED, memory_mib=5.0)
    assert there.take("job", 1) is None
    told = there.told("job", 1)
    assert told["state"] == FINISHED and told["attempt"] == 1 and told["seconds"] >= 1 and told["memory_mib"] == 5


def test_a_lost_job_is_taken_over_by_one_and_its_old_worker_has_no_say() -> None:
    here, there, third = (of_machine(name) for name in ("here", "there", "third"))
    old = here.take("job", 0)
    assert old is not None and there.take("job", 1) is None and third.take("job", 1) is None  # first seen just now
    time.sleep(0.4)
    new = there.take("job", 1)
    assert new is not None and third.take("job", 1) is None and third.take("job", 2) is None
    old.end(FINISHED)  # it only slept
    assert old.lost and third.told("job", 1)["state"] == "working"
    new.end(FINISHED)
    assert third.told("job", 2) | {"worker": ""} == {
        "state": FINISHED, "attempt": 2, "worker": "", "before": 0.0, "seconds": 0.0, "beat": 0,
    }  # fmt: skip


def test_a_dead_process_of_this_machine_is_known_at_once() -> None:
    mine = Claims(Path("claims"), lost_after=1000)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim = mine.take("job", 0)
    assert claim is not None
    told = json.loads(claim.path.read_text())
    assert mine.take("job", 1) is None
    told |= {"worker": told["worker"].rpartition("#")[0] + f"#{dead.pid}", "seconds": 7}
    claim.path.write_text(json.dumps(told))
    again = mine.take("job", 1)
    assert again is not None and again.told["before"] == 7 and again.told["attempt"] == 2


def test_attempts_are_counted_but_not_those_that_were_stopped() -> None:
    mine = of_machine("here", attempts=2)
    for number, (state, attempt) in enumerate(
        [(RELEASED, 1), (REFUSED, 1), (RELEASED, 1), (STUMBLED, 1), (STUMBLED, 2)]
    ):
        claim = mine.take("job", number)
        assert claim is not None and claim.told["attempt"] == attempt
        claim.end(state, reason="no memory")
    assert mine.take("job", 5) is None
    told = mine.told("job", 6)
    assert told["state"] == FAILED and told["reason"] == "given up after 2 attempts: no memory"
    assert mine.take("job", 6) is None


def test_many_workers_at_one_folder_do_each_job_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(grab, [Path("claims").resolve()] * 8))
    assert sorted(sum(won, [])) == sorted(f"job{k}" for k in range(50))


def grab(folder: Path) -> list[str]:
    claims = Claims(folder, lost_after=1000)
    return [key for k in range(50) if claims.take(key := f"job{k}", 0)]
