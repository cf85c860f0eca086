"""Readers on 1,000 damaged files, within 30 s and 2 GiB each: each raises a clean error or returns finite values.

10,000 other cases:  FUZZ_TIMES=10 FUZZ_SEED=7 pytest tests/fuzz/test_readers.py -m slow
"""

import json
import os
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS
from tests.support.fork_server import Server, log

pytestmark = pytest.mark.slow
TIMES, SEED = float(os.environ.get("FUZZ_TIMES", 1)), int(os.environ.get("FUZZ_SEED", 0))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_cleanly(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cases = int(READERS[name].cases * TIMES)
    assert Server("tests.fuzz.judge:fuzz").run(tmp_path, name=name, cases=cases, seed=SEED) == 0, log(tmp_path)[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    with capsys.disabled():
        print(f"\n{name}: {', '.join(f'{count} {kind}' for kind, count in result['counts'].items() if count)}")
    assert not result["bad"], "\n".join(result["bad"])
