"""Checkpoints that survive a kill, a full disk and a moved folder, and that are never trusted when read.

Two files are kept in a folder, `last.ckpt` and the one before it, `previous.ckpt`. A new one is written
beside them under another name, forced to the disk, and takes its place by a rename: a process that dies in
the middle leaves what was there. The format is torch's zip, whose check sums are compared when it is read.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from threedgen.config.errors import ConfigError
from threedgen.run.folder import sync_folder

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
_NEEDED = ("state_dict", "global_step", "loops")
_MEGABYTE = 1 << 20


def file_names(keep: int = 2) -> list[str]:
    """Names of the kept checkpoints, newest first: last.ckpt, previous.ckpt, previous-2.ckpt, ..."""
    return [LAST, "previous.ckpt", *(f"previous-{n}.ckpt" for n in range(2, keep))][:keep]


def free_megabytes(folder: Path) -> float:
    """Free space in MiB of the file system that holds the existing `folder`. Raises OSError."""
    return shutil.disk_usage(folder).free / _MEGABYTE


def space(folder: Path) -> str:
    """Free space as part of a sentence."""
    try:
        return f"{free_megabytes(folder):.0f} MB free"
    except OSError:
        return "the folder is gone"


# ---------------------------------------------------------------- writing


def write(checkpoint: dict[str, Any], path: Path, keep: int = 2) -> None:
    """Puts `checkpoint` at `path`, or leaves what was there. A last.ckpt pushes the older ones down.

    Raises OSError, also where torch reports a write that failed as a RuntimeError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST:
            _push_down(path.parent, keep)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and re.search("inline_container|unexpected pos", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _push_down(folder: Path, keep: int) -> None:
    """last -> previous -> previous-2 ...; called when the new file is complete and on the disk."""
    names = file_names(keep)
    for older, newer in reversed(list(zip(names[1:], names[:-1], strict=True))):
        if (folder / newer).exists():
            os.replace(folder / newer, folder / older)


def remove_strays(folder: Path) -> None:
    """Deletes the half-written `NAME.PID.tmp` files that killed processes left in `folder`."""
    for path in folder.glob("*.ckpt.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():  # a stray of an earlier process that had our number
        return False
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ---------------------------------------------------------------- reading


def read(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU; nothing in the file is executed.

    Raises ConfigError, one sentence, for a file that is cut off, changed, foreign or holds Python objects.
    """
    _refuse_foreign(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function|type) ([\w.]+)", str(error))
        name = f" ({found.group(1)})" if found else ""
        raise ConfigError(
            f"{path} holds Python objects{name}, not only weights: it was not loaded, as that could run code"
        ) from None
    except Exception as error:  # torch raises a dozen kinds for damaged files: they all mean this
        raise ConfigError(f"{path} is damaged and cannot be read ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _NEEDED):
        raise ConfigError(f"{path} is not the checkpoint of a run (it may hold plain weights)")
    return checkpoint


def _refuse_foreign(path: Path) -> None:
    """Raises ConfigError unless `path` is a zip of stored entries whose check sums are right."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise ConfigError(f"{path} is empty")
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise ConfigError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(f"{path} is only a git-lfs pointer: run `git lfs pull`")
    if not head.startswith(b"PK"):
        raise ConfigError(f"{path} is not a checkpoint of this program")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
            damaged = packed or archive.testzip() is not None
    except Exception:  # a damaged zip raises BadZipFile, EOFError, ValueError, UnicodeDecodeError, ...
        damaged = True
    if damaged:
        raise ConfigError(f"{path} is damaged: it was cut off or its bytes were changed")


def latest(folder: Path, keep: int = 2) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint in `folder` and its content; None if there is no file at all.

    A newer one that cannot be read is passed over with one warning line. Raises ConfigError if none is good.
    """
    problems: list[ConfigError] = []
    for name in file_names(max(keep, 2)):
        path = Path(folder) / name
        if not path.exists():
            continue
        try:
            checkpoint = read(path)
        except ConfigError as error:
            problems.append(error)
            continue
        if problems:
            logger.warning("%s; going on from %s (step %s)", problems[0], name, checkpoint["global_step"])
        return path, checkpoint
    if problems:
        raise problems[0]
    return None
