import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import toy_run
from tests.support.errors import refused
from tests.support.toy_run import CONFIG_YAML, STEPS, log, result
from tests.support.two_devices import Toy
from tests.support.waiting import when
from threedgen import config
from threedgen.config.errors import ConfigError, OutOfMemory, WorkerLost
from threedgen.config.sections import CheckpointConfig, LoggerConfig, TrainerConfig
from threedgen.run.folder import differences
from threedgen.run.interrupts import Interrupts
from threedgen.run.threads import threads_of
from threedgen.train import loop
from threedgen.train.callbacks import first_nonfinite, isolated_eval
from threedgen.train.checkpoint import AtomicCheckpointIO, check_weights, numerics
from threedgen.train.checkpoint_file import LAST, latest, read
from threedgen.train.loop import _strategy, deterministic, fit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def run() -> toy_run.Server:
    return toy_run.server()


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return toy_run.undisturbed()


def wait_for_step(folder, step: int) -> None:
    """Wait until a run has saved a checkpoint later than `step`."""

    def reached() -> bool:
        try:
            return read(folder / "checkpoints" / LAST)["global_step"] > step
        except ConfigError:  # there is none yet, or it was just renamed
            return False

    when(reached)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": 0.1, "pause": 0.01}, {"validate": 7, "seconds": 1000}])
def test_saving_and_validation_do_not_change_the_result(tmp_path, run, undisturbed, options):
    assert run.run(tmp_path, **{"pause": 0} | options) == 0, log(tmp_path)
    assert result(tmp_path)["digest"] == undisturbed
    steps = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("validation-*.txt"))
    assert steps == (list(range(7, STEPS + 1, 7)) if "validate" in options else [])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_after_sigterm_gives_the_same_result(tmp_path, run, accumulate):
    expected = toy_run.undisturbed(accumulate=accumulate)
    for stop in (10, 30):
        pid = run.start(tmp_path, seconds=0.02, accumulate=accumulate, resume=True, pause=0.01)
        wait_for_step(tmp_path, stop)
        os.kill(pid, signal.SIGTERM)
        assert run.wait(pid) == 143, log(tmp_path)
        assert result(tmp_path)["status"] == "terminated"
    assert run.run(tmp_path, accumulate=accumulate, resume=True, pause=0) == 0
    assert result(tmp_path)["digest"] == expected


def test_sigterm_saves_the_current_step(tmp_path, run):
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "toy", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    slurm |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    pid = run.start(tmp_path, seconds=1000, pause=0.02, environment=slurm)
    when(lambda: "15/60" in log(tmp_path))  # the line at the first quarter
    os.kill(pid, signal.SIGTERM)
    assert run.wait(pid) == 143
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == result(tmp_path)["step"] >= 15
    assert not list(tmp_path.glob("hpc_ckpt*"))


@pytest.mark.parametrize(
    "variables",
    [
        {"NTASKS": "1"},
        {"NTASKS": "1", "NTASKS_PER_NODE": "1"},
        {"NTASKS": "2", "NTASKS_PER_NODE": "2"},
        {"NTASKS": "2"},
    ],
)
def test_training_starts_its_processes_in_a_slurm_job_without_srun(tmp_path, monkeypatch, variables):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in {"JOB_NAME": "toy", "JOB_ID": "7", "PROCID": "0", "LOCALID": "0", **variables}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = SimpleNamespace(trainer=TrainerConfig(accelerator="cpu", devices=2))
    config.trainer.check()
    trainer = loop._trainer(config, tmp_path, AtomicCheckpointIO(), 1, [])
    assert trainer.world_size == 2 and not trainer.strategy.cluster_environment.creates_processes_externally


@pytest.mark.parametrize(
    ("per_node", "devices", "gpus", "good"),
    [("8", "auto", 8, True), ("8", 8, 8, True), (None, 8, 8, False), ("8", "auto", 1, False), ("4", 8, 8, False)],
)
def test_processes_of_srun_that_do_not_fit_are_refused(monkeypatch, per_node, devices, gpus, good):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if per_node:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", per_node)
    with nullcontext() if good else refused("devices", 8):
        TrainerConfig(devices=devices).check()


def test_second_ctrl_c_stops_at_once(tmp_path, run, undisturbed):
    pid = run.start(tmp_path, seconds=0, pause=0, sleep_at=20)
    wait_for_step(tmp_path, 19)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert run.wait(pid) == 130
    assert time.monotonic() - start < 100  # the step takes 300 s
    assert latest(tmp_path / "checkpoints")[1]["global_step"] == 20
    assert run.run(tmp_path, resume=True, pause=0) == 0
    assert result(tmp_path)["digest"] == undisturbed


