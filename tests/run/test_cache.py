"""Cached tensors."""

import os
from pathlib import Path

import pytest
import torch

from tests.support.errors import refused
from threedgen.config.errors import DiskFull
from threedgen.run.cache import cached_tensor


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


def test_cached_tensor_reports_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with refused(None, tmp_path, kind=DiskFull) as caught:
        cached_tensor(tmp_path / "x.safetensors", "x", (1,), lambda: torch.zeros(1))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
