"""Free memory, and memory of autograd graphs."""

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from threedgen.run import memory
from threedgen.run.memory import free_bytes, graph_bytes

CPU = torch.device("cpu")


def test_graph_bytes_counts_each_storage_once() -> None:
    x = torch.rand(1000, requires_grad=True)
    assert graph_bytes(lambda: x + 1) == 0
    assert graph_bytes(lambda: x * x) == 4000
    assert graph_bytes(lambda: (x * x, x.exp())) == 8000
    assert graph_bytes(lambda: [x.exp() for _ in range(3)]) == 12000
    assert graph_bytes(lambda: (x * x).exp().detach()) == 0, "the graph was freed"
    with torch.no_grad():
        assert graph_bytes(lambda: x.exp()) == 0


@pytest.mark.parametrize(
    ("limit", "stat", "free"),
    [
        ("1000000", "anon 5\ninactive_file 100000\n", 400_000),
        ("max", "", 5_000_000),
        ("600000", "", 0),
        (None, "", 5_000_000),
    ],
)
def test_free_bytes_of_a_machine_and_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, stat: str, free: int
) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=5_000_000))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    if limit is not None:
        for name, text in (("max", limit), ("stat", stat), ("current", "700000")):
            (tmp_path / f"memory.{name}").write_text(text)
    assert free_bytes(CPU) == free


@pytest.mark.gpu
def test_free_bytes_of_a_gpu() -> None:
    device = torch.device("cuda")
    before = free_bytes(device)
    tensor = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    assert 0 < free_bytes(device) <= before - (1 << 28) + (1 << 24)
    del tensor
    assert free_bytes(device) >= before - (1 << 24), "torch's cache counts as free"


FAULTS = """
import resource, torch
from threedgen.run.memory import keep_freed_memory
def fault_bytes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(25_000_000)  # 100 MB
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()
before = fault_bytes()
keep_freed_memory()
fault_bytes()
print(before, fault_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_keep_freed_memory_reuses_pages() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < min(before, 20e6)