def test_interrupts_are_reentrant_and_restore_the_handler():
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


def lines(folder: Path, *words: str) -> list[str]:
    return [line for line in log(folder).splitlines() if all(word in line for word in words)]


def test_a_step_with_a_nan_loss_is_skipped(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0, nan=[7, 8, 30]) == 0
    assert result(tmp_path)["status"] == "finished" and result(tmp_path)["digest"] != undisturbed
    assert lines(tmp_path, "step 7", "'reconstruction'")
    weights = latest(tmp_path / "checkpoints")[1]["state_dict"]
    assert all(torch.isfinite(value).all() for value in weights.values())
    (stopped := tmp_path / "stopped").mkdir()
    assert run.run(stopped, pause=0, seconds=0, nan=list(range(20, STEPS))) == 2
    assert len(lines(stopped, "step 30", "'reconstruction'", "10")) == 1
    assert latest(stopped / "checkpoints")[1]["global_step"] == 20


def test_nan_weights_in_the_last_steps_fail_the_run(tmp_path, run, undisturbed):
    assert run.run(tmp_path, pause=0, seconds=0, spoil=STEPS - 3) == 2
    assert result(tmp_path)["status"] == "failed"
    assert lines(tmp_path, f"step {STEPS}", "net.0.weight")
    assert run.run(tmp_path, pause=0, resume=True) == 0
    assert result(tmp_path)["digest"] == undisturbed


def test_first_nonfinite_returns_the_name():
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("bound", torch.tensor(float("inf")))
    assert first_nonfinite(module) is None
    module.running_mean[1] = float("nan")
    assert first_nonfinite(module) == "running_mean"
    module.weight.data[0] = float("inf")
    assert first_nonfinite(module) == "weight"


def test_resume_refuses_another_config_network_or_fewer_steps(tmp_path, run):
    assert run.run(tmp_path, pause=0, max_steps=10) == 0
    neutral = CONFIG_YAML.replace("max_steps: 60", "max_steps: 99")
    assert run.run(tmp_path, pause=0, max_steps=15, resume=True, config_yaml=neutral) == 0
    other = CONFIG_YAML.replace("0.01", "0.5").replace("seed: 3", "seed: 4")
    for options, words in (
        ({"config_yaml": other}, ["learning_rate: 0.01 -> 0.5", "seed: 3 -> 4"]),
        ({"max_steps": 6}, [": trainer.max_steps: ", " 15 ", "'6'"]),
        ({"width": 13}, ["'net.0.weight'", "(12, 6)", "(13, 6)"]),
        ({"resume": False}, [str(tmp_path)]),
    ):
        assert run.run(tmp_path, **{"pause": 0, "resume": True} | options) == 2
        assert lines(tmp_path, "ConfigError", *words)


def test_wandb_id_belongs_to_the_run_folder(monkeypatch, tmp_path):
    finished = list[bool]()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object(), finish=lambda: finished.append(True)))
    monkeypatch.setattr(loop, "WandbLogger", lambda **options: options)
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "run"]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    first, other, resumed = (loop.wandb_logger(LoggerConfig(name="wandb"), folder)["id"] for folder in folders)
    assert first == resumed != other and len(finished) == 3


@pytest.mark.parametrize("name", ["train-mvadapter-toybox", "train-own-prior"])
def test_trainings_take_a_logger(name: str) -> None:
    assert config.load(name, ["logger=wandb"]).logger == LoggerConfig(name="wandb")
    assert differences({"logger": {"name": "csv"}}, {"logger": {"name": "wandb"}}) == []


def test_check_weights_compares_hashes():
    checkpoint = {"weights": {"start": "ab", "prior.adapter": "12"}}
    check_weights(checkpoint, {})
    check_weights(checkpoint, {"start": "ab", "prior.adapter": "12"})
    for key, before, after in (("start", "ab", "cd"), ("prior.adapter", "12", "34")):
        with refused(key, f"{before}...", f"{after}..."):
            check_weights(checkpoint, checkpoint["weights"] | {key: after})
    check_weights({}, {"start": "ab"})


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC version: 12.2.0\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        (None, "unknown"),
    ],
)
def test_numerics_on_cuda_name_gpu_and_versions(text: str | None, driver: str, tmp_path: Path, monkeypatch):
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 0)), world_size=1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H200")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    file = tmp_path / "version"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr("threedgen.train.checkpoint.DRIVER", file)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.9.0"))
    monkeypatch.setattr("threedgen.train.checkpoint.installed", lambda module: module == "triton")
    found = numerics(trainer)
    expected = {"device": "cuda", "GPU": "H200", "CUDA": "13.0", "driver": driver, "triton": "3.9.0"}
    assert found | expected == found
    monkeypatch.setattr("threedgen.train.checkpoint.installed", lambda module: False)
    assert numerics(trainer)["triton"] == "none"


