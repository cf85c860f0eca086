"""When a run saves its state, and whether it may go on from one."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
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
from threedgen.run.disk import free_megabytes
from threedgen.train.callbacks import StepCallback, anywhere, nonfinite
from threedgen.train.checkpoint_file import LAST, read, write

logger = logging.getLogger(__name__)

CONFIG_KEY = "config_yaml"
WEIGHTS_KEY = "weights"
NUMERICS_KEY = "numerics"
_SHOWN = 6


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, by `write` and `read`."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(checkpoint, Path(path), self.keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))


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
        checkpoint[CONFIG_KEY], checkpoint[WEIGHTS_KEY] = module.config_yaml, dict(module.weights)
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
            return f"{free_megabytes(self.folder):.0f} MB free"
        except OSError:
            return "the folder is gone"


def check_restored(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Raises ConfigError if what an optimiser remembers of a weight is not of the weight's shape."""
    for state in (optimizer.state for optimizer in optimizers):
        for weight, kept in state.items():
            if odd := [n for n, t in kept.items() if isinstance(t, Tensor) and t.ndim and t.shape != weight.shape]:
                shapes = f"{tuple(kept[odd[0]].shape)} instead of {tuple(weight.shape)}"
                raise ConfigError(f"the optimiser's state is of another network ({odd[0]}: {shapes})")


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


def check_weights(checkpoint: dict[str, Any], weights: Mapping[str, str]) -> None:
    """Raises ConfigError if `checkpoint` was made with other weights than those of these SHA-256s, by the keys that
    name them.

    Checkpoints of earlier releases do not say so; see `runs.differences` for those of their toybox prior.
    """
    before: Any = checkpoint.get(WEIGHTS_KEY)
    for key, now in weights.items() if isinstance(before, dict) else ():
        if before.get(key, now) != now:
            raise ConfigError(
                f"the checkpoint was made with other weights (SHA-256 {str(before[key])[:12]}..., these have "
                f"{now[:12]}...): set it to those that it was made with, or begin anew in another output folder",
                key,
            )


def numerics() -> dict[str, str]:
    """What decides the last bits of results: versions, processor, threads."""
    rays = numba.get_num_threads()  # asked first: its first call may change torch's number, see threads.py
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
