"""The benchmark of MV-Adapter's training at a tiny size; how fast anything is, is not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mvadapter
from tests.support.tiny_mvadapter import tiny_model


def test_an_adapter_has_fewer_parameters_to_learn_than_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save(tmp_path / "base")
    monkeypatch.setattr(mvadapter, "BASE", str(tmp_path / "base"))

    def here(case: str, steps: int, device: str) -> mvadapter.Measured:
        found = mvadapter.measure(case, steps, device, 1)
        return found._replace(peak=max(1, found.peak))  # this process may have held more before

    monkeypatch.setattr(mvadapter, "alone", here)
    made = mvadapter.table(2, "cpu")
    full, text, picture = made.rows
    assert full["ratio"] == full["peak ratio"] == 1 and full["trainable, M"] > 0
    assert 0 < text["trainable, M"] < picture["trainable, M"]
    assert text["median, s"] > 0 and "2 steps after a first one" in made.text()
