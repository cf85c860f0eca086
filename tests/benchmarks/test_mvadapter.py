"""Benchmark of MV-Adapter's training at a tiny size; speed itself is not tested."""

from pathlib import Path

import pytest

from benchmarks import mvadapter
from tests.support.tiny_mvadapter import tiny_model


def test_adapter_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save(tmp_path / "base")
    monkeypatch.setattr(mvadapter, "BASE", str(tmp_path / "base"))

    original = mvadapter.measure

    def measure(case: str, steps: int, device: str) -> mvadapter.Measured:
        result = original(case, steps, device, 1)
        return result._replace(peak=max(1, result.peak))  # this process may have used more memory before

    monkeypatch.setattr(mvadapter, "run_in_process", measure)
    table = mvadapter.table(2, "cpu")
    full, text, image = table.rows
    assert full["ratio"] == full["peak ratio"] == 1 and full["trainable, M"] > 0
    assert 0 < text["trainable, M"] < image["trainable, M"]
    assert text["median, s"] > 0 and "2 steps" in table.text()