def test_auto_strategy_allows_unused_parameters_on_several_devices_and_one_interactively(monkeypatch) -> None:
    for devices, gpus, several in (("auto", 1, False), ("auto", 4, True), (1, 4, False)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert (_strategy(TrainerConfig(devices=devices)) == "ddp_find_unused_parameters_true") == several
        assert _strategy(TrainerConfig(devices=devices, accelerator="cpu")) == "auto"
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    TrainerConfig().check()
    assert _strategy(TrainerConfig()) == "auto"
    with refused("devices"):
        TrainerConfig(devices=2).check()


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_fit_trains_parameters_without_gradient_on_two_devices(tmp_path, device):
    if device == "gpu" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    first, second = two_processes(tmp_path, "toy", device)
    assert first == second and first[:4] == ["finished", "2", "6", "True"]


def two_processes(*words: Any) -> list[list[str]]:
    """Run two_devices.py; return the words that each process prints."""
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "tests" / "support" / "two_devices.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", ["null", "100"])
def test_shaded_object_has_equal_weights_on_two_devices(tmp_path, chunk):
    """Each process samples its own shading, so some parameters have no gradient on one of them."""
    first, second = two_processes(tmp_path, "generate", chunk)
    assert first[:5] == second[:5] and first[:4] == ["finished", "2", "12", "True"]
    modes = list(zip(first[5].split(","), second[5].split(","), strict=True))
    assert {mode for pair in modes for mode in pair} == {"albedo", "diffuse", "textureless"}
    assert ("textureless", "textureless") in modes and any(one != other for one, other in modes)


def test_auto_accelerator_is_the_cpu_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loop.pl, "Trainer", lambda **options: options["accelerator"])  # on a Mac, auto would be MPS
    config: Any = SimpleNamespace(trainer=TrainerConfig())
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert loop._trainer(config, tmp_path, AtomicCheckpointIO(), 1, []) == ("auto" if cuda else "cpu")


@pytest.mark.parametrize(
    ("option", "accelerator", "gpu", "expected"),
    [
        ("warn", "auto", True, False), ("warn", "cpu", True, "warn"), ("warn", "auto", False, "warn"),
        (True, "gpu", True, True), (False, "cpu", False, False),
    ],
)  # fmt: skip
def test_deterministic_is_off_on_a_gpu_unless_set(monkeypatch, option: Any, accelerator: Any, gpu, expected):
    options = TrainerConfig(accelerator="auto", deterministic=option).model_copy(update={"accelerator": accelerator})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert deterministic(options) == expected


def toy_config(**trainer: Any) -> Any:
    options = TrainerConfig(accelerator="cpu", **trainer)
    return SimpleNamespace(trainer=options, checkpoint=CheckpointConfig(), seed=0, threads=1)


def flags() -> tuple[bool, bool, bool]:
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    return torch.are_deterministic_algorithms_enabled(), warn, torch.backends.cudnn.benchmark


FLAGS = {False: (False, False, True), "warn": (True, True, False), True: (True, False, False)}
"""Option `deterministic`, and the flags in a step: deterministic algorithms, with warnings only, cuDNN's benchmark."""


@pytest.mark.parametrize(("setting", "expected"), FLAGS.items())
@pytest.mark.parametrize("benchmark", [False, True])
def test_fit_sets_the_flags_of_the_option_and_restores_them(monkeypatch, tmp_path, setting: Any, expected, benchmark):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    found = []

    class Recorded(Toy):
        def training_step(self, batch: int, index: int) -> torch.Tensor:
            found.append(flags())
            return super().training_step(batch, index)

    fit(Recorded(), toy_config(max_steps=1, deterministic=setting), tmp_path, quiet=True)
    assert found == [expected] and flags() == (False, False, benchmark)


