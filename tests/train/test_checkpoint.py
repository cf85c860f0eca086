import os
import random
import signal
import time

import pytest
import torch

from tests.support import toy_run
from tests.support.errors import refused
from tests.support.waiting import when
from threedgen.config.errors import DiskFull
from threedgen.run import folder as runs
from threedgen.train import loop
from threedgen.train.checkpoint_file import LAST, PREVIOUS, latest, read, write


def state(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    weights = {"net.weight": torch.randn(40, 10, generator=generator), "n": torch.tensor(step)}
    optimizers = [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}]
    rest = {"optimizer_states": optimizers, "lr_schedulers": [{"last_epoch": step}], "loops": {}}
    return {"state_dict": weights, "global_step": step, "config_yaml": "a: 1\n"} | rest


def same(one: dict, other: dict) -> bool:
    return (
        one.keys() == other.keys()
        and one["global_step"] == other["global_step"]
        and all(torch.equal(value, other["state_dict"].get(key)) for key, value in one["state_dict"].items())
    )


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return toy_run.undisturbed()


def test_write_keeps_the_two_newest_files(tmp_path):
    assert latest(tmp_path) is None
    for step in range(1, 5):
        write(state(step), tmp_path / LAST)
    assert {path.name: read(path)["global_step"] for path in tmp_path.iterdir()} == {LAST: 4, PREVIOUS: 3}


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("unexpected pos 704 vs 598")])
def test_write_leaves_the_old_file_if_the_disk_is_full(tmp_path, monkeypatch, error):
    write(state(1), tmp_path / LAST)

    def full(checkpoint, file):
        file.write(b"half of a checkpoint")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write(state(2), tmp_path / LAST)
    assert caught.value.errno == 28
    assert same(read(tmp_path / LAST), state(1))
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_fit_checks_the_disk_space_for_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "free_megabytes", lambda folder: 1.0)
    loop._check_space(torch.nn.Linear(10, 10), tmp_path)
    with refused(None, tmp_path, "1 MB", 34, kind=DiskFull):
        loop._check_space(torch.nn.Linear(1000, 1000), tmp_path)


def test_latest_skips_a_truncated_file_with_one_warning(tmp_path, caplog):
    write(state(1), tmp_path / LAST)
    write(state(2), tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[: len(content) // 2])
    path, found = latest(tmp_path)
    assert path.name == "previous.ckpt" and same(found, state(1))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert all(name in caplog.text for name in ("last.ckpt", "previous.ckpt"))
    torch.save(state(1)["state_dict"], tmp_path / "previous.ckpt")  # plain weights, no checkpoint of a run
    with refused(None, "last.ckpt"):
        latest(tmp_path)


def test_resume_after_kills_gives_the_same_result(tmp_path, undisturbed):
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


@pytest.mark.parametrize("moment", ["fsync", "replace previous", "replace last"])
def test_resume_after_a_kill_during_a_write(tmp_path, undisturbed, moment):
    run, folder = toy_run.server(), tmp_path / "checkpoints"
    assert run.run(tmp_path, pause=0, seconds=0, die_at=moment, die_after=4) == -signal.SIGKILL
    assert len(list(folder.glob("*.tmp"))) == 1
    assert latest(folder)[1]["global_step"] == 3
    assert run.run(tmp_path, resume=True, pause=0) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed
    runs.remove_temporary_files(folder)
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("full_as", ["system", "torch"])
def test_run_continues_while_the_disk_is_full(tmp_path, undisturbed, full_as):
    run = toy_run.server()
    assert run.run(tmp_path, pause=0, seconds=0, full=[5, 20], full_as=full_as) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed
    assert toy_run.log(tmp_path).count("MB free") == 1
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == toy_run.STEPS


def test_run_fails_at_its_end_if_the_disk_stays_full(tmp_path, undisturbed):
    run = toy_run.server()
    assert run.run(tmp_path, pause=0, seconds=0, full=[5, 10_000]) == DiskFull.exit_code
    assert "DiskFull: " in toy_run.log(tmp_path) and str(tmp_path) in toy_run.log(tmp_path)
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == 4
    assert run.run(tmp_path, pause=0, resume=True) == 0
    assert toy_run.result(tmp_path)["digest"] == undisturbed
