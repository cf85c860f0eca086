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
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from threedgen.config import yaml_text
from threedgen.config.errors import ConfigError, short
from threedgen.run import folder as runs
from threedgen.run.torch_file import leaves, read_torch
from threedgen.train.callbacks import StepCallback, anywhere, nonfinite

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
CONFIG_KEY = "config_yaml"
NUMERICS_KEY = "numerics"
_NEEDED = ("state_dict", "global_step", "loops", "optimizer_states", "lr_schedulers")
_SHOWN = 6


def file_names(keep: int = 2) -> list[str]:
    """Names of the kept checkpoints, newest first: last.ckpt, previous.ckpt, previous-2.ckpt, ..."""
    return [LAST, "previous.ckpt", *(f"previous-{n}.ckpt" for n in range(2, keep))][:keep]


# --- to the disk and back ------------------------------------------------------------------------------


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
        with runs.replacing(path, push_down) as file:
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


def check_restored(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Raises ConfigError if what an optimiser remembers of a weight is not of the weight's shape."""
    for state in (optimizer.state for optimizer in optimizers):
        for weight, kept in state.items():
            if odd := [n for n, t in kept.items() if isinstance(t, Tensor) and t.ndim and t.shape != weight.shape]:
                shapes = f"{tuple(kept[odd[0]].shape)} instead of {tuple(weight.shape)}"
                raise ConfigError(f"the optimiser's state is of another network ({odd[0]}: {shapes})")


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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, by `write` and `read`."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(checkpoint, Path(path), self.keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))


# --- when --------------------------------------------------------------------------------------------------


class Checkpoint(StepCallback, pl.callbacks.Checkpoint):
    """Saves `folder`/last.ckpt at the end of a step, every `seconds` and at the end of the run.

    By time and not by steps, so that the work a kill can cost is bounded on any machine. When to save does
    not influence the run. As a Lightning checkpoint callback it runs after all others; whatever a module
    changes in its own on_train_batch_end comes too late for it, so nothing that counts may be changed there.
    `healthy` is asked first: a run that is just failing does not replace its last good state.
    A full or failing disk is reported once and tried again; only the last save of a run raises ConfigError.
    The text `module.config_yaml`, if there is one, travels along; no path does.
    """

    def __init__(self, folder: Path, seconds: float, healthy: Callable[[], bool]) -> None:
        self.folder, self.seconds, self.healthy = folder, seconds, healthy
        self._warned = set[str]()
        self._saved_at, self._saved_step = time.monotonic(), -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1
        check_restored(trainer.optimizers)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        module: Any = pl_module
        checkpoint[CONFIG_KEY] = module.config_yaml
        checkpoint[NUMERICS_KEY] = numerics()

    def after_step(self, trainer: pl.Trainer, module: Any, outputs: Any) -> None:
        if anywhere(trainer, time.monotonic() - self._saved_at >= self.seconds):
            self.save(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.save(trainer, pl_module) and self.healthy() and nonfinite(pl_module) is None:
            raise ConfigError(
                f"the last state could not be saved in {self.folder} ({self._space()}): "
                "make room there and run the same command again"
            )

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Saves now, on all ranks alike; False if there was a reason not to or it failed (said once)."""
        self._saved_at = time.monotonic()
        if trainer.global_step == self._saved_step:
            return True
        if bad := nonfinite(module):
            self._warn("nonfinite", f"{bad} is not finite at step {trainer.global_step}: not saved")
        if bad or not self.healthy():
            return False
        try:
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        except OSError as error:
            reason = f"{error.strerror} ({self._space()})"
            self._warn("disk", f"no checkpoint could be written to {self.folder}: {reason}; going on")
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the ranks that do not write wait
            return False
        self._saved_step = trainer.global_step
        return True

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            logger.warning(message)
        self._warned.add(kind)

    def _space(self) -> str:
        """Free space as part of a sentence."""
        try:
            return f"{runs.free_megabytes(self.folder):.0f} MB free"
        except OSError:
            return "the folder is gone"


# --- may it be continued here? -------------------------------------------------------------------------


def check_config(checkpoint: dict[str, Any], config_yaml: str) -> None:
    """Raises ConfigError, naming the keys, if the config that made `checkpoint` differs in what counts.

    Keys that only change how long a run runs and what it shows may differ (runs.HARMLESS). A checkpoint or a
    run without a config (a module used from Python) is not compared.
    """
    old = str(checkpoint.get(CONFIG_KEY, ""))
    if not old or not config_yaml:
        return
    before, after = (yaml_text.parse(text, "the config in the checkpoint") for text in (old, config_yaml))
    if not isinstance(before, dict):
        raise ConfigError(f"the config in the checkpoint is damaged (it holds {short(before)})")
    changed = runs.differences(before, after)
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ConfigError(
            f"the checkpoint was made with another config ({'; '.join(changed[:_SHOWN])}{more}): "
            "use the old values, or another output folder"
        )


def numerics() -> dict[str, str]:
    """What decides the last bits of results: versions, processor, threads."""
    rays = numba.get_num_threads()  # asked first: its first call may change torch's number, see loop.set_threads
    return {
        "torch": str(torch.__version__),  # a class of torch's own, which a checkpoint must not hold
        "lightning": pl.__version__,
        "numba": numba.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()}/{rays}",
    }


def warn_numerics(checkpoint: dict[str, Any]) -> None:
    """One line if the run goes on under other circumstances: then it may differ in the last bits."""
    before, now = checkpoint.get(NUMERICS_KEY), numerics()
    before = before if isinstance(before, dict) else {}
    changes = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    if changes:
        logger.warning("results may differ in the last bits from a run without a stop: %s", ", ".join(changes))
