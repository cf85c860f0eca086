"""Safe reading of torch and safetensors files: no code from the file is executed, and damage raises FileError."""

import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from pickletools import genops
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from threedgen.config.errors import ConfigError, FileError, printable, storage_error
from threedgen.config.plain_file import MAX_PICKLE_BYTES, require_regular_file
from threedgen.run.memory import require_memory

MAX_SHARING = 4  # maximum ratio of tensor sizes to file size; above 1 if tensors share memory

MAX_TENSORS = 100_000  # largest number of tensors in a safetensors file; reading them takes about 10 s
MAX_WEIGHT = 1e12  # largest allowed absolute value of a weight; a product of two must fit into float32
_PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|builtins (set|complex)|_codecs encode"
    r"|torch (\w+Storage|Size|device|b?float\w*|complex\w*|u?int\d+|bool)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)"
)
"""Pattern of the names "module name" of classes and functions that a weight file may use.

torch's own list (weights_only) also allows others, such as calls that allocate memory.
"""
_REFUSED = re.compile(
    r"torch(?!\.(nn|optim|utils|distributed)\b)"  # other layouts of tensors and compiled networks
    r"|(os|posix|nt|sys|subprocess|shutil|socket|runpy|importlib|ctypes|pickle|webbrowser)\b"
    r"|(__builtin__|builtins) (eval|exec|execfile|compile|open|__import__|bytearray)$"
)
"""Pattern of the names "module name" of classes and functions for which `read_torch` always refuses a file.

They hold a part of the weights, or show that the file was made to run code. `skip_objects` replaces only others.
"""


class _ComparesAsDict(type):
    # makes torch treat a `_Skipped` as a dict and set its items
    def __eq__(cls, other: object) -> bool:
        return other is cls or other is dict

    __hash__ = type.__hash__


class _Skipped(metaclass=_ComparesAsDict):
    # inert stand-in for the classes and functions of a pickle that are not allowed
    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __new__(cls, *_args: object, **_kwargs: object) -> "_Skipped":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None: ...

    def __setitem__(self, _key: object, _value: object) -> None: ...


class _ParameterDict(dict[str, Tensor]):
    # stand-in for torch.nn.ParameterDict, as in older files of textual inversions
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state["_parameters"])


_STAND_INS: dict[str, type] = {"torch.nn.modules.container ParameterDict": _ParameterDict}


