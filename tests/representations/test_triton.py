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
CAPABILITIES = ("80", "90", "120")


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
def test_every_kernel_compiles_for_every_gpu_without_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From A100 (8.0) to the RTX 50 series (12.0), which has the least shared memory per block: 99 KB."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    lines = [line.split() for line in triton_check("compile", *CAPABILITIES).splitlines()]
    assert [line[0] for line in lines] == [capability for capability in CAPABILITIES for _ in range(8)]
    for capability, kernel, _, spilled, shared in lines:
        assert spilled == "0" and int(shared) <= 99 << 10, (capability, kernel)


@needs_triton
@pytest.mark.gpu
def test_triton_on_a_gpu_equals_torch_in_float64() -> None:
    assert len(triton_check("compare").splitlines()) == 13
