"""Long run: constant memory and number of open files."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.fork_server import Server, log
from tests.support.task_server import TINY, prior_folder, write_config
from threedgen import cli

STEPS, EARLY = 1200, 400
GROWTH = 24.0  # maximum memory growth in MiB after step EARLY; the graph and tensors of one step take about 5 MiB


def run(folder: str, words: list[str]) -> int:
    """Run a command that notes memory in MiB, open files and Python objects at every 100th step."""
    from threedgen.systems.generate.system import GenerateSystem

    records, original = {}, GenerateSystem.training_step

    def step(self: Any, batch: int, index: int) -> Any:
        if batch % 100 == 0:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            records[batch] = memory, len(os.listdir("/proc/self/fd")), len(gc.get_objects())
        return original(self, batch, index)

    GenerateSystem.training_step = step  # type: ignore[method-assign]
    code = cli.main(words)
    Path(folder, "records.json").write_text(json.dumps(records))
    return code


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_over_a_run(tmp_path: Path) -> None:
    values = {
        "prior": {"weights": str(prior_folder()), "dtype": "fp32"}, "size": 8, "scenes_per_step": 1,
        "preview": {"enabled": False}, "warm_start": {"share": 0}, "checkpoint": {"seconds": 5},
        "trainer": TINY["trainer"] | {"max_steps": STEPS, "val_check_interval": 200},
    }  # fmt: skip
    config = write_config(tmp_path / "soak.yaml", TINY, **values)
    words = ["--config", str(config), "out=run", "--quiet"]
    assert Server("tests.fuzz.test_soak:run").run(tmp_path, words=words) == 0, log(tmp_path)[-2000:]
    records = json.loads((tmp_path / "records.json").read_text())
    late = [figures for step, figures in records.items() if int(step) >= EARLY]
    assert len(late) == (STEPS - EARLY) // 100
    memory, files, objects = zip(*late, strict=True)
    assert max(memory) - memory[0] < GROWTH, memory
    assert len(set(files)) <= 2 and max(files) - files[0] <= 1, files
    assert max(objects) - objects[0] < 2000, objects
