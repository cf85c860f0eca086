"""Status of a run from its folder."""

from pathlib import Path

import pytest

from threedgen.train.status import Status, finished


def test_status_has_the_exit_codes_of_signals() -> None:
    assert [status.exit_code for status in Status] == [0, 130, 143, 2]


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
def test_finished_requires_a_complete_summary(tmp_path: Path, summary: str) -> None:
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text(summary)
    assert not finished(tmp_path, 5)
    (tmp_path / "summary.json").write_text('{"status": "finished", "steps": 5, "files": ["summary.json"]}')
    assert finished(tmp_path, 5)
