"""Safe reading of torch and safetensors files: no code from the file is executed, and damage raises FileError."""

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

from threedgen.config.errors import ConfigError, FileError, short
from threedgen.config.plain_file import ordinary
from threedgen.run.memory import require_memory

MAX_SHARING = 4  # maximum ratio of tensor sizes to file size; above 1 if tensors share memory

MAX_WEIGHT = 1e12  # largest allowed absolute value of a weight; a product of two must fit into float32
MAX_PICKLE_BYTES = 32 << 20  # maximum size of the pickle with the structure of a torch file
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|builtins (set|complex)|_codecs encode"
    r"|torch (\w+Storage|Size|device|b?float\w*|complex\w*|u?int\d+|bool)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
)
"""Pattern of classes and functions allowed in weight files. torch allows more, such as calls that allocate memory."""


def read_torch(path: Path, mmap: bool = False) -> Any:
    """Load a torch file to the CPU. First verify the checksums of its zip archive, which torch does not check.

    `mmap`: map the tensors from the file instead of reading them to memory.

    Raises:
        FileError: the file is truncated, damaged, of another format, or contains Python objects.
        OutOfMemory: the file needs more memory than is free.
    """
    try:
        length = ordinary(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            whole = all(e.compress_type == zipfile.ZIP_STORED for e in entries) and _total(entries) <= length
            intact = whole and archive.testzip() is None
            names = [e for e in entries if e.filename.endswith("data.pkl")] if intact else []
            imports = _imports(archive.read(names[0])) if names and _total(names) <= MAX_PICKLE_BYTES else None
    except Exception:  # a damaged zip or pickle raises BadZipFile, EOFError, ValueError, UnicodeDecodeError, ...
        imports = None
    if imports is None:
        raise FileError(f"{path} is damaged, cut off or not a checkpoint. Copy or download it again")
    problem = "which can run code, so it was not loaded. Ask its author for a safetensors file"
    if foreign := [name.replace(" ", ".") for name in imports if not _PLAIN.fullmatch(name)]:
        name = short(min(foreign))[1:-1]
        if name.startswith("torch."):
            raise FileError(f"{path} is not a checkpoint of a network: it contains {name}, not only plain arrays")
        raise FileError(f"{path} holds Python objects ({name}), {problem}")
    if not mmap:
        require_memory(length, str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError:  # torch's message recommends weights_only=False: not shown
        raise FileError(f"{path} holds Python objects, {problem}") from None
    except Exception as error:  # torch raises many classes for damaged files
        raise FileError(f"{path} is damaged and cannot be read ({type(error).__name__})") from None
    if sum(value.nbytes for value in leaves(content) if isinstance(value, Tensor)) > MAX_SHARING * length:
        raise FileError(f"{path} is damaged: its tensors are far larger than the file")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file to the CPU. Raises FileError if the file is missing or damaged."""
    try:
        return load_file(ordinary(path))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # SafetensorError, or torch's errors for unsupported dtypes
        raise FileError(f"{path} is damaged: it is not valid safetensors ({type(error).__name__})") from None


def leaves(tree: object) -> Iterator[object]:
    """Yield all keys and values in nested dicts, lists, tuples and sets; shared containers are visited once."""
    visited, stack = set[int](), list[object]([tree])
    while stack:
        value = stack.pop()
        if id(value) in visited:
            continue
        if isinstance(value, (dict, list, tuple, set)):
            visited.add(id(value))
            stack += [*value, *(value.values() if isinstance(value, dict) else ())]
        else:
            yield value


def _total(entries: list[zipfile.ZipInfo]) -> int:
    return sum(entry.file_size for entry in entries)


def _imports(pickled: bytes) -> set[str]:
    """Return the classes and functions that a pickle refers to, as "module name", without executing it."""
    return {str(name) for code, name, _ in genops(pickled) if code.name in ("GLOBAL", "INST", "STACK_GLOBAL")}


def check_architecture(stored: Mapping[str, object], state: Mapping[str, Tensor], what: str) -> None:
    """Raise ConfigError if names or shapes differ between `stored` and `state`; `what`: subject of the message."""
    needed = {name: str(tuple(t.shape)) for name, t in state.items()}
    shapes = {str(name): str(tuple(t.shape)) if isinstance(t, Tensor) else "none" for name, t in stored.items()}
    if wrong := [name for name in needed | shapes if shapes.get(name) != needed.get(name)]:
        first = f"first {wrong[0][:80]!r}: {shapes.get(wrong[0])} instead of {needed.get(wrong[0])}"
        raise ConfigError(f"{what} is of another architecture: {len(wrong)} tensors differ ({first})")


def require_finite(stored: Mapping[str, object], what: str) -> None:
    """Raise ConfigError if a stored number or tensor has NaN, infinity or an absolute value above MAX_WEIGHT."""
    for name, value in stored.items():
        if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
            if not (torch.as_tensor(value).float().abs() <= MAX_WEIGHT).all():  # float16 cannot represent MAX_WEIGHT
                raise ConfigError(
                    f"{what} are not finite: {str(name)[:80]!r} has NaN, infinity or more than {MAX_WEIGHT:g}"
                )
