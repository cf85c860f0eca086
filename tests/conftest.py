"""For all tests: repeatable property tests, no wait for the disk, a GPU or a browser only where there is one."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import disk
from tests.support.browser import chromium, launched  # noqa: F401  fixtures

settings.register_profile("ci", deadline=None, derandomize=True, database=None)  # busy machines are slow
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("ci")


GPU_FILES = ("/dev/nvidia0", "/dev/dxg")
"""Device files of an NVIDIA GPU on Linux, and in the Linux of Windows."""


def pytest_configure() -> None:
    disk.never_wait()
    if not any(Path(file).exists() for file in GPU_FILES):
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, by any library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
