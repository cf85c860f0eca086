"""Checkpoint files: atomic writes, one older file as a fallback, and safe reads of untrusted files.

A new file is written under a temporary name, synced and renamed, so that the old files survive if the process is
killed. The format is torch's zip; its checksums are verified on reading.
"""

import errno
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from threedgen.config.errors import FileError
from threedgen.run.disk import atomic_file
from threedgen.run.torch_file import read_torch

logger = logging.getLogger(__name__)

LAST, PREVIOUS, KEPT = "last.ckpt", "previous.ckpt", "kept.ckpt"
CheckpointData = dict[str, Any]  # content of a checkpoint, as Lightning defines it
_REQUIRED_KEYS = ("state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers")


def write(checkpoint: CheckpointData, path: Path) -> None:
    """Write a checkpoint atomically. An existing file at `path` is renamed to previous.ckpt in the same folder.

    Raises OSError if the file cannot be written.
    """

    def keep_previous() -> None:
        if path.exists():
            os.replace(path, path.with_name(PREVIOUS))

    try:
        with atomic_file(path, keep_previous) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if re.search("inline_container|unexpected pos", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def read(path: Path) -> CheckpointData:
    """Load a checkpoint to the CPU without executing code in it. Raises FileError if the file is not valid.

    A valid file is an undamaged file of torch.save that contains a Lightning checkpoint with the states of the
    optimizers and loops. A file with only weights is not valid.
    """
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _REQUIRED_KEYS):
        raise FileError(f"{path} is not the checkpoint of a run; it may contain plain weights")
    return checkpoint


def latest(folder: Path) -> tuple[Path, CheckpointData] | None:
    """Return the path and the content of the newest readable checkpoint in `folder`; None if there is no checkpoint.

    Normally this is last.ckpt. If it is unreadable, previous.ckpt is read, with a warning. Raises FileError if there is
    a file but none is readable.
    """
    problem: FileError | None = None
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            checkpoint = read(path)
        except FileError as error:
            problem = problem or error
            continue
        if problem:
            logger.warning("%s; resuming from %s (step %s)", problem, path.name, checkpoint["global_step"])
        return path, checkpoint
    if problem:
        raise problem
    return None
