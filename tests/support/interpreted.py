"""Back ends whose kernels can run on a CPU: Triton's by its interpreter, where the package is installed."""

from __future__ import annotations

import importlib.util
import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
BACKENDS = ["torch", "numba", pytest.param("triton", marks=needs_triton)]
"""For parametrize."""
KERNELS = BACKENDS[1:]
"""Those that are compared with the torch twin."""
