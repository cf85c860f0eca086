import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from tests.support.errors import refused
from tests.support.task_server import TINY, tiny_generate
from threedgen import config
from threedgen.config.errors import OutOfMemory
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run import folder as runs
from threedgen.run.folder import CHECKPOINTS
from threedgen.systems.generate import task as generate_run
from threedgen.train.checkpoint_file import latest
from threedgen.train.status import Status


def start(folder: Path) -> Status:
    short = {"trainer": TINY["trainer"] | {"max_steps": 6}, "warm_start": {"share": 0.2}, "preview": {"steps": 1}}
    path = tiny_generate(folder, **short)
    made, _ = runs.open_run(config.load(path, [f"out={folder / 'run'}"]), "tiny")
    return generate_run.run_status(made, quiet=True)


def table(folder: Path) -> torch.Tensor:
    found = latest(folder / "run" / CHECKPOINTS)
    assert found is not None and found[1]["global_step"] == 6
    return found[1]["state_dict"]["field.encoding.table"]


def failing(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    denoise, count = MVDream.denoise, [0]

    def limited(self: MVDream, *args: Any, **kwargs: Any) -> Any:
        count[0] += self.text_encoder is None  # distilling
        if count[0] in calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return denoise(self, *args, **kwargs)

    monkeypatch.setattr(MVDream, "denoise", limited)


def test_step_is_repeated_in_smaller_chunks(tmp_path: Path, monkeypatch, caplog) -> None:
    assert start(tmp_path / "plenty") is Status.FINISHED
    failing(monkeypatch, 3)
    with caplog.at_level(logging.WARNING, logger="threedgen"):
        assert start(tmp_path / "scarce") is Status.FINISHED
    messages = [record.getMessage() for record in caplog.records if "ran out of memory" in record.getMessage()]
    assert len(messages) == 1 and messages[0].startswith("step 3 on cpu ran out of memory: from now on ")
    assert "march.chunk" in messages[0]
    plenty, scarce = table(tmp_path / "plenty"), table(tmp_path / "scarce")
    assert float((plenty - scarce).norm() / plenty.norm()) < 1e-2  # Adam enlarges the last bits of small gradients


def test_second_failure_and_too_large_prior_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, *range(2, 99))
    with refused(None, "step 2 on cpu", "march.chunk", kind=OutOfMemory):
        start(tmp_path)
    full = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr("threedgen.train.task.Task.load_prior", full)
    with refused(None, "the prior", kind=OutOfMemory):
        start(tmp_path / "large")
