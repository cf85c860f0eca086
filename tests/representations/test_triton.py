"""Triton's kernels as a GPU gets them. What they compute is tested by its interpreter, beside the other back ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreted import needs_triton

ROOT = Path(__file__).parents[2]


def check(*words: str) -> str:
    """Output of triton_check.py, run without the interpreter."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(ROOT / "tests" / "support" / "triton_check.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_every_kernel_compiles_to_machine_code(capability: str) -> None:
    """With the compiler that comes with triton, which needs no GPU."""
    lines = [line.split() for line in check("compile", capability).splitlines()]
    assert len(lines) == 11 and all(int(size) > 1000 for _, size in lines)


@needs_triton
@pytest.mark.gpu
def test_a_gpu_computes_what_the_twins_do() -> None:
    assert len(check("compare").splitlines()) == 14
