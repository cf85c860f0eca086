"""Readers on 1,000 damaged files, within 30 s and 2 GiB each: each raises a clean error or returns finite values.

10,000 other cases:  FUZZ_TIMES=10 FUZZ_SEED=7 pytest tests/fuzz/test_readers.py -m slow
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
TIMES, SEED = float(os.environ.get("FUZZ_TIMES", 1)), int(os.environ.get("FUZZ_SEED", 0))


@pytest.fixture(scope="module")
def fuzzer() -> Iterator[subprocess.Popen]:
    """Process of judge.py."""
    variables = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "HF_HUB_OFFLINE")}
    root = Path(__file__).resolve().parents[2]
    command, pipe = [sys.executable, str(Path(__file__).with_name("judge.py"))], subprocess.PIPE
    environment = {**os.environ, **variables, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    yield process
    process.kill()


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_cleanly(name: str, fuzzer: subprocess.Popen, capsys) -> None:
    reader = READERS[name]
    assert fuzzer.stdin is not None and fuzzer.stdout is not None
    fuzzer.stdin.write(json.dumps({"reader": name, "cases": int(reader.cases * TIMES), "seed": SEED}) + "\n")
    fuzzer.stdin.flush()
    result = json.loads(fuzzer.stdout.readline())
    with capsys.disabled():
        print(f"\n{name}: {', '.join(f'{count} {kind}' for kind, count in result['counts'].items() if count)}")
    assert not any(line.startswith("0 nothing") for line in result["bad"]), result["bad"][0]
    assert not result["bad"], "\n".join(result["bad"])
