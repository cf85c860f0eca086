"""What is kept on the disk is made once, and again where it is another thing or damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from threedgen.config import ConfigError
from threedgen.run.cache import kept


def test_kept_tensors_are_not_made_twice(tmp_path: Path) -> None:
    path, made = tmp_path / "x.safetensors", torch.rand(2, 3)
    assert torch.equal(kept(path, "x", (2, None), lambda: made), made)
    assert torch.equal(kept(path, "x", (2, None), lambda: 1 / 0), made)
    for name, shape in (("x", (3, None)), ("x", (2, 3, None)), ("y", (2, 3))):
        other = torch.zeros(3, 3)
        assert torch.equal(kept(path, name, shape, lambda other=other: other), other)
        path.unlink()
        kept(path, "x", (2, None), lambda: made)
    kept(path, "x", (1,), lambda: torch.full((2, 3), torch.nan))
    assert torch.equal(kept(path, "x", (2, 3), lambda: made), made)


def test_a_full_disk_while_preparing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device.*make room") as caught:
        kept(tmp_path / "x.safetensors", "x", (1,), lambda: torch.zeros(1))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
