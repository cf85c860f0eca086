"""Read and write model files. Reading executes no code; functions that read raise ConfigError for a damaged file."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickletools import genops
from typing import TYPE_CHECKING, Any, TypeVar

from threedgen.config import ConfigError
from threedgen.config.errors import printable, short
from threedgen.config.plain_file import MAX_PICKLE_BYTES, parse_json, read_text, require_regular_file
from threedgen.run.disk import atomic_folder, publish, temporary_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Module = TypeVar("Module", bound=torch.nn.Module)

logger = logging.getLogger(__name__)

Json = dict[str, Any]  # JSON object
SUMS = "SHA256SUMS"
MAX_TEXT_BYTES, MAX_HEADER = 1 << 20, 16 << 20  # of a text file, and of the header of a safetensors file


def check_sums(path: Path) -> None:
    """Raise ConfigError if a file listed in SHA256SUMS of the folder `path` is missing or has another SHA-256.

    A folder without SHA256SUMS is not checked.
    """
    if not (path / SUMS).is_file():
        return
    for line in read_text(path / SUMS, max_bytes=MAX_TEXT_BYTES).splitlines():
        digest, _, name = line.partition("  ")
        if re.search(r"^/|\.\.|\\", name) or not name:
            raise ConfigError(f"{path / SUMS} is damaged: it has the line {line[:80]!r}")
        if not (path / name).is_file():
            raise ConfigError(f"{path} lacks the file {name}")
        if sha256(path / name) != digest:
            raise ConfigError(f"{path / name} is damaged: its SHA-256 is not the one recorded in {SUMS}")


def write_sums(path: Path) -> None:
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != SUMS)
    (path / SUMS).write_text(sums(files, path), encoding="utf-8")


def sums(files: Iterable[Path], path: Path) -> str:
    """Return lines "SHA-256  NAME", one per file, as sha256sum prints them; names are relative to the folder `path`.

    A file outside of the folder `path` gets the name "FOLDER/FILE", where FOLDER is its own folder.
    """

    def name(file: Path) -> str:
        inside = file.is_relative_to(path)
        return file.relative_to(path).as_posix() if inside else f"{file.parent.name}/{file.name}"

    return "".join(f"{sha256(file)}  {name(file)}\n" for file in files)


def digest(path: Path, files: Iterable[Path]) -> str:
    """Return the SHA-256 in hex of the file `path` or, for a folder `path`, of a list of its files.

    The list is a text with one line "SHA-256  NAME" for each of `files`, the files of the folder to include, in their
    order. `files` are not used if `path` is a file.
    """
    return sha256(path) if path.is_file() else hashlib.sha256(sums(files, path).encode()).hexdigest()


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Json:
    """Read a JSON file of at most 1 MiB. Raises ConfigError unless it contains one JSON object."""
    try:
        found = parse_json(read_text(path, max_bytes=MAX_TEXT_BYTES))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: it is not JSON ({short(str(error), 60)})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not a config: it holds no JSON object")
    return found


def weight_format(path: Path) -> str:
    """Return the format of a weight file, "safetensors" or "torch", by its first bytes and size.

    Raises ConfigError if the file cannot be read, is cut off or has another format.
    """
    try:
        with open(require_regular_file(path), "rb") as file:
            head = file.read(64)
            total = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return "torch"
    cut = head.startswith(b"PK") or (head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") > total)
    if head[8:9] == b"{" and not cut:
        if int.from_bytes(head[:8], "little") > MAX_HEADER:
            raise ConfigError(f"{path} has a header of more than {MAX_HEADER >> 20} MiB, which no checkpoint has")
        return "safetensors"
    if not head:
        problem = "is empty: the download or copy was cut off"
    elif cut:
        problem = "is cut off: download or copy it again"
    elif head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml"):
        problem = "is a web page, not weights: the download went wrong"
    elif head.startswith(b"version https://git-lfs"):
        problem = "is only a git-lfs pointer: run `git lfs pull` in its repository"
    elif head.startswith(b"GGUF"):
        problem = "is a GGUF file, whose quantised weights are not supported: take the model's safetensors file"
    elif head.startswith(b"\x80"):
        problem = "is a bare pickle, which can run code when opened, so it was not; use safetensors"
    else:
        problem = "holds no weights: it is neither a safetensors nor a torch file"
    raise ConfigError(f"{path} {problem}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or torch file, by name.

    If a torch file has an entry "state_dict", only the tensors in it are returned. Other Python objects, such as the
    callbacks of a Lightning checkpoint, are skipped. Raises ConfigError if the file is damaged or has no tensor, or a
    tensor is sparse, complex, quantised or on the meta device.
    """
    import torch

    from threedgen.run.torch_file import read_safetensors, read_torch

    found = read_torch(path, mmap=True, skip_objects=True) if weight_format(path) == "torch" else read_safetensors(path)
    inner = found.get("state_dict") if isinstance(found, dict) else None
    table = inner if isinstance(inner, dict) else found
    items = table.items() if isinstance(table, Mapping) else ()
    tensors = {name: t for name, t in items if isinstance(name, str) and isinstance(t, torch.Tensor)}
    if not tensors:
        raise ConfigError(f"{path} holds no named tensors, so it is not a checkpoint")
    for name, t in tensors.items():
        if t.layout != torch.strided or t.is_meta or t.is_complex() or t.is_quantized:
            raise ConfigError(f"{path} is not a checkpoint of a network: its tensor {short(name)} is no plain array")
    return tensors


