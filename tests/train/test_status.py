"""How a run ended, as its folder tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from threedgen.train.status import finished


@pytest.mark.parametrize(
    "summary",
    [
        "",
        "[]",
        "{",
        '{"status": "finished"}',
        '{"status": "failed", "steps": 5}',
        '{"status": "finished", "steps": 5, "files": ["gone"]}',
        '{"status": "finished", "steps": 5, "files": 3}',
        '{"status": "finished", "steps": 4}',
    ],
)
def test_only_a_whole_summary_means_finished(tmp_path: Path, summary: str) -> None:
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text(summary)
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text('{"status": "finished", "steps": 5, "files": ["summary.json"]}')
    assert finished(tmp_path, 5)
