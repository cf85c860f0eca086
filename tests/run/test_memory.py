"""Memory that is free, and memory that a graph would hold."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from threedgen.run import memory
from threedgen.run.memory import free_bytes, graph_bytes

CPU = torch.device("cpu")


def test_every_storage_of_a_graph_counts_once() -> None:
    x = torch.rand(1000, requires_grad=True)
    assert graph_bytes(lambda: x + 1) == 0
    assert graph_bytes(lambda: x * x) == 4000
    assert graph_bytes(lambda: (x * x, x.exp())) == 8000
    assert graph_bytes(lambda: [x.exp() for _ in range(3)]) == 12000
    assert graph_bytes(lambda: (x * x).exp().detach()) == 0, "a graph that is gone keeps nothing"
    with torch.no_grad():
        assert graph_bytes(lambda: x.exp()) == 0


def machine(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_free_memory_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, meminfo="MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert free_bytes(CPU) == 5000 * 1024
    (tmp_path / "meminfo").unlink()
    assert free_bytes(CPU) > 1 << 20, "half of what is built in"


@pytest.mark.parametrize(
    ("limit", "stat", "free"),
    [("1000000", "anon 5\ninactive_file 100000\n", 400_000), ("max", "", 5000 * 1024), ("600000", "", 0)],
)
def test_a_container_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, stat: str, free: int
) -> None:
    machine(tmp_path, meminfo="MemAvailable:    5000 kB\n", memory_max=limit, memory_stat=stat, memory_current="700000")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == free


@pytest.mark.gpu
def test_free_memory_of_a_gpu() -> None:
    device = torch.device("cuda")
    before = free_bytes(device)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert 0 < free_bytes(device) <= before - (1 << 28) + (1 << 24)
    del held
    assert free_bytes(device) >= before - (1 << 24), "what torch keeps for reuse is free"


FAULTS = """
import resource, torch
from threedgen.run.memory import keep_freed_memory
def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(25_000_000)  # 100 MB
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()
before = touched()
keep_freed_memory()
touched()
print(before, touched())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is told")
def test_tensors_are_taken_from_what_was_freed() -> None:
    """Bytes in pages that are touched for the first time, in a process of its own: the setting stays."""
    found = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, found.stdout.split())
    assert after < min(before, 20e6)