def read_torch(path: Path, mmap: bool = False, skip_objects: bool = False) -> Any:
    """Load a file of torch.save to the CPU and return its content. No code in the file is executed.

    The checksums of the zip archive, which torch does not check, are verified first.

    Args:
        mmap: map the tensors from the file instead of reading them to memory.
        skip_objects: replace Python objects in the content by empty stand-ins, instead of refusing the file.

    Raises:
        FileError: the file is truncated, damaged, of another format, or contains Python objects (with `skip_objects`:
            objects that cannot be replaced).
        OutOfMemory: the file is larger than the free memory, and `mmap` is False.
    """
    try:
        length = require_regular_file(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            whole = all(e.compress_type == zipfile.ZIP_STORED for e in entries) and _total(entries) <= length
            intact = whole and archive.testzip() is None
            names = [e for e in entries if e.filename.endswith("data.pkl")] if intact else []
            if (size := _total(names)) > MAX_PICKLE_BYTES:
                limit = f"{size / 1e6:,.0f} MB are more than {MAX_PICKLE_BYTES / 1e6:,.4g} MB"
                raise FileError(f"{path} is no checkpoint: its structure (data.pkl) is too large, {limit}")
            pickled = genops(archive.read(names[0])) if names else None
            kinds = ("GLOBAL", "INST", "STACK_GLOBAL")  # "module name" of the pickle's classes and functions
            imports = None if pickled is None else {str(name) for code, name, _ in pickled if code.name in kinds}
    except FileError:
        raise
    except Exception as error:  # a damaged zip or pickle raises BadZipFile, EOFError, ValueError, ...
        _raise_if_unreadable(path, error)
        imports = None
    if imports is None:
        raise FileError(f"{path} is damaged, cut off or not a checkpoint. Copy or download it again")
    problem = "which can run code, so it was not loaded. Ask its author for a safetensors file"
    foreign = sorted(name for name in imports if not _PLAIN.fullmatch(name))
    refused = [name for name in foreign if _REFUSED.match(name)] if skip_objects else foreign
    if refused:
        name = printable(refused[0].replace(" ", "."), 80)
        if name.startswith("torch."):
            raise FileError(f"{path} is not a checkpoint of a network: it contains {name}, not only plain arrays")
        raise FileError(f"{path} holds Python objects ({name}), {problem}")
    if not mmap:
        require_memory(length, str(path))
    try:
        with torch.serialization.safe_globals(
            [(_STAND_INS.get(name, _Skipped), _in_python3(name)) for name in imports if skip_objects]
        ):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError:  # torch's message recommends weights_only=False: not shown
        raise FileError(f"{path} holds Python objects, {problem}") from None
    except Exception as error:  # torch raises many classes for damaged files
        _raise_if_unreadable(path, error)
        raise FileError(f"{path} is damaged and cannot be read ({type(error).__name__})") from None
    if isinstance(content, _Skipped):
        raise FileError(f"{path} holds Python objects ({printable(foreign[0], 80)}), {problem}")
    if sum(value.nbytes for value in leaves(content) if isinstance(value, Tensor)) > MAX_SHARING * length:
        raise FileError(f"{path} is damaged: its tensors are far larger than the file")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors of a safetensors file to the CPU, by name. Raises FileError if it is missing or damaged."""
    try:
        with safe_open(require_regular_file(path), "pt") as file:
            if len(names := file.keys()) <= MAX_TENSORS:
                return {name: file.get_tensor(name) for name in names}
    except Exception as error:  # SafetensorError, or torch's errors for unsupported dtypes
        _raise_if_unreadable(path, error)
        raise FileError(f"{path} is damaged: it is not valid safetensors ({type(error).__name__})") from None
    raise FileError(f"{path} is no checkpoint: it has more than {MAX_TENSORS:,} tensors")


def _raise_if_unreadable(path: Path, error: Exception) -> None:
    cause = error if isinstance(error, OSError) else storage_error(error)  # zipfile hides it
    if cause is not None:
        raise FileError(f"{path} cannot be read: {cause.strerror or cause}") from error


def leaves(tree: object) -> Iterator[object]:
    """Yield all dict keys and all values in nested dicts, lists, tuples and sets, in any order.

    The containers themselves are not yielded. A container that occurs several times is visited once.
    """
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


def _in_python3(name: str) -> str:
    # "module name" in a pickle of protocol 2 -> "module.name" under which torch looks it up
    module, _, inner = name.partition(" ")
    return ".".join(NAME_MAPPING.get((module, inner), (IMPORT_MAPPING.get(module, module), inner)))


def check_architecture(stored: Mapping[str, object], state: Mapping[str, Tensor], what: str) -> None:
    """Raise ConfigError unless the weights `stored` have the same names and shapes as the state_dict `state`.

    `what` is the subject of the error message, such as "the checkpoint".
    """
    needed = {name: str(tuple(t.shape)) for name, t in state.items()}
    shapes = {str(name): str(tuple(t.shape)) if isinstance(t, Tensor) else "none" for name, t in stored.items()}
    if wrong := [name for name in needed | shapes if shapes.get(name) != needed.get(name)]:
        first = f"first {wrong[0][:80]!r}: {shapes.get(wrong[0])} instead of {needed.get(wrong[0])}"
        raise ConfigError(f"{what} is of another architecture: {len(wrong)} tensors differ ({first})")


def require_finite(stored: Mapping[str, object], what: str) -> None:
    """Raise ConfigError if a weight in `stored` is NaN, infinite, or above 1e12 in absolute value (MAX_WEIGHT).

    `stored` maps names to tensors or numbers; values that are not floating-point are skipped. `what` is the subject of
    the error message, a plural such as "the weights in FILE".
    """
    for name, value in stored.items():
        if isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point()):
            if not (torch.as_tensor(value).float().abs() <= MAX_WEIGHT).all():  # float16 cannot represent MAX_WEIGHT
                raise ConfigError(f"{what} are not finite: {str(name)[:80]!r} has NaN or more than {MAX_WEIGHT:g}")
