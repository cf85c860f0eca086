"""Reads stored tensors without trust: nothing in a file is executed, and every defect is one sentence."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from threedgen.config.errors import ConfigError


def read_torch(path: Path, mmap: bool = False) -> Any:
    """Loads what a file holds to the CPU, after comparing the check sums of the zip (torch itself does not).

    Raises ConfigError for a file that is cut off, changed, foreign or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            intact = stored and archive.testzip() is None
    except Exception:  # a damaged zip raises BadZipFile, EOFError, ValueError, UnicodeDecodeError, ...
        intact = False
    if not intact:
        raise ConfigError(f"{path} is damaged, cut off or not a checkpoint: copy or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:  # torch's text advises to switch the protection off: it is not shown
        found = re.search(r"(?:GLOBAL|class|function|type) ([\w.]+)", str(error))
        name = f" ({found[1]})" if found else ""
        problem = "not only weights: it was not loaded, as that could run code; ask its author for safetensors"
        raise ConfigError(f"{path} holds Python objects{name}, {problem}") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files: they all mean this
        raise ConfigError(f"{path} is damaged and cannot be read ({type(error).__name__})") from None


def compare(stored: Mapping[str, Any], state: Mapping[str, Tensor], what: str) -> None:
    """Raises ConfigError that counts the tensors of a network's `state` that are stored otherwise, and names three."""
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in stored.items()}
    missing = [name for name in state if name not in shapes]
    surplus = [name for name in shapes if name not in state]
    other = [name for name in state if name in shapes and shapes[name] != state[name].shape]
    parts = []
    for names, problem in ((missing, "tensors are missing"), (surplus, "are unknown")):
        if names:
            parts.append(f"{len(names)} {problem} (first {', '.join(repr(name[:80]) for name in names[:3])})")
    if other:
        first, needed = other[0], tuple(state[other[0]].shape)
        parts.append(f"{len(other)} have another shape (first {first!r}: {shapes[first]} instead of {needed})")
    if parts:
        raise ConfigError(f"{what} is of another architecture: {', '.join(parts)}")
