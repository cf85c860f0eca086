"""Runs: signals, numbers that are no numbers, other configs; and what must not change a result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import toy_run
from tests.support.toy_run import CONFIG_YAML, STEPS, log, result
from tests.support.waiting import when
from threedgen.config.errors import ConfigError
from threedgen.run.interrupts import Interrupts
from threedgen.run.threads import threads_of
from threedgen.train.callbacks import aside, nonfinite
from threedgen.train.checkpoint import NUMERICS_KEY, check_config, check_weights, numerics, warn_numerics
from threedgen.train.checkpoint_file import LAST, latest, read, write
from threedgen.train.loop import _blaming
from threedgen.train.status import Status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def run() -> toy_run.Server:
    return toy_run.server()


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return toy_run.undisturbed()


def started(folder, step: int) -> None:
    """Waits until a run has saved a step past `step`."""
    newest = folder / "checkpoints" / LAST

    def reached() -> bool:
        if not newest.exists():
            return False
        try:
            return read(newest)["global_step"] > step
        except ConfigError:  # just then it was moved aside
            return False

    when(reached)


# ---------------------------------------------------------------- nothing else counts


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": 0.1, "pause": 0.01}, {"validate": 7, "seconds": 1000}])
def test_saving_and_validation_do_not_change_the_result(tmp_path, run, undisturbed, options):
    assert run.run(tmp_path, **{"pause": 0} | options) == 0, log(tmp_path)
    assert result(tmp_path)["digest"] == undisturbed
    pictures = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("validation-*.txt"))
    assert pictures == (list(range(7, STEPS + 1, 7)) if "validate" in options else [])


def test_the_same_command_again_does_nothing(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0) == 0
    newest = tmp_path / "checkpoints" / LAST
    before = newest.stat().st_mtime_ns, newest.read_bytes()
    assert run.run(tmp_path, pause=0, resume=True) == 0
    assert (newest.stat().st_mtime_ns, newest.read_bytes()) == before
    assert result(tmp_path) == {"status": "finished", "step": STEPS, "digest": undisturbed}
    assert run.run(tmp_path, pause=0) == 2
    assert "holds a run already" in log(tmp_path)


def test_metrics_have_no_step_twice(tmp_path, run):
    assert run.run(tmp_path, pause=0, max_steps=25) == 0
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 30, "loss": 1}\n')  # logged, then killed
    assert run.run(tmp_path, pause=0, resume=True) == 0
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,loss,reconstruction,grid,step_seconds"
    assert [int(row.split(",")[0]) for row in rows[1:]] == [10, 20, 25, *range(30, STEPS + 1, 10)], "25 was the last"


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sigterm_saves_and_the_result_is_the_same(tmp_path, run, accumulate):
    wanted = toy_run.undisturbed(accumulate=accumulate)
    for stop in (10, 30):
        pid = run.start(tmp_path, seconds=0.02, accumulate=accumulate, resume=True, pause=0.01)
        started(tmp_path, stop)
        os.kill(pid, signal.SIGTERM)
        assert run.wait(pid) == 143, log(tmp_path)
        assert result(tmp_path)["status"] == "terminated"
    assert run.run(tmp_path, accumulate=accumulate, resume=True, pause=0) == 0
    assert result(tmp_path)["digest"] == wanted


def test_sigterm_saves_the_step_it_came_in(tmp_path, run):
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "toy", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    pid = run.start(tmp_path, seconds=1000, pause=0.02, environment=slurm)
    when(lambda: "15/60" in log(tmp_path))  # the first quarter is reported
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 143
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == result(tmp_path)["step"] >= 15
    assert not list(tmp_path.glob("hpc_ckpt*"))


def test_one_ctrl_c_ends_after_the_step(tmp_path, run, undisturbed):
    pid = run.start(tmp_path, seconds=0.02, pause=0.02)
    started(tmp_path, 5)
    os.kill(pid, signal.SIGINT)
    assert run.wait(pid) == 130
    stopped = result(tmp_path)
    assert stopped["status"] == "interrupted" and 5 < stopped["step"] < STEPS
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == stopped["step"]
    assert log(tmp_path).count("Ctrl-C again") == 1
    assert run.run(tmp_path, resume=True, pause=0) == 0
    assert result(tmp_path)["digest"] == undisturbed


def test_two_ctrl_c_leave_at_once(tmp_path, run, undisturbed):
    pid = run.start(tmp_path, seconds=0, pause=0, sleep_at=20)
    when(lambda: (tmp_path / "checkpoints" / LAST).exists())
    started(tmp_path, 19)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    begin = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert run.wait(pid) == 130
    assert time.monotonic() - begin < 100  # the step would take 300 s
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == 20
    assert run.run(tmp_path, resume=True, pause=0) == 0
    assert result(tmp_path)["digest"] == undisturbed


def test_interrupts_may_be_nested_and_give_the_handler_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as outer:
        with outer as inner:
            assert inner is outer and not outer.stop
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- not a number


def test_one_bad_step_is_skipped(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0, nan=[7, 8, 30]) == 0
    assert result(tmp_path)["status"] == "finished" and result(tmp_path)["digest"] != undisturbed
    assert "step 7 skipped: the loss term 'reconstruction' is not finite" in log(tmp_path)
    assert nonfinite_values(tmp_path) == []


def test_ten_bad_steps_end_the_run_and_the_good_state_stays(tmp_path, run):
    assert run.run(tmp_path, pause=0, seconds=0, nan=list(range(20, STEPS))) == 2
    assert result(tmp_path)["status"] == "failed" and result(tmp_path)["step"] == 30
    said = "stopped at step 30: the loss term 'reconstruction' is not finite for 10 steps in a row"
    assert log(tmp_path).count(said) == 1
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == 20
    assert nonfinite_values(tmp_path) == []


def test_weights_that_are_lost_in_the_last_steps_are_a_failure_too(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0, seconds=0, spoil=STEPS - 3) == 2
    assert result(tmp_path)["status"] == "failed"
    assert f"stopped at step {STEPS}: net.0.weight is not finite; the last good checkpoint is kept" in log(tmp_path)
    assert run.run(tmp_path, pause=0, resume=True) == 0
    assert result(tmp_path)["digest"] == undisturbed


def test_a_state_that_would_spoil_the_run_is_not_gone_on_with(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0, seconds=0, max_steps=30) == 0
    newest = tmp_path / "checkpoints" / LAST
    write(read(newest) | {"optimizer_states": []}, newest)
    (tmp_path / "checkpoints/previous.ckpt").unlink()
    assert run.run(tmp_path, pause=0, resume=True) == 2
    assert "last.ckpt cannot be gone on with: the state of its optimiser is missing" in log(tmp_path)


def nonfinite_values(folder) -> list[str]:
    weights = latest(folder / "checkpoints")[1]["state_dict"]
    return [name for name, value in weights.items() if not torch.isfinite(value).all()]


def test_nonfinite_names_the_culprit():
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("bound", torch.tensor(float("inf")))
    assert nonfinite(module) is None
    module.running_mean[1] = float("nan")
    assert nonfinite(module) == "running_mean"
    module.weight.data[0] = float("inf")
    assert nonfinite(module) == "weight"


# ---------------------------------------------------------------- another config, another network


def test_another_config_is_refused_by_its_keys(tmp_path, run):
    assert run.run(tmp_path, pause=0, max_steps=10) == 0
    harmless = CONFIG_YAML.replace("max_steps: 60", "max_steps: 99")
    assert run.run(tmp_path, pause=0, max_steps=15, resume=True, config_yaml=harmless) == 0
    other = CONFIG_YAML.replace("0.01", "0.5").replace("seed: 3", "seed: 4")
    assert run.run(tmp_path, pause=0, max_steps=20, resume=True, config_yaml=other) == 2
    assert "learning_rate: 0.01 -> 0.5" in log(tmp_path) and "seed: 3 -> 4" in log(tmp_path)


def test_fewer_steps_than_there_are_is_refused(tmp_path, run):
    assert run.run(tmp_path, pause=0, max_steps=10) == 0
    assert run.run(tmp_path, pause=0, max_steps=6, resume=True) == 2
    assert "trainer.max_steps: " in log(tmp_path) and " has 10 steps already; ask for as many or more" in log(tmp_path)


def test_another_network_is_refused(tmp_path, run):
    assert run.run(tmp_path, pause=0, max_steps=10) == 0
    assert run.run(tmp_path, pause=0, resume=True, width=13) == 2
    assert "(first 'net.0.weight': (12, 6) instead of (13, 6))" in log(tmp_path)


def test_a_checkpoint_without_a_config_is_not_compared():
    check_config({}, CONFIG_YAML)
    check_config({"config_yaml": CONFIG_YAML}, "")
    with pytest.raises(ConfigError, match="learning_rate"):
        check_config({"config_yaml": CONFIG_YAML}, "task: toy\nseed: 3\n")


def test_other_weights_are_refused():
    made = {"weights": {"start": "ab", "prior.adapter": "12"}}
    check_weights(made, {})
    check_weights(made, {"start": "ab", "prior.adapter": "12"})
    with pytest.raises(ConfigError, match=r"start: .*other weights \(SHA-256 ab\.\.\., these have cd\.\.\.\): set"):
        check_weights(made, {"start": "cd", "prior.adapter": "12"})
    with pytest.raises(ConfigError, match=r"prior.adapter: .*\(SHA-256 12\.\.\., these have 34\.\.\.\)"):
        check_weights(made, {"start": "ab", "prior.adapter": "34"})
    for before in ({}, {"weights": ""}, {"weights": "cd"}, {"weights": {}}):  # of earlier releases
        check_weights(before, {"start": "ab"})


def test_another_machine_is_reported(caplog):
    warn_numerics({NUMERICS_KEY: numerics()})
    warn_numerics({})
    assert not caplog.records
    warn_numerics({NUMERICS_KEY: numerics() | {"threads": "77/77"}})
    assert "last bits" in caplog.text and "threads 77/77 ->" in caplog.text


# ---------------------------------------------------------------- small things


def test_aside_leaves_no_trace():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    with aside(module):
        torch.rand(100)
        assert not module.training and not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), wanted)
    assert [m.training for m in module.modules()] == [True, True, False] and torch.is_grad_enabled()


def test_exit_codes():
    assert [status.exit_code for status in Status] == [0, 130, 143, 2]


def test_the_number_of_threads_stays_when_numba_begins_its_own() -> None:
    """With another number in the environment too; the number decides the last bits of sums, hence exact resuming."""
    words = """
