"""Reading the files of a prior safely: nothing in a file is executed, and every defect becomes one sentence.

A file is looked at in this order: first bytes, check sums, names and shapes, values; only then is a tensor
used. All functions raise ConfigError. torch is imported by those that need it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threedgen.config import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Module = TypeVar("Module", bound=torch.nn.Module)

SUMS = "SHA256SUMS"


def check_sums(path: Path) -> None:
    """Compares every file listed in the folder's SHA256SUMS, if it has one: no format notices flipped bytes
    itself.
    """
    if not (path / SUMS).is_file():
        return
    for line in read_text(path / SUMS).splitlines():
        digest, _, name = line.partition("  ")
        if re.search(r"^/|\.\.|\\", name) or not name:
            raise ConfigError(f"{path / SUMS} is damaged: it has the line {line[:80]!r}")
        if not (path / name).is_file():
            raise ConfigError(f"{path} lacks the file {name}")
        if sha256(path / name) != digest:
            raise ConfigError(f"{path / name} is damaged: its SHA-256 is not the one recorded in {SUMS}")


def write_sums(path: Path) -> None:
    """Lists the SHA-256 of every file below ``path``, in the format of the sha256sum command."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != SUMS)
    (path / SUMS).write_text(sums(files, path), encoding="utf-8")


def sums(files: Iterable[Path], path: Path) -> str:
    """What sha256sum prints for files, named from the folder ``path``."""
    return "".join(f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files)


def sha256_of_files(files: Iterable[Path], path: Path) -> str:
    """One digest for several files: that of their ``sums``."""
    return hashlib.sha256(sums(files, path).encode()).hexdigest()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, limit: int = 1 << 20) -> str:
    """A small text file."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ConfigError(f"{path} is larger than {limit >> 20} MB: not the file expected here")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is damaged: it is not text") from None


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON file that holds one object."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a config: it holds no JSON object")
    return found


def sniff(path: Path) -> str:
    """ "safetensors" or "torch" by the first bytes and the size of a file; ConfigError for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            total = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise ConfigError(f"{path} is empty: the download or copy was cut off")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        raise ConfigError(f"{path} is a web page, not weights: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path} is only a git-lfs pointer: run `git lfs pull` in its repository")
    if head.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise ConfigError(f"{path} is cut off: download or copy it again")
        return "torch"
    if head[8:9] == b"{":
        if 8 + int.from_bytes(head[:8], "little") > total:
            raise ConfigError(f"{path} is cut off: download or copy it again")
        return "safetensors"
    if head.startswith(b"\x80"):
        raise ConfigError(f"{path} is a bare pickle, which can run code when opened, so it was not; use safetensors")
    raise ConfigError(f"{path} holds no weights: it is neither a safetensors nor a torch file")


def read_tensors(path: Path, under: str = "state_dict") -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a torch file that holds nothing else (maybe under the key
    ``under``).
    """
    kind = sniff(path)
    found = read_torch(path) if kind == "torch" else read_safetensors(path)
    inner = found.get(under) if isinstance(found, dict) else None
    table = inner if isinstance(inner, dict) else found
    return only_tensors(table, path)


def only_tensors(table: Any, path: Path) -> dict[str, Tensor]:
    """Drops numbers and texts that lie beside the tensors; refuses tensors that are not plain arrays."""
    import torch

    items = table.items() if isinstance(table, Mapping) else ()
    tensors = {name: t for name, t in items if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if not tensors:
        raise ConfigError(f"{path} holds no named tensors, so it is not a checkpoint")
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_meta or t.is_complex() or t.is_quantized:
            raise ConfigError(f"{path} is not a checkpoint of a network: its tensor {name!r} is no plain array")
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged: it is not valid safetensors ({type(error).__name__})") from None


def read_torch(path: Path) -> Any:
    """torch.load without code, after comparing the check sums of the zip (torch itself does not)."""
    from pickle import UnpicklingError

    import torch

    refuse_damaged_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:  # torch's text advises to switch the protection off: it is not shown
        found = re.search(r"(?:GLOBAL|class|function|type) ([\w.]+)", str(error))
        name = f" ({found[1]})" if found else ""
        raise ConfigError(
            f"{path} holds Python objects{name}, not only weights: loading it could run code, so nothing was "
            "loaded; ask its author for safetensors"
        ) from None
    except Exception as error:  # a dozen kinds for damaged files
        raise ConfigError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from None


def refuse_damaged_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            damaged = packed or archive.testzip() is not None
    except Exception:  # BadZipFile, EOFError, ValueError, UnicodeDecodeError, NotImplementedError, ...
        damaged = True
    if damaged:
        raise ConfigError(f"{path} is damaged: it was cut off or its bytes were changed; download or copy it again")


def fill(make: Callable[[], Module], tensors: Mapping[str, Tensor], what: str) -> Module:
    """The network that ``make`` builds, frozen, in float32, with ``tensors`` as its weights.

    It is first built without memory to compare names and shapes, so a wrong file costs nothing.
    """
    import torch

    try:
        with torch.device("meta"):
            network = make()
    except Exception as error:  # the config comes from outside: any kind
        reason = str(error).split("\n")[0][:120]
        raise ConfigError(f"the config of the {what} describes no known network: {reason}") from None
    compare(tensors, {name: tuple(t.shape) for name, t in network.state_dict().items()}, what)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConfigError(f"the weights of the {what} are {tensor.dtype}, not floating point numbers ({name!r})")
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"the weights of the {what} are not finite: {name!r} holds NaN or infinity")
    network.to_empty(device="cpu")
    network.load_state_dict(dict(tensors))
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):  # the one buffer of these networks that is in no file
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return network.eval().requires_grad_(False)


def compare(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raises ConfigError that counts the differences from the tensors that the network needs, and names three."""
    missing = [name for name in shapes if name not in tensors]
    surplus = [name for name in tensors if name not in shapes]
    other = [name for name in shapes if name in tensors and tuple(tensors[name].shape) != shapes[name]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors are missing (first {_some(missing)})")
    if surplus:
        parts.append(f"{len(surplus)} are unknown (first {_some(surplus)})")
    if other:
        first, found = other[0], tuple(tensors[other[0]].shape)
        parts.append(f"{len(other)} have another shape (first {first!r}: {found} instead of {shapes[first]})")
    if parts:
        raise ConfigError(f"the {what} is of another architecture: {', '.join(parts)}")


def _some(names: list[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names[:3])
