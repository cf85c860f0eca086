"""Checkpoints that survive a kill, a full disk and a moved folder, and that are never trusted when read.

Two files are kept in a folder, `last.ckpt` and the one before it, `previous.ckpt`. A new one is written
beside them under another name, forced to the disk, and takes its place by a rename: a process that dies in
the middle leaves what was there. The format is torch's zip, whose check sums are compared when it is read.
"""

from __future__ import annotations

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

from threedgen.config.errors import ConfigError, short
from threedgen.run.disk import replacing
from threedgen.run.torch_file import leaves, read_torch

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
_NEEDED = ("state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers")


def file_names(keep: int = 2) -> list[str]:
    """Names of the kept checkpoints, newest first: last.ckpt, previous.ckpt, previous-2.ckpt, ..."""
    return [LAST, "previous.ckpt", *(f"previous-{n}.ckpt" for n in range(2, keep))][:keep]


def write(checkpoint: dict[str, Any], path: Path, keep: int = 2) -> None:
    """Puts `checkpoint` at `path`, a last.ckpt, or leaves what was there; the older ones are pushed down.

    Raises OSError, also where torch reports a write that failed as a RuntimeError.
    """

    def push_down() -> None:
        names = [path.with_name(name) for name in file_names(keep)]
        for newer, older in reversed(list(pairwise(names))):
            if newer.exists():
                os.replace(newer, older)

    try:
        with replacing(path, push_down) as file:
            torch.save(checkpoint, file)
    except RuntimeError as error:
        if re.search("inline_container|unexpected pos", str(error)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def read(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU; nothing in the file is executed.

    Raises ConfigError, one sentence, for a file that is cut off, changed, foreign or holds Python objects, and for a
    state from which nothing can go on.
    """
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _NEEDED):
        raise ConfigError(f"{path} is not the checkpoint of a run (it may hold plain weights)")
    if defect := _of_another_kind(checkpoint):
        raise ConfigError(f"{path} is damaged: {defect}")
    if defect := _defect(checkpoint):
        raise ConfigError(f"{path} cannot be gone on with: {defect}")
    return checkpoint


def _defect(checkpoint: dict[str, Any]) -> str | None:
    """What a state suffers from that would spoil the run without a word: a NaN, or a memory of steps that is lost."""
    for part in ("state_dict", "optimizer_states"):
        for name, value in _tensors(checkpoint[part], part):
            if torch.isnan(value).any():
                return f"{name} holds NaN"
    step, optimizers, schedules = (checkpoint[key] for key in ("global_step", "optimizer_states", "lr_schedulers"))
    if not optimizers or step and not all(optimizer["state"] for optimizer in optimizers):
        return "the state of its optimiser is missing (optimizer_states)"
    if [schedule["last_epoch"] for schedule in schedules] != [step] * len(optimizers):
        return f"its learning rates are not those of step {step} (lr_schedulers)"
    return None


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested dictionaries and lists, each with the path to it."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}")


def _of_another_kind(checkpoint: dict[str, Any]) -> str | None:
    """The first part that is not of the kind, or not a number, that a run saves."""
    if wrong := [key for key, kind in _KINDS.items() if key in checkpoint and not kind(checkpoint[key])]:
        return f"its {wrong[0]} is {short(checkpoint[wrong[0]])}"
    if any(isinstance(value, float) and not math.isfinite(value) for value in leaves(checkpoint)):
        return "it holds NaN or an infinity"
    return None


def _named_tensors(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(t, Tensor) for k, t in state.items())


def _mappings(states: Any, *keys: str) -> bool:
    """Is it a list of dicts with these keys?"""
    return isinstance(states, list) and all(isinstance(s, dict) and not set(keys) - set(s) for s in states)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "state_dict": _named_tensors,
    "global_step": lambda step: type(step) is int and 0 <= step < 1 << 53,
    "loops": lambda loops: isinstance(loops, dict),
    "optimizer_states": lambda states: _mappings(states, "state", "param_groups"),
    "lr_schedulers": lambda states: _mappings(states, "last_epoch"),
}


def latest(folder: Path, keep: int = 2) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint in `folder` and its content; None if there is no file at all.

    A newer one that cannot be read is passed over with one warning line. Raises ConfigError if none is good.
    """
    problem: ConfigError | None = None
    for path in (folder / name for name in file_names(max(keep, 2))):
        if not path.exists():
            continue
        try:
            checkpoint = read(path)
        except ConfigError as error:
            problem = problem or error
            continue
        if problem:
            logger.warning("%s; going on from %s (step %s)", problem, path.name, checkpoint["global_step"])
        return path, checkpoint
    if problem:
        raise problem
    return None
