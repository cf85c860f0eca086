"""A run whose machine loses power or whose disk fails, at any moment, goes on from what the disk holds."""

import errno
import functools
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.kept_folder import kept_folder
from tests.support.marks import unix
from tests.support.power_loss import State, restore, states
from tests.support.task_server import assert_same, finished_run, server, tiny_generate, weights
from tests.support.toy_run import log
from threedgen.run.metrics import read_metrics, read_summary

FILES = ("views.png", "turntable.mp4", "mesh.glb", "asset/a_red_dog.glb")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def command(folder: Path) -> list[str]:
    config = tiny_generate(folder, export={"budget": 200, "texture": 64, "lods": [], "resolution": 16, "refine": 2})
    return ["--config", str(config), "out=run"]


def make_work(folder: Path) -> Path:
    work = folder / "work"
    work.mkdir(parents=True)
    return work


def assert_complete(work: Path, case: object) -> None:
    run, whole = work / "run", finished_run(command)
    assert_same(weights(run), weights(whole))
    assert [row["step"] for row in read_metrics(run)] == [row["step"] for row in read_metrics(whole)], case
    assert read_summary(run)["triangles"] == read_summary(whole)["triangles"]
    for name in FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), (case, name)


@functools.cache
def recorded() -> tuple[Path, list[State]]:
    """Return the folder of the recorded contents, and what a power loss at each moment of a run leaves."""
    folder = kept_folder()
    words, work = command(folder), make_work(folder)
    assert server().run(work, words=words, power_loss=str(folder / "states")) == 0, log(work)
    return folder / "states", states(folder / "states")


def assert_goes_on(number: int, folder: Path) -> None:
    contents, found = recorded()
    work = make_work(folder)
    restore(found[number], contents, work)
    assert server().run(work, words=command(folder)) == 0, (number, log(work))
    assert_complete(work, number)


@unix
def test_run_goes_on_after_a_power_loss(tmp_path: Path) -> None:
    assert_goes_on(len(recorded()[1]) // 2, tmp_path)


@unix
@pytest.mark.slow
def test_run_goes_on_after_a_power_loss_at_any_moment(tmp_path: Path) -> None:
    print(f"{len(recorded()[1])} states of the disk")
    for number in range(len(recorded()[1])):
        assert_goes_on(number, tmp_path / str(number))


def assert_fault_is_said(folder: Path, case: object, **fault: Any) -> int:
    """Run a command while its storage fails, then without fault. Return the first exit code."""
    work, words = make_work(folder), command(folder)
    code = server().run(work, words=words, fault=fault)
    text = log(work)
    assert "Traceback" not in text and code in (0, 1, 2, 3, 4), (case, code, text)
    if code:
        assert os.strerror(fault["error"]) in text.splitlines()[-1], (case, text)
    assert server().run(work, words=words) == 0, (case, log(work))
    assert_complete(work, case)
    return code


def uses(folder: Path) -> int:
    """Return how often a run uses its storage."""
    work = make_work(folder)
    assert server().run(work, words=command(folder), fault={"number": 0, "error": 0}) == 0, log(work)
    return int((folder / "uses").read_text())


@unix
@pytest.mark.parametrize("lasting", [False, True])
def test_storage_fault_is_said_and_the_run_goes_on(tmp_path: Path, lasting: bool) -> None:
    assert_fault_is_said(tmp_path, lasting, number=60, error=errno.EIO, lasting=lasting)


@unix
@pytest.mark.slow
def test_storage_fails_at_any_moment(tmp_path: Path) -> None:
    rng, number = random.Random(11), uses(tmp_path / "count")
    codes: Counter[int] = Counter()
    for k in range(int(os.environ.get("FAULTS", "14"))):
        fault = {"number": rng.randint(1, number), "error": rng.choice(ERRORS), "lasting": rng.random() < 0.5}
        codes[assert_fault_is_said(tmp_path / str(k), fault, **fault)] += 1
    print(f"{sum(codes.values())} faults at {number} uses of the storage, exit codes {dict(codes)}; differences: 0")
