"""Checkpoints: written whole or not at all, never trusted; a killed run goes on as if nothing had been."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.support import toy_run
from tests.support.waiting import when
from threedgen.config.errors import ConfigError
from threedgen.run import folder as runs
from threedgen.run.disk import free_megabytes
from threedgen.train.checkpoint import check_restored
from threedgen.train.checkpoint_file import LAST, file_names, latest, read, write

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {"net.weight": torch.randn(40, 10, generator=generator), "n": torch.tensor(step)}
    optimizers = [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}]
    whole = {"optimizer_states": optimizers, "lr_schedulers": [{"last_epoch": step}], "loops": {}}
    return {"state_dict": weights, "global_step": step, "config_yaml": "a: 1\n"} | whole


def same(one: dict, other: dict) -> bool:
    return (
        one.keys() == other.keys()
        and one["global_step"] == other["global_step"]
        and all(torch.equal(value, other["state_dict"].get(key)) for key, value in one["state_dict"].items())
    )


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return toy_run.undisturbed()


# ---------------------------------------------------------------- writing


def test_only_as_many_checkpoints_are_looked_at_as_are_kept(tmp_path: Path) -> None:
    write(state(3), tmp_path / "previous-2.ckpt")
    assert latest(tmp_path) is None and latest(tmp_path, keep=1) is None
    found = latest(tmp_path, keep=3)
    assert found is not None and found[0].name == "previous-2.ckpt"


def test_free_space_is_in_mebibytes(tmp_path: Path) -> None:
    assert free_megabytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free / 1_048_576, rel=0.2)


def test_keeps_the_newest_and_the_one_before(tmp_path):
    assert latest(tmp_path) is None
    for step in range(1, 5):
        write(state(step), tmp_path / LAST, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert [read(tmp_path / name)["global_step"] for name in file_names(2)] == [4, 3]
    write(state(5), tmp_path / LAST, keep=3)
    assert [read(tmp_path / name)["global_step"] for name in file_names(3)] == [5, 4, 3]


def test_forced_to_the_disk_before_the_old_one_gives_way(tmp_path, monkeypatch):
    write(state(1), tmp_path / LAST)
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(Path(b).name), replace(a, b)))
    write(state(2), tmp_path / LAST)
    assert calls == ["fsync", "previous.ckpt", "last.ckpt", "fsync"]


NAN = torch.tensor(float("nan"))


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos 704 vs 598")])
def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch, error):
    write(state(1), tmp_path / LAST)

    def full(checkpoint, file):
        file.write(b"half of a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write(state(2), tmp_path / LAST)
    assert same(read(tmp_path / LAST), state(1))
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


# ---------------------------------------------------------------- reading


def test_falls_back_to_the_one_before_with_one_line(tmp_path, caplog):
    write(state(1), tmp_path / LAST)
    write(state(2), tmp_path / LAST)
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[: len(whole) // 2])
    path, found = latest(tmp_path)
    assert path.name == "previous.ckpt" and same(found, state(1))
    assert len(caplog.records) == 1 and "last.ckpt" in caplog.text and "damaged" in caplog.text
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged"):
        latest(tmp_path)


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch zip", "torch legacy", "pickle"])
def test_code_in_a_file_is_not_executed(tmp_path, how):
    content = state(1) | {"extra": Malicious(tmp_path / "executed")}
    path = tmp_path / LAST
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch zip")
    with pytest.raises(ConfigError) as caught:
        latest(tmp_path)
    assert not (tmp_path / "executed").exists()
    message = str(caught.value)
    assert "weights_only" not in message and "\n" not in message
    if how == "torch zip":
        assert "Python objects" in message and "mkdir" in message


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid", b"PK\x03\x04 nonsense"],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / LAST).write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt is damaged, cut off or not a checkpoint"):
        latest(tmp_path)


def test_plain_weights_are_not_the_checkpoint_of_a_run(tmp_path):
    torch.save(state(1)["state_dict"], tmp_path / LAST)
    with pytest.raises(ConfigError, match="not the checkpoint of a run"):
        latest(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"state_dict": {"net.weight": NAN}}, "state_dict.net.weight holds NaN"),
        ({"optimizer_states": []}, "optimiser is missing"),
        ({"optimizer_states": [{"state": {}, "param_groups": []}]}, "optimiser is missing"),
        ({"optimizer_states": [{"state": {0: {"v": NAN}}, "param_groups": []}]}, "0.state.0.v holds NaN"),
        ({"lr_schedulers": []}, "learning rates are not those of step 2"),
        ({"lr_schedulers": [{"last_epoch": 0}]}, "learning rates are not those of step 2"),
    ],
)  # fmt: skip
def test_a_state_that_would_spoil_the_run_gives_way_to_the_one_before(tmp_path, caplog, changed, said):
    write(state(1), tmp_path / LAST)
    write(state(2) | changed, tmp_path / LAST)
    assert same(latest(tmp_path)[1], state(1))
    assert "last.ckpt cannot be gone on with: " in caplog.text and said in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        {"state_dict": [1]},
        {"state_dict": {"net.weight": 3}},
        {"state_dict": {7: torch.ones(1)}},
        {"global_step": "5"},
        {"global_step": -1},
        {"global_step": True},
        {"global_step": 10**30},
        {"loops": None},
        {"optimizer_states": {}},
        {"optimizer_states": [{"state": {}}]},
        {"lr_schedulers": [3]},
        {"lr_schedulers": [{"last_epoch": 2, "base_lrs": [float("nan")]}]},
    ],
    ids=str,
)
def test_a_state_of_another_kind_is_one_sentence(tmp_path, changed):
    write(state(2) | changed, tmp_path / LAST)
    with pytest.raises(ConfigError, match="is damaged: it"):
        latest(tmp_path)


def test_no_damage_goes_unnoticed(tmp_path):
    """300 files with bytes changed, cut out, put in or cut off: each is refused or says what it said."""
    path = tmp_path / LAST
    write(state(1), path)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for n in range(300):
        data, at, length = bytearray(whole), rng.randrange(len(whole)), rng.randrange(1, 30)
        if n % 4 == 0:
            data = data[:at]
        elif n % 4 == 1:
            data[at : at + length] = rng.randbytes(length)
        elif n % 4 == 2:
            del data[at : at + length]
        else:
            data[at:at] = rng.randbytes(length)
        path.write_bytes(data)
        try:
            assert same(read(path), state(1))
        except ConfigError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200


# ---------------------------------------------------------------- kills


@unix
def test_killed_three_times_and_the_result_is_the_same(tmp_path, undisturbed):
    rng, run, newest = random.Random(5), toy_run.server(), tmp_path / "checkpoints" / LAST

    def saved_at() -> int:
        return newest.stat().st_mtime_ns if newest.exists() else 0

    for kill in range(3):
        before = saved_at()
        pid = run.start(tmp_path, resume=kill > 0, pause=0.02)
        when(lambda before=before: saved_at() > before)
        time.sleep(rng.uniform(0, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert run.wait(pid) == -signal.SIGKILL
    assert run.run(tmp_path, resume=True, pause=0) == 0, toy_run.log(tmp_path)
    assert toy_run.result(tmp_path) == {"status": "finished", "step": toy_run.STEPS, "digest": undisturbed}


@unix
@pytest.mark.parametrize("moment", ["fsync", "replace previous", "replace last"])
def test_killed_while_writing(tmp_path, undisturbed, moment):
    run, folder = toy_run.server(), tmp_path / "checkpoints"
    code = run.run(tmp_path, pause=0, seconds=0, die_at=moment, die_after=4)
    assert code == -signal.SIGKILL
    assert len(list(folder.glob("*.tmp"))) == 1
    _, kept = latest(folder)
    assert kept["global_step"] == 3
    assert run.run(tmp_path, resume=True, pause=0) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed
    runs.clear_unfinished(folder)
    assert not list(folder.glob("*.tmp"))


@unix
def test_a_moved_run_goes_on_and_its_checkpoint_knows_no_place(tmp_path, undisturbed):
    run, here, there = toy_run.server(), tmp_path / "first place", tmp_path / "second place"
    assert run.run(here, pause=0, max_steps=25) == 0
    assert str(tmp_path).encode() not in (here / "checkpoints" / LAST).read_bytes()
    shutil.move(here, there)
    assert run.run(there, resume=True, pause=0) == 0
    assert toy_run.result(there)["digest"] == undisturbed
    assert not here.exists()


@unix
@pytest.mark.parametrize("full_as", ["system", "torch"])
def test_the_run_goes_on_while_the_disk_is_full(tmp_path, undisturbed, full_as):
    run = toy_run.server()
    assert run.run(tmp_path, pause=0, seconds=0, full=[5, 20], full_as=full_as) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed
    assert toy_run.log(tmp_path).count("no checkpoint could be written") == 1
    assert "MB free" in toy_run.log(tmp_path)
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == toy_run.STEPS


@unix
def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, undisturbed):
    run = toy_run.server()
    assert run.run(tmp_path, pause=0, seconds=0, full=[5, 10_000]) == 2
    assert "make room" in toy_run.log(tmp_path)
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == 4
    assert run.run(tmp_path, pause=0, resume=True) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed


def test_too_little_space_is_said_before_the_run(tmp_path, monkeypatch):
    from threedgen.train import loop

    monkeypatch.setattr(loop, "free_megabytes", lambda folder: 1.0)
    loop._check_space(torch.nn.Linear(10, 10), tmp_path, keep=2)
    with pytest.raises(ConfigError, match=r"1 MB free, but the run's checkpoints need 34 MB"):
        loop._check_space(torch.nn.Linear(1000, 1000), tmp_path, keep=2)
    assert free_megabytes(tmp_path) > 0


# ---------------------------------------------------------------- what Lightning hands over


@pytest.mark.parametrize(("shape", "fits"), [((3, 2), True), ((2, 3), False), ((3,), False), ((), True)])
def test_an_optimisers_memory_is_of_the_shape_of_its_weight(shape, fits):
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    adam, other = torch.optim.Adam([weight]), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    adam.state[weight] = {"step": torch.tensor(3.0), "note": "of no shape", "exp_avg": torch.zeros(shape)}
    if fits:
        check_restored([other, adam])
        return
    with pytest.raises(ConfigError, match=re.escape(f"another network (exp_avg: {shape} instead of (3, 2))")):
        check_restored([other, adam])
