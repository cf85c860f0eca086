"""Device of a task."""

import pytest
import torch

from threedgen.train.task import device


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