def test_logged_loss_does_not_depend_on_accumulation(monkeypatch, tmp_path):
    shown = []

    class Constant(Toy):
        def training_step(self, batch: int, index: int) -> torch.Tensor:
            return 0 * super().training_step(batch, index) + 6

    def details(*values: Any) -> list[str]:
        shown.append(float(values[3]["loss"]))
        return []

    monkeypatch.setattr("threedgen.train.progress.details", details)
    fit(Constant(), toy_config(max_steps=2, accumulate_grad_batches=3, log_every_n_steps=1), tmp_path)
    logged = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [6, 6] and set(shown) == {6}


def test_isolated_eval_restores_modes_and_generators():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with isolated_eval(module):
        torch.rand(100)
        assert not module.training and not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in module.modules()] == [True, True, False] and torch.is_grad_enabled()


def test_set_threads_holds_after_numba_starts_its_threads() -> None:
    """Also with another number in the environment; exact resume needs a fixed number."""
    code = """
import numba, numpy, torch
from threedgen.run.threads import set_threads

@numba.njit(parallel=True)
def total(values):
    result = 0.0
    for k in numba.prange(len(values)):
        result += values[k]
    return result

set_threads(1)
counts = [torch.get_num_threads(), total(numpy.ones(100)) and torch.get_num_threads(), numba.get_num_threads()]
assert counts == [1, 1, 1], counts
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)


@pytest.mark.parametrize("threads, devices, expected", [(None, "auto", None), (3, 2, 3), (None, 2, 4), (None, 100, 1)])
def test_threads_of_divides_the_cores_by_the_devices(monkeypatch, threads, devices: Any, expected: int | None):
    monkeypatch.setattr("threedgen.run.threads.cores", lambda: 8)
    config = SimpleNamespace(threads=threads, trainer=SimpleNamespace(devices=devices))
    assert threads_of(config) == expected
    assert threads_of(SimpleNamespace(threads=threads)) == threads


def start_ranks(folder: Path, **options: object) -> list[int]:
    """Start both processes, as a launcher does, and return their ids."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [address | {"NODE_RANK": "0", "LOCAL_RANK": rank} for rank in "01"]
    return [toy_run.server().start(folder, devices=2, max_steps=20, environment=rank, **options) for rank in ranks]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole")
    assert [toy_run.server().wait(pid) for pid in start_ranks(folder)] == [0, 0], log(folder)
    return result(folder)


SLURM = {"SLURM_JOB_NAME": "toy", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
SLURM |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_NODEID": "0"}
SLURM |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("devices", "launched"),
    [
        (1, TORCHRUN | {"WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}),
        (2, TORCHRUN | {"WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "1"}),
        (2, SLURM),
    ],
)
def test_several_machines_are_refused(tmp_path, run, devices: int, launched: dict[str, str]) -> None:
    assert run.run(tmp_path, devices=devices, environment=launched) == ConfigError.exit_code, log(tmp_path)
    assert lines(tmp_path, "ConfigError", "trainer.devices: ")


@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGSTOP)])
def test_loss_of_a_process_ends_the_training_which_continues(tmp_path, run, whole, victim, number) -> None:
    pids = start_ranks(tmp_path, check_seconds=0.02, pause=0.05)
    when((tmp_path / "checkpoints" / "last.ckpt").exists)
    os.kill(pids[victim], number)
    assert run.wait(pids[1 - victim]) == WorkerLost.exit_code, log(tmp_path)
    assert run.wait(pids[victim]) == -signal.SIGKILL and str(pids[victim]) in log(tmp_path)
    assert [run.wait(pid) for pid in start_ranks(tmp_path, resume=True)] == [0, 0], log(tmp_path)
    assert result(tmp_path) == whole


def test_process_without_memory_ends_the_training_which_continues(tmp_path, run, whole) -> None:
    pids = start_ranks(tmp_path, check_seconds=0.02, pause=0.05, starve_at=12)
    started = time.monotonic()
    assert run.wait(pids[1]) == OutOfMemory.exit_code, log(tmp_path)
    assert run.wait(pids[0]) == WorkerLost.exit_code, log(tmp_path)
    messages = [line for line in lines(tmp_path) if "OutOfMemory" in line or str(pids[1]) in line]
    assert time.monotonic() - started < 60 and len(messages) == 2 and "3 GB" in messages[0]
    assert "Traceback" not in log(tmp_path)
    assert [run.wait(pid) for pid in start_ranks(tmp_path, resume=True)] == [0, 0], log(tmp_path)
    assert result(tmp_path) == whole
