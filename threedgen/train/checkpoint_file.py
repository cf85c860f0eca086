"""Checkpoint files: atomic writes, rotation of old files, and safe reads of untrusted files.

A folder has `last.ckpt` and `previous.ckpt`. A new file is written under a temporary name, synced and renamed, so that
the old files survive if the process is killed. The format is torch's zip; its checksums are verified on reading.
"""

import errno
import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threedgen.config.errors import FileError, short
from threedgen.run.disk import atomic_file
from threedgen.run.torch_file import leaves, read_torch

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
CheckpointData = dict[str, Any]
"""Content of a checkpoint, as Lightning defines it."""
_REQUIRED_KEYS = ("state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers")


def file_names(keep: int = 2) -> list[str]:
    """Return the names of the newest `keep` checkpoints, newest first: last.ckpt, previous.ckpt, previous-2.ckpt."""
    return [LAST, "previous.ckpt", *(f"previous-{n}.ckpt" for n in range(2, keep))][:keep]


def write(checkpoint: CheckpointData, path: Path, keep: int = 2) -> None:
    """Write `checkpoint` to `path`, a last.ckpt, atomically, and rename the older ones.

    Raises:
        OSError: the write failed (also if torch raises RuntimeError for it). The old files are then unchanged.
    """

    def rotate() -> None:
        names = [path.with_name(name) for name in file_names(keep)]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                os.replace(newer, older)

    try:
        with atomic_file(path, rotate) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if re.search("inline_container|unexpected pos", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def read(path: Path) -> CheckpointData:
    """Load the checkpoint at `path` to the CPU without executing anything in the file.

    Raises:
        FileError: the file is truncated, damaged, of another format, contains Python objects, or has a state from which
            a run cannot resume.
    """
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _REQUIRED_KEYS):
        raise FileError(f"{path} is not the checkpoint of a run; it may contain plain weights")
    if defect := _wrong_type(checkpoint):
        raise FileError(f"{path} is damaged: {defect}")
    if defect := _unusable_state(checkpoint):
        raise FileError(f"cannot resume from {path}: {defect}")
    return checkpoint


def _unusable_state(checkpoint: CheckpointData) -> str | None:
    """Describe a defect that would corrupt the resumed run silently: NaN, or a lost optimizer or schedule state."""
    for part in ("state_dict", "optimizer_states"):
        for name, value in _tensors(checkpoint[part], part):
            if torch.isnan(value).any():
                return f"{name} holds NaN"
    step, optimizers, schedules = (checkpoint[key] for key in ("global_step", "optimizer_states", "lr_schedulers"))
    if not optimizers or step and not all(optimizer["state"] for optimizer in optimizers):
        return "optimizer_states is empty"
    if [schedule["last_epoch"] for schedule in schedules] != [step] * len(optimizers):
        return f"lr_schedulers does not belong to step {step}"
    return None


def _tensors(tree: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}")


def _wrong_type(checkpoint: CheckpointData) -> str | None:
    if wrong := [key for key, valid in _VALIDATORS.items() if key in checkpoint and not valid(checkpoint[key])]:
        return f"its {wrong[0]} is {short(checkpoint[wrong[0]])}"
    if any(isinstance(value, float) and not math.isfinite(value) for value in leaves(checkpoint)):
        return "it contains NaN or an infinity"
    return None


def _named_tensors(state: object) -> bool:
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())


def _nested(tree: object) -> bool:
    return isinstance(tree, dict) and all(isinstance(value, dict) for value in tree.values())


def _mappings(states: object, *keys: str) -> bool:
    return isinstance(states, list) and all(isinstance(s, dict) and not set(keys) - set(s) for s in states)


def _optimizer_states(states: Any) -> bool:
    return _mappings(states, "state", "param_groups") and all(_nested(state["state"]) for state in states)


_VALIDATORS: dict[str, Callable[[object], bool]] = {
    "state_dict": _named_tensors,
    "global_step": lambda step: type(step) is int and 0 <= step < 1 << 53,
    "loops": lambda loops: isinstance(loops, dict) and all(map(_nested, loops.values())),
    "optimizer_states": _optimizer_states,
    "lr_schedulers": lambda states: _mappings(states, "last_epoch"),
}


def latest(folder: Path, keep: int = 2) -> tuple[Path, CheckpointData] | None:
    """Return the path and the content of the newest readable checkpoint in `folder`; None if there is no checkpoint.

    Unreadable newer files are skipped with a warning. Raises FileError if all files are unreadable.
    """
    problem: FileError | None = None
    for path in (folder / name for name in file_names(max(keep, 2))):
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
