"""Triton kernels compiled for a GPU. Their values are tested with the interpreter, with the other back ends."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.interpreted import needs_triton

ROOT = Path(__file__).parents[2]


def triton_check(*words: str) -> str:
    """Return the output of triton_check.py, run without the interpreter."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(ROOT / "tests" / "support" / "triton_check.py"), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_gpu_runs_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    runpy.run_path(str(ROOT / "tests" / "support" / "interpreted.py"))
    assert "TRITON_INTERPRET" not in os.environ


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_triton_compiles_every_kernel_without_a_gpu(capability: str) -> None:
    lines = [line.split() for line in triton_check("compile", capability).splitlines()]
    assert len(lines) == 11 and all(int(size) > 1000 for _, size in lines)


@needs_triton
@pytest.mark.gpu
def test_triton_on_a_gpu_equals_torch() -> None:
    assert len(triton_check("compare").splitlines()) == 14
