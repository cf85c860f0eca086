from pathlib import Path

import pytest
import torch

from threedgen.train.status import Status, finished
from threedgen.train.task import device


def test_status_has_the_exit_codes_of_signals() -> None:
    assert [status.exit_code for status in Status] == [0, 130, 143, 2]


@pytest.mark.parametrize(
    "summary",
    [
        "{", '{"status": "finished"}', '{"status": "failed", "steps": 5}', '{"status": "finished", "steps": 4}',
        '{"status": "finished", "steps": 5, "files": ["gone"]}',
        '{"status": "finished", "steps": 5, "files": 3}',
    ],
)  # fmt: skip
def test_finished_requires_a_complete_summary(tmp_path: Path, summary: str) -> None:
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text(summary)
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text('{"status": "finished", "steps": 5, "files": ["summary.json"]}')
    assert finished(tmp_path, 5)


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
