"""When a run is saved (by the clock at the end of a step, at its end, on SIGTERM), and which checkpoints it may go on
from. How they get to the disk: checkpoint_file.py."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from threedgen.config import yaml_text
from threedgen.config.errors import ConfigError
from threedgen.run import folder as runs
from threedgen.train.callbacks import anywhere, nonfinite
from threedgen.train.checkpoint_file import LAST, file_names, free_megabytes, latest, read, remove_strays, space, write

__all__ = [
    "LAST",
    "AtomicCheckpointIO",
    "Checkpoint",
    "file_names",
    "free_megabytes",
    "latest",
    "read",
    "write",
]

logger = logging.getLogger(__name__)

CONFIG_KEY = "config_yaml"
NUMERICS_KEY = "numerics"
_SHOWN = 6


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to the disk, by `write` and `read`: whoever saves through the Trainer is safe."""

    def __init__(self, keep: int = 2) -> None:
        super().__init__()
        self.keep = keep

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(checkpoint, path, self.keep)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpoint(pl.callbacks.Checkpoint):
    """Saves `folder`/last.ckpt at the end of a step, every `seconds`, at the end of the run and on SIGTERM.

    By time and not by steps, so that the work a kill can cost is bounded on any machine. When to save does
    not influence the run. As a Lightning checkpoint callback it runs after all others; whatever a module
    changes in its own on_train_batch_end comes too late for it, so nothing that counts may be changed there.
    `healthy` is asked first: a run that is just failing does not replace its last good state.
    A full or failing disk is reported once and tried again; only the last save of a run raises ConfigError.
    The text `module.config_yaml`, if there is one, travels along; no path does.
    """

    def __init__(
        self,
        folder: Path,
        seconds: float = 30.0,
        keep: int = 2,
        healthy: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.seconds, self.keep, self.healthy, self.clock = seconds, keep, healthy, clock
        self._warned: set[str] = set()
        self._first = True
        self._saved_at = clock()
        self._saved_step = self._seen_step = -1
        self._whole = True  # nothing can resume from half of an accumulated step

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_strays(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = self.clock()
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1
        self._seen_step = trainer.global_step

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[CONFIG_KEY] = str(getattr(pl_module, CONFIG_KEY, ""))
        checkpoint[NUMERICS_KEY] = numerics()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._whole = trainer.global_step != self._seen_step
        self._seen_step = trainer.global_step
        due = self._whole and self.clock() - self._saved_at >= self.seconds
        if anywhere(trainer, due):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.save(trainer, pl_module) and self.healthy() and nonfinite(pl_module) is None:
            raise ConfigError(
                f"the last state could not be saved in {self.folder} ({space(self.folder)}): "
                "make room there and run the same command again"
            )

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException) and self._whole:  # Lightning raises it between two batches
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Saves now, on all ranks alike; False if there was a reason not to or it failed (said once)."""
        self._saved_at = self.clock()
        if trainer.global_step == self._saved_step:
            return True
        bad = nonfinite(module)
        if bad is not None or not self.healthy():
            if bad is not None:
                self._warn("nonfinite", f"{bad} is not finite at step {trainer.global_step}: not saved")
            return False
        try:
            trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        except OSError as error:
            reason = f"{error.strerror} ({space(self.folder)})"
            self._warn("disk", f"no checkpoint could be written to {self.folder}: {reason}; going on")
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the ranks that do not write wait
            return False
        if self._first and trainer.is_global_zero:
            read(self.folder / LAST)  # what cannot be read back is a fault to be seen now, not on resume
        self._first = False
        self._saved_step = trainer.global_step
        return True

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            logger.warning(message)
        self._warned.add(kind)


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
    before, now = checkpoint.get(NUMERICS_KEY, {}), numerics()
    other = [name for name in now if before.get(name, now[name]) != now[name]]
    if other:
        changes = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in other)
        logger.warning("results may differ in the last bits from a run without a stop: %s", changes)


def check_fits(module: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """Raises ConfigError if the weights in `checkpoint` have other names or shapes than those of `module`."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    stored = {name: tuple(getattr(value, "shape", ())) for name, value in checkpoint["state_dict"].items()}
    wrong = [name for name in [*wanted, *stored] if wanted.get(name) != stored.get(name)]
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"the checkpoint is of another architecture: {name} is {stored.get(name, 'absent')} in it "
            f"and {wanted.get(name, 'absent')} here ({len(set(wrong))} such tensors)"
        )
