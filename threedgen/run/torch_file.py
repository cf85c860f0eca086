"""Reads stored tensors without trust: nothing in a file is executed, and every defect is one sentence."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import ordinary
from threedgen.run.memory import require_memory

REPEATED = 4
"""So often a tensor of a file may be told of again, under other names or in other shapes."""

LARGEST = 1e12
"""The largest weight: products of two have to fit into float32."""
MOST_PICKLE = 32 << 20
"""Bytes of what names the tensors of a file."""
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|builtins (set|complex)|_codecs encode"
    r"|torch (\w+Storage|Size|device|b?float\w*|complex\w*|u?int\d+|bool)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
)
"""What a file of weights asks for. torch allows more, also what takes memory that the file has not."""


def read_torch(path: Path, mmap: bool = False) -> Any:
    """Loads what a file holds to the CPU, after comparing the check sums of the zip (torch itself does not).

    Raises ConfigError for a file that is cut off, changed, foreign, holds Python objects or takes more memory than
    there is.
    """
    try:
        length = ordinary(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            whole = all(e.compress_type == zipfile.ZIP_STORED for e in entries) and _total(entries) <= length
            intact = whole and archive.testzip() is None
            names = [e for e in entries if e.filename.endswith("data.pkl")] if intact else []
            asked = _asked_for(archive.read(names[0])) if names and _total(names) <= MOST_PICKLE else None
    except Exception:  # a damaged zip or pickle raises BadZipFile, EOFError, ValueError, UnicodeDecodeError, ...
        asked = None
    if asked is None:
        raise ConfigError(f"{path} is damaged, cut off or not a checkpoint: copy or download it again")
    problem = "not only weights: it was not loaded, as that could run code; ask its author for safetensors"
    if foreign := [name.replace(" ", ".") for name in asked if not _PLAIN.fullmatch(name)]:
        name = short(min(foreign))[1:-1]
        if name.startswith("torch."):
            raise ConfigError(f"{path} is not a checkpoint of a network: it holds {name}, which is no plain array")
        raise ConfigError(f"{path} holds Python objects ({name}), {problem}")
    if not mmap:
        require_memory(length, str(path))
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError:  # torch's text advises to switch the protection off: it is not shown
        raise ConfigError(f"{path} holds Python objects, {problem}") from None
    except Exception as error:  # torch raises a dozen kinds for damaged files: they all mean this
        raise ConfigError(f"{path} is damaged and cannot be read ({type(error).__name__})") from None
    if sum(value.nbytes for value in leaves(found) if isinstance(value, Tensor)) > REPEATED * length:
        raise ConfigError(f"{path} is damaged: its tensors tell of far more numbers than it holds")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file to the CPU. Raises ConfigError."""
    try:
        return load_file(ordinary(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # SafetensorError, and what torch says to types that it does not have
        raise ConfigError(f"{path} is damaged: it is not valid safetensors ({type(error).__name__})") from None


def leaves(tree: Any) -> Iterator[Any]:
    """Walks nested dicts (keys too), lists, tuples and sets, each object once, for a file can refer to one often."""
    seen, left = set[int](), [tree]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        if isinstance(value, (dict, list, tuple, set)):
            seen.add(id(value))
            left += [*value, *(value.values() if isinstance(value, dict) else ())]
        else:
            yield value


def _total(entries: list[zipfile.ZipInfo]) -> int:
    return sum(entry.file_size for entry in entries)


def _asked_for(pickled: bytes) -> set[str]:
    """Lists the classes and functions that a pickle names, "module name"; nothing of it is executed."""
    return {str(said) for code, said, _ in genops(pickled) if code.name in ("GLOBAL", "INST", "STACK_GLOBAL")}


def compare(stored: Mapping[str, Any], state: Mapping[str, Tensor], what: str) -> None:
    """Raises ConfigError that counts the tensors of a network's `state` that are stored otherwise, and names three."""
    shapes = {str(name): tuple(t.shape) if isinstance(t, Tensor) else None for name, t in stored.items()}
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


def require_finite(stored: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError for a number or a tensor with a NaN, an infinity or what becomes one, and names it."""
    for name, value in stored.items():
        if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
            if not (torch.as_tensor(value).float().abs() <= LARGEST).all():  # float16 knows no such number
                raise ConfigError(
                    f"{what} are not finite: {str(name)[:80]!r} holds NaN, infinity or more than {LARGEST:g}"
                )
