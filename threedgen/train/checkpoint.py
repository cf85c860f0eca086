"""Callback that saves checkpoints, and checks that a checkpoint fits the run that resumes from it."""

import importlib
import logging
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numba
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT

from threedgen.config import plugins, yaml_text
from threedgen.config.errors import ConfigError
from threedgen.config.optional import installed
from threedgen.run import folder as runs
from threedgen.run.disk import free_megabytes, write_error
from threedgen.train.callbacks import StepCallback, any_rank, first_nonfinite
from threedgen.train.checkpoint_file import KEPT, LAST, CheckpointData, write
from threedgen.train.system import System

logger = logging.getLogger(__name__)

CONFIG_KEY = "config_yaml"
WEIGHTS_KEY = "weights"
NUMERICS_KEY = "numerics"
PLUGINS_KEY = "plugins"
DRIVER = Path("/proc/driver/nvidia/version")  # text of NVIDIA's driver on Linux


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning plug-in that writes checkpoints atomically.

    On resume it reads no file: it gives Lightning the attribute `checkpoint`, a checkpoint that the training loop has
    read and checked before.
    """

    checkpoint: CheckpointData | None = None

    def save_checkpoint(self, checkpoint: CheckpointData, path: _PATH, storage_options: object = None) -> None:
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: _PATH, map_location: object = None, weights_only: bool | None = None
    ) -> CheckpointData:
        assert self.checkpoint is not None
        checkpoint, self.checkpoint = self.checkpoint, None  # frees its memory after the restore
        return checkpoint


class Checkpoint(StepCallback, pl.callbacks.Checkpoint):
    """Callback that saves `folder`/last.ckpt at the end of the run, and about every `seconds` seconds before.

    If `keep` is not None, kept.ckpt is saved once, after `keep` seconds of training (summed over all resumptions), to
    compare runs at equal time. last.ckpt is not saved while a weight is not finite, or while the function `healthy`
    returns False, which means that the last step was skipped because its loss or a gradient was not finite. A write
    that fails during the run is logged once and retried after a later step; if the write at the end fails, DiskFull or
    FileError is raised.
    """

    def __init__(self, folder: Path, seconds: float, healthy: Callable[[], bool], keep: float | None = None) -> None:
        self.folder, self.seconds, self.healthy, self.keep = folder, seconds, healthy, keep
        self._warned = set[str]()
        self._write_error: OSError | None = None
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._plugins = plugins.identify()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: CheckpointData) -> None:
        module: Any = pl_module
        checkpoint[CONFIG_KEY], checkpoint[WEIGHTS_KEY] = module.config_yaml, dict(module.weights)
        checkpoint[NUMERICS_KEY], checkpoint[PLUGINS_KEY] = numerics(trainer), self._plugins

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: CheckpointData) -> None:
        warn_numerics(checkpoint, numerics(trainer))
        plugins.warn_changed(checkpoint.get(PLUGINS_KEY), self.folder.parent)

    def after_step(self, trainer: Trainer, module: System, outputs: STEP_OUTPUT) -> None:
        if any_rank(trainer, time.monotonic() - self._saved_at >= self.seconds):
            self.save(trainer, module)
        if self.keep is not None and any_rank(trainer, module.seconds()["optimise"] >= self.keep):
            self.keep = None
            if not (self.folder / KEPT).exists():
                self._write(trainer, KEPT)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.save(trainer, pl_module) and self._write_error is not None:
            raise write_error(self.folder, self._write_error) from self._write_error

    def save(self, trainer: Trainer, module: LightningModule) -> bool:
        """Save last.ckpt for the current step. All ranks must call this method.

        Returns True if last.ckpt has the current step, saved by this call or an earlier one; False if a weight is not
        finite, the last step was skipped, or the write failed.
        """
        self._saved_at, self._write_error = time.monotonic(), None
        if trainer.global_step == self._saved_step:
            return True
        if bad := first_nonfinite(module):
            self._warn("nonfinite", f"no checkpoint saved at step {trainer.global_step}: {bad} is not finite")
        if bad or not self.healthy() or not self._write(trainer, LAST):
            return False
        self._saved_step = trainer.global_step
        return True

    def _write(self, trainer: Trainer, name: str) -> bool:
        try:
            trainer.save_checkpoint(self.folder / name, weights_only=False)
        except OSError as error:
            self._write_error = error
            reason = f"{error.strerror} ({self._space()})"
            self._warn("disk", f"cannot write a checkpoint to {self.folder}: {reason}. The training continues")
            trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
            return False
        return True

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            logger.warning(message)
        self._warned.add(kind)

    def _space(self) -> str:
        try:
            return f"{free_megabytes(self.folder):.0f} MB free"
        except OSError:
            return "the folder is gone"


def check_config(checkpoint: CheckpointData, config_yaml: str, changeable: Iterable[str] = ()) -> None:
    """Raise ConfigError if a config key that changes the result differs between a checkpoint and the run.

    Keys that may change on resume, such as trainer.max_steps (`NEUTRAL_KEYS`) and those in `changeable`, are not
    compared. `config_yaml` is the config of the run as YAML. If `config_yaml` is "", or the checkpoint has no config,
    nothing is compared.
    """
    old = checkpoint.get(CONFIG_KEY, "")
    if not old or not config_yaml:
        return
    before, after = (yaml_text.parse(text, "the config in the checkpoint") for text in (old, config_yaml))
    if changed := runs.differences(before, after, changeable):
        raise ConfigError(f"the checkpoint has another config: {'; '.join(changed)}. Use another output folder")


def check_weights(checkpoint: CheckpointData, weights: Mapping[str, str]) -> None:
    """Raise ConfigError if files of the run, such as weights, differ from those with which a checkpoint was trained.

    `weights` maps config keys to SHA-256 hashes of the files. Keys that the checkpoint lacks are not compared.
    """
    before = checkpoint.get(WEIGHTS_KEY, {})
    for key, now in weights.items():
        if before.get(key, now) != now:
            problem = f"the checkpoint was made with other content (SHA-256 {before[key][:12]}..., now {now[:12]}...)"
            raise ConfigError(f"{problem}. Use the same files, or another output folder", key)


def numerics(trainer: Trainer) -> dict[str, str]:
    """Return facts that affect the last bits of results, as texts by name. Checkpoints contain them.

    The names are "torch", "lightning" and "numba" (versions), "processor" (architecture), "threads" and "devices"
    (numbers), "device" ("cpu" or "cuda", for example), and on CUDA also "GPU" (its name) and the versions "CUDA",
    "driver" and "triton".
    """
    numba_threads = numba.get_num_threads()  # first: this call may change torch's number, see threads.py
    device = trainer.strategy.root_device
    result = {
        "torch": str(torch.__version__),  # a plain str: checkpoints contain no other classes
        "lightning": pl.__version__,
        "numba": numba.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": f"{torch.get_num_threads()}/{numba_threads}",
        "device": device.type,
        "devices": f"{trainer.world_size} ({type(trainer.strategy).__name__})",
    }
    if device.type == "cuda":
        triton = importlib.import_module("triton").__version__ if installed("triton") else "none"
        names = {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)}
        result |= {**names, "driver": _driver(), "triton": triton}
    return result


def _driver() -> str:
    text = DRIVER.read_text(encoding="ascii", errors="replace") if DRIVER.exists() else ""
    found = re.search(r"Kernel Module .*?(\d+(\.\d+)+)", text)
    return found[1] if found else "unknown"


def warn_numerics(checkpoint: CheckpointData, now: dict[str, str]) -> None:
    """Log a warning if versions or hardware differ between a checkpoint and this run.

    `now` has the facts about this run, as `numerics` returns them. Nothing is compared if the checkpoint has none.
    """
    before = checkpoint.get(NUMERICS_KEY, {})
    names = [name for name in (before | now) if before and before.get(name) != now.get(name)]
    changes = [f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}" for name in names]
    if changes:
        logger.warning("results may differ from those of an uninterrupted run: %s", ", ".join(changes))
