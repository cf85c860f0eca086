"""Broken files, hundreds of them: every reader says in a sentence what is wrong, or what it reads is sound.

More of them, or others:  FUZZ_TIMES=20 FUZZ_SEED=7 pytest tests/fuzz -m slow
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.judge import BAD, GOOD
from tests.fuzz.readers import READERS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
TIMES, SEED = float(os.environ.get("FUZZ_TIMES", 1)), int(os.environ.get("FUZZ_SEED", 0))


@pytest.fixture(scope="module")
def court() -> Iterator[subprocess.Popen]:
    """The process that forks."""
    variables = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "HF_HUB_OFFLINE")}
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("judge.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables, "PYTHONPATH": str(root)},
    )
    yield process
    process.kill()


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Verdicts by reader; shown at the end, and kept in fuzz.txt with every damage that was not answered well."""
    verdicts: dict[str, Any] = {}
    yield verdicts
    columns = (*GOOD, *BAD)
    lines = [f"{'reader':<18}" + "".join(f"{column:>13}" for column in columns)]
    lines += [
        f"{name:<18}" + "".join(f"{v['counts'][column]:>13}" for column in columns) for name, v in verdicts.items()
    ]
    path = tmp_path_factory.getbasetemp() / "fuzz.txt"
    details = [f"{name}: {line}" for name, verdict in verdicts.items() for line in verdict["bad"]]
    path.write_text("\n".join([*lines, "", *details]) + "\n", encoding="utf-8")
    reporter: Any = request.config.pluginmanager.getplugin("terminalreporter")
    for line in ("", *lines, str(path)):
        reporter.write_line(line)


@pytest.mark.parametrize("name", READERS)
def test_broken_files_are_refused_in_a_sentence(name: str, court: subprocess.Popen, table: dict[str, Any]) -> None:
    reader = READERS[name]
    assert court.stdin is not None and court.stdout is not None
    court.stdin.write(json.dumps({"reader": name, "cases": int(reader.cases * TIMES), "seed": SEED}) + "\n")
    court.stdin.flush()
    table[name] = verdict = json.loads(court.stdout.readline())
    assert not any(line.startswith("0 nothing") for line in verdict["bad"]), verdict["bad"][0]
    assert not verdict["bad"], "\n".join(verdict["bad"])
