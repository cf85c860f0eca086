import signal

import pytest
import torch

from tests.support import toy_run
from tests.support.errors import refused
from threedgen.config.errors import DiskFull
from threedgen.run import folder as runs
from threedgen.train import loop
from threedgen.train.checkpoint_file import LAST, latest, write


def state(step: int) -> dict:
    weights = {"net.weight": torch.randn(40, 10)}
    return {"state_dict": weights, "global_step": step, "optimizer_states": [], "lr_schedulers": [], "loops": {}}


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return toy_run.undisturbed()


def test_fit_checks_the_disk_space_for_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "free_megabytes", lambda folder: 1.0)
    loop._check_space(torch.nn.Linear(10, 10), tmp_path)
    with refused(None, tmp_path, "1 MB", 34, kind=DiskFull):
        loop._check_space(torch.nn.Linear(1000, 1000), tmp_path)


def test_latest_skips_a_truncated_file_with_one_warning(tmp_path, caplog):
    older = state(1)
    write(older, tmp_path / LAST)
    write(state(2), tmp_path / LAST)
    content = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(content[: len(content) // 2])
    path, found = latest(tmp_path)
    assert path.name == "previous.ckpt" and found["global_step"] == 1
    assert torch.equal(found["state_dict"]["net.weight"], older["state_dict"]["net.weight"])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert all(name in caplog.text for name in ("last.ckpt", "previous.ckpt"))
    torch.save(older["state_dict"], tmp_path / "previous.ckpt")  # plain weights, no checkpoint of a run
    with refused(None, "last.ckpt"):
        latest(tmp_path)


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