import numba, numpy, torch
from threedgen.run.threads import set_threads

@numba.njit(parallel=True)
def total(values):
    result = 0.0
    for k in numba.prange(len(values)):
        result += values[k]
    return result

set_threads(1)
seen = [torch.get_num_threads(), total(numpy.ones(100)) and torch.get_num_threads(), numba.get_num_threads()]
assert seen == [1, 1, 1], seen
"""
    subprocess.run([sys.executable, "-c", words], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)


@pytest.mark.parametrize(
    ("threads", "devices", "expected"), [(None, "auto", None), (3, 2, 3), (None, 2, 4), (None, 100, 1)]
)
def test_devices_share_the_cores(monkeypatch, threads: int | None, devices: Any, expected: int | None):
    """Each process on all cores is many times slower: threads of one spin while they wait for those of the other."""
    monkeypatch.setattr("threedgen.run.threads.cores", lambda: 8)
    config = SimpleNamespace(threads=threads, trainer=SimpleNamespace(devices=devices))
    assert threads_of(config) == expected
    assert threads_of(SimpleNamespace(threads=threads)) == threads


@pytest.mark.parametrize(
    "kind", [KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError]
)
def test_what_fails_on_the_way_from_a_checkpoint_is_its_fault(kind: type[Exception]) -> None:
    said = rf"^run/last.ckpt does not fit this run \({kind.__name__}: .?cut off.?\)$"
    with pytest.raises(ConfigError, match=said) as caught, _blaming(Path("run/last.ckpt"), lambda: False):
        raise kind("cut off")
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(
    ("checkpoint", "going_on", "error"),
    [
        (None, False, ValueError("ours")),
        (Path("last.ckpt"), True, ValueError("ours")),
        (Path("last.ckpt"), False, torch.OutOfMemoryError("none left")),
        (Path("last.ckpt"), False, OSError("of the disk")),
        (Path("last.ckpt"), False, ConfigError("said already")),
    ],
)
def test_what_has_another_cause_is_not_blamed_on_a_checkpoint(
    checkpoint: Path | None, going_on: bool, error: Exception
) -> None:
    with pytest.raises(type(error)) as caught, _blaming(checkpoint, lambda: going_on):
        raise error
    assert caught.value is error