def read_header(path: Path) -> tuple[list[str], dict[str, str]]:
    """Return tensor names and metadata of a weight file without reading tensors.

    For a torch file, the metadata are {}, and the names are all strings in its pickle, not only tensor names.
    """
    from safetensors import SafetensorError, safe_open

    if weight_format(path) == "torch":
        return _strings(path), {}
    try:
        with safe_open(path, "np") as file:
            return list(file.keys()), file.metadata() or {}
    except SafetensorError as error:
        raise ConfigError(f"{path} is damaged: {printable(error, 80)}") from None
    except MemoryError:  # the limit of the address space (ulimit -v) is smaller than the file
        size = path.stat().st_size / 1e9
        raise ConfigError(f"{path} cannot be read: it has {size:.1f} GB, more than this process may map") from None


def _strings(path: Path) -> list[str]:
    # all strings in the pickle of a torch file, which is not executed; [] if it is damaged or large
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # a damaged zip or pickle raises many classes
        entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
        if entry.file_size <= MAX_PICKLE_BYTES:
            return [value for _, value, _ in genops(archive.read(entry)) if isinstance(value, str)]
    return []


def read_card(path: Path, form: str) -> dict[str, str]:
    """Return the metadata of a safetensors file written by threedgen, without reading tensors.

    `form` is the expected value of the metadata key "format". For files with another value or none, the result is {}.
    """
    card = read_header(path)[1]
    return card if card.get("format") == form else {}


def warn_unused(names: Sequence[str], what: str) -> None:
    """Log a warning that the tensors `names` are not used; without names, do nothing.

    `what` completes the words "are no part" in the message, such as "of an adapter".
    """
    if names:
        first = ", ".join(repr(name[:80]) for name in names[:3])
        logger.warning("%d tensors are no part %s and not used (first %s)", len(names), what, first)


def build_from_tensors(make: Callable[[], Module], tensors: Mapping[str, Tensor], what: str) -> Module:
    """Build a frozen network on the CPU with `tensors` as its weights, converted to the dtypes of the network.

    `make` builds the network with random weights. It is called on the meta device, so that wrong names and shapes are
    found before memory is allocated. `what` is the name of the network in messages. Raises ConfigError if `make` fails,
    names or shapes differ from the network's, or a tensor is not floating-point or has NaN or magnitudes above 1e12.
    """
    import torch

    from threedgen.run.torch_file import check_architecture, require_finite

    try:
        with torch.device("meta"):
            network = make()
    except Exception as error:  # any kind, for a config from outside
        reason = short(str(error).split("\n")[0], 120)
        raise ConfigError(f"the config of the {what} describes no known network: {reason}") from None
    check_architecture(tensors, network.state_dict(), f"the {what}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ConfigError(
                f"the weights of the {what} are {tensor.dtype}, not floating point numbers ({short(name)})"
            )
    require_finite(tensors, f"the weights of the {what}")
    network.to_empty(device="cpu")
    network.load_state_dict(dict(tensors))
    for name, buffer in network.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
        elif name not in tensors:
            raise ValueError(f"the buffer {name} of the {what} is in no file, so its memory would stay uninitialised")
    return network.eval().requires_grad_(False)


@contextmanager
def replaced_folder(folder: Path, label: str) -> Iterator[Path]:
    """Replace the model in `folder`: yield a temporary folder to write into, whose files replace the old ones on exit.

    On exit, SHA256SUMS is also written, and files of the old model (those in its SHA256SUMS or model_index.json) that
    the new one lacks are removed. All other files, such as README.md or .git, stay. `label` is the name of a file that
    every saved model of this kind has, such as "model_index.json". Raises ConfigError, and changes nothing, if `folder`
    has files but none with this name: it is then a folder of another kind.
    """
    exists = folder.exists() and (folder.is_file() or any(folder.iterdir()))
    if exists and not (folder / label).is_file():
        raise ConfigError(f"{folder} holds something else than a saved model: choose another folder")
    if not exists and folder.is_dir():
        folder.rmdir()  # it is empty, and Windows does not rename onto a folder
    new = temporary_path(folder) if exists else folder
    with atomic_folder(new) as part:
        yield part
        write_sums(part)
    if exists:
        try:
            _replace_entries(folder, new)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _replace_entries(folder: Path, new: Path) -> None:
    # in place, so that an error or a killed process cannot lose the files that stay
    index, sums = folder / "model_index.json", folder / SUMS
    old = set(read_json(index)) if index.is_file() else set()  # its keys are folders; older models have no SHA256SUMS
    if sums.is_file():
        old |= {line.partition("  ")[2].partition("/")[0] for line in sums.read_text("utf-8", "replace").splitlines()}
    names = sorted(path.name for path in new.iterdir())  # SHA256SUMS first: a mixture of old and new does not fit it
    for path in [path for path in folder.iterdir() if path.name in {*old, *names}]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or path.name not in names:
            path.unlink()
    for name in names:
        publish(new / name, folder / name)


def save_tensors(network: torch.nn.Module, path: Path, prefix: str = "") -> None:
    """Write a network's tensors to the safetensors file `path`, in float16, or float32 for integers.

    Raises ConfigError if a value overflows. `prefix` is put in front of all tensor names that do not start with it.
    """
    import torch
    from safetensors.torch import save

    tensors = {}
    for name, tensor in network.state_dict().items():
        dtype = torch.float16 if tensor.is_floating_point() else torch.float32  # counters may exceed float16
        kept = tensor.detach().cpu().to(dtype).contiguous()
        if not torch.isfinite(kept).all():
            raise ConfigError(f"cannot save {path.parent.name}: {short(name)} does not fit into float16")
        tensors[prefix + name.removeprefix(prefix)] = kept
    path.write_bytes(save(tensors, {"format": "pt"}))  # save_file would raise no OSError if the disk is full
