import os
import subprocess
import sys
from pathlib import Path

import pytest

import threedgen
from threedgen.run.metrics import read_summary

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (threedgen.folder("weights") / "toybox-prior").is_dir(), reason="needs the embedded prior")
def test_quick_config_with_the_embedded_prior(tmp_path: Path) -> None:
    """A few steps write all files without warnings and within the memory limit."""
    words = ["--config", "quick-toybox", "prompt=a blue dog wearing a red hat", "out=run", "trainer.max_steps=6"]
    words += ["preview.steps=4", "result.turntable.n_view=4"]
    words.append("export.enabled=false")  # six steps give semi-transparent density, whose export warns
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "CI")}
    command = [sys.executable, str(ROOT / "launch.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | threads, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and summary["notes"] == [] and summary["peak_memory_mib"] < 3000
    assert all((tmp_path / "run" / name).exists() for name in ("preview.png", "turntable.mp4", "views.png"))
