"""Back ends whose kernels can run on a CPU: Triton's by its interpreter, where the package is installed and there is
no GPU (there tests/representations/test_backends.py compares the compiled kernels)."""

import importlib.util
import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # for the whole process, read when the kernels are imported

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
interprets_triton = pytest.mark.skipif(HAS_GPU or not HAS_TRITON, reason="no interpreter of triton in this process")
BACKENDS = ["torch", "numba", pytest.param("triton", marks=interprets_triton)]  # for parametrize
KERNELS = BACKENDS[1:]  # those that are compared with the torch twin
