"""Marks that tests of several folders have, and the search for a GPU without torch."""

import os
from pathlib import Path

import pytest

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
GPU_FILES = ("nvidia[0-9]*", "dxg")  # device files of NVIDIA GPUs on Linux, and in the Linux of Windows


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Return whether the folder `devices` has the device file of a GPU; a container may have only nvidia3."""
    return any(True for pattern in GPU_FILES for _ in devices.glob(pattern))
