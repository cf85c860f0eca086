import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import threedgen
from tests.support.task_server import TINY, assert_same, prior_folder, saved_at, weights, write_config
from tests.support.waiting import when
from threedgen.run.metrics import read_summary

ROOT = Path(__file__).parents[2]
EMBEDDED = threedgen.folder("weights") / "toybox-prior"

embedded = pytest.mark.skipif(not EMBEDDED.is_dir(), reason="needs the embedded prior")


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "CI")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *args],
        cwd=folder,
        env=os.environ | threads,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def launch(folder: Path, *args: str) -> str:
    process = start(folder, *args)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_killed_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    prior = {"weights": str(prior_folder()), "dtype": "fp32"}
    write_config(tmp_path / "tiny.yaml", TINY, prior=prior, trainer=TINY["trainer"] | {"max_steps": 60})
    whole = launch(tmp_path, "--config", "tiny.yaml", "prompt=a blue dog", "out=whole")
    assert whole.splitlines()[-1] == "whole"
    process = start(tmp_path, "--config", "tiny.yaml", "prompt=a blue dog", "out=killed")
    when(lambda: saved_at(tmp_path / "killed") or process.poll() is not None, seconds=600)
    time.sleep(random.Random(3).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert "killed" in launch(tmp_path, "--resume", "killed")
    assert_same(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    for name in ("views.png", "mesh.glb"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@embedded
@pytest.mark.slow
def test_quick_config_with_the_embedded_prior(tmp_path: Path) -> None:
    """A few steps write all files without warnings and within the memory limit."""
    few = ["trainer.max_steps=6", "preview.steps=4", "result.turntable.n_view=4"]
    few.append("export.enabled=false")  # six steps give semi-transparent density, whose export warns
    launch(tmp_path, "--config", "quick-toybox", "prompt=a blue dog wearing a red hat", "out=run", *few)
    summary = read_summary(tmp_path / "run")
    assert summary["status"] == "finished" and summary["notes"] == [] and summary["peak_memory_mib"] < 3000
    assert all((tmp_path / "run" / name).exists() for name in ("preview.png", "turntable.mp4", "views.png"))


@embedded
@pytest.mark.slow
def test_python_api(tmp_path: Path) -> None:
    code = (
        "import threedgen\n"
        'run = threedgen.generate(prompt="a red car", config="quick-toybox", out="car", '
        'preview={"steps": 1}, trainer={"max_steps": 2}, '
        'export={"enabled": False})\n'
        'print(run.folder, run.status, run.file("views.png").name)\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "car finished views.png", done.stderr
