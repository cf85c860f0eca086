from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from threedgen.run import dtypes, memory, seeding
from threedgen.run.cache import cached_tensor
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


def test_free_bytes_of_a_machine_and_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=5_000_000))
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_bytes(CPU) == 5e6
    for limit, stat, free in (("1000000", "anon 5\ninactive_file 100000\n", 4e5), ("600000", "", 0), ("max", "", 5e6)):
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


def test_cached_tensor_is_computed_again_only_if_it_does_not_fit(tmp_path: Path) -> None:
    path, value = tmp_path / "x.safetensors", torch.rand(2, 3)
    assert torch.equal(cached_tensor(path, "x", (2, None), lambda: value), value)
    assert torch.equal(cached_tensor(path, "x", (2, None), lambda: 1 / 0), value)
    for name, shape in (("x", (3, None)), ("x", (2, 3, None)), ("y", (2, 3))):
        other = torch.zeros(3, 3)
        assert torch.equal(cached_tensor(path, name, shape, lambda other=other: other), other)
        path.unlink()
        cached_tensor(path, "x", (2, None), lambda: value)
    cached_tensor(path, "x", (1,), lambda: torch.full((2, 3), torch.nan))
    assert torch.equal(cached_tensor(path, "x", (2, 3), lambda: value), value)
    for inputs in ("one", "other", ""):
        other = torch.rand(2, 3)
        assert torch.equal(cached_tensor(path, "x", (2, 3), lambda other=other: other, inputs), other)
        assert torch.equal(cached_tensor(path, "x", (2, 3), lambda: 1 / 0, inputs), other)


@pytest.mark.parametrize("fast", [True, False])
def test_compute_dtype_auto_is_bf16_only_with_native_instructions(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "bf16_cpu", lambda: fast)
    expected = torch.bfloat16 if fast else torch.float32
    assert dtypes.compute_dtype("auto", torch.device("cpu")) == expected
    assert dtypes.compute_dtype("bf16", torch.device("cpu")) == torch.bfloat16
    assert dtypes.compute_dtype("fp16", torch.device("cuda")) == torch.float16
    with dtypes.autocast_bf16(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == fast
    # GPU 1 emulates bf16
    gpus = {0: SimpleNamespace(major=8, minor=0), 1: SimpleNamespace(major=7, minor=5)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[getattr(device, "index", device)])
    found = [dtypes.compute_dtype("auto", torch.device("cuda", index)) for index in gpus]
    assert found == [torch.bfloat16, torch.float32]


PURPOSES = st.sampled_from(["noise", "cameras", "1"])
KEYS = st.tuples(st.integers(0, 5), st.integers(0, 5), PURPOSES, st.integers(0, 3))


def numbers(*key) -> torch.Tensor:
    return torch.randn(16, generator=seeding.generator(*key))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(KEYS, KEYS)
@example((1, 11, "x", 0), (11, 1, "x", 0))
@example((1, 1, "x", 12), (1, 1, "x/1", 2))
@example((-1, 0, "x", 0), (2**80, 0, "x", 0))
def test_generators_are_equal_only_for_equal_keys(a, b):
    assert torch.equal(numbers(*a), numbers(*b)) == (a == b)
    first, second = (seeding.numpy_generator(*key).normal(size=16) for key in (a, b))
    assert np.array_equal(first, second) == (a == b)


def test_key_is_the_same_in_all_versions():
    assert seeding.key(0, 0, "noise") == 4580952025995565074
    assert all(0 <= seeding.key(0, step, "noise") < 2**63 for step in range(50))
