"""A probe for the evaluations."""

from pathlib import Path

import pytest

from tests.support.tiny_classifiers import tiny_probe


@pytest.fixture
def probe_file(tmp_path: Path) -> str:
    path = tmp_path / "weights" / "toybox-probe.safetensors"
    tiny_probe().save(path)
    return str(path)
