"""Long run: constant memory and number of open files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.task_server import TINY, prior_folder, write_config

STEPS, EARLY = 2000, 600
GROWTH = 24.0  # maximum memory growth in MiB after step EARLY; the graph and tensors of one step take about 5 MiB

SCRIPT = """
import gc, json, os, sys
from pathlib import Path
from threedgen import cli
from threedgen.systems.generate.system import GenerateSystem

records, original = {}, GenerateSystem.training_step

def step(self, batch, index):
    if batch % 100 == 0:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        records[batch] = [memory, len(os.listdir("/proc/self/fd")), len(gc.get_objects())]
    return original(self, batch, index)

GenerateSystem.training_step = step
code = cli.main(sys.argv[1:])
Path("records.json").write_text(json.dumps(records))
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_over_a_run(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    values = {
        "prior": {"weights": str(prior_folder()), "dtype": "fp32"}, "size": 8, "scenes_per_step": 1,
        "preview": {"enabled": False}, "warm_start": {"share": 0}, "checkpoint": {"seconds": 5},
        "trainer": TINY["trainer"] | {"max_steps": STEPS, "val_check_interval": 200},
    }  # fmt: skip
    config = write_config(tmp_path / "soak.yaml", TINY, **values)
    variables = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
    args = [sys.executable, "-c", SCRIPT, "--config", str(config), "out=run", "--quiet"]
    environment = {**os.environ, **variables, "PYTHONPATH": str(root)}
    done = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads((tmp_path / "records.json").read_text())
    late = [figures for step, figures in records.items() if int(step) >= EARLY]
    assert len(late) == (STEPS - EARLY) // 100
    memory, files, objects = zip(*late, strict=True)
    assert max(memory) - memory[0] < GROWTH, memory
    assert len(set(files)) <= 2 and max(files) - files[0] <= 1, files
    assert max(objects) - objects[0] < 2000, objects
