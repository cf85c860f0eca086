from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.errors import refused
from threedgen.config import registry
from threedgen.config.errors import ConfigError
from threedgen.config.sections import TrainerConfig
from threedgen.run.interrupts import Stopped
from threedgen.train import task
from threedgen.train.task import Task, device, run_task


def test_device_follows_accelerator_and_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [device(name) for name in ("auto", "gpu", "cuda", "cpu")] == ["cuda:1"] * 3 + ["cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.setenv("SLURM_LOCALID", "2")
    assert device("auto") == "cuda:2"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device("auto") == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [device(name) for name in ("auto", "gpu", "mps")] == ["cpu", "cpu", "mps"]
    with pytest.raises(ConfigError):
        TrainerConfig(accelerator="gpu").check()
    TrainerConfig(accelerator="mps").check()


@pytest.mark.parametrize(
    ("place", "trainer", "expected"),
    # without a trainer: a task that only samples
    [("cuda:0", None, True), ("cuda:0", "warn", True), ("cuda:0", True, False), ("cpu", None, False)],
)
def test_cudnn_chooses_the_fastest_algorithms_on_cuda(place, trainer, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(task, "device", lambda accelerator: place)
    monkeypatch.setattr(registry, "build", lambda *args: args[-1])
    prior: Any = SimpleNamespace(compact=lambda: None, identify=dict)
    config = SimpleNamespace(prior=prior, out=tmp_path)
    if trainer is not None:
        config.trainer = SimpleNamespace(accelerator="auto", deterministic=trainer)
    assert Task(config).load_prior() == place and torch.backends.cudnn.benchmark is expected


def test_finish_without_results_is_no_success(tmp_path: Path) -> None:
    config = SimpleNamespace(out=tmp_path, threads=1, checkpoint=SimpleNamespace(finish=True))

    def stopped_early(task: Task) -> None:
        raise Stopped(130)

    assert run_task(stopped_early, config, quiet=True) == 130
    system: Any = None
    with refused("checkpoint.finish"):
        Task(config).train(system, partial=False)
