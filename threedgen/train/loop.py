"""The one training loop: Lightning's Trainer on an endless stream of steps, with everything a run needs.

`training_step(self, batch, batch_idx)` of a System gets as its batch only a number: that of the optimisation step, or
with accumulation that of the batch since the beginning; it is the same after a resume. Draws are keyed by it
(threedgen.run.seeding), and the global generators are seeded from it. State that counts lives in parameters and
persistent buffers and is changed inside the step, never in the module's own on_train_batch_end, which comes
after the checkpoint. Then a resumed run is, byte for byte on the same CPU, the run that was not interrupted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException

from threedgen.config.errors import ConfigError, in_a_line, short
from threedgen.run.disk import free_megabytes
from threedgen.run.folder import CHECKPOINTS, LENGTH
from threedgen.run.interrupts import Interrupts
from threedgen.run.memory import keep_freed_memory
from threedgen.run.progress import silence_lightning
from threedgen.run.threads import set_threads, threads_of
from threedgen.run.torch_file import compare, require_finite
from threedgen.train.callbacks import FiniteGuard, Logging, Seeding, StopOnInterrupt, Validation
from threedgen.train.checkpoint import AtomicCheckpointIO, Checkpoint, check_config, check_weights, warn_numerics
from threedgen.train.checkpoint_file import latest
from threedgen.train.progress import Progress
from threedgen.train.status import Status
from threedgen.train.system import System

logger = logging.getLogger(__name__)


def fit(
    module: System,
    config: Any,
    folder: Path | str,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Iterable[pl.Callback] = (),
    *,
    metrics: Iterable[str] = (),
    interrupts: Interrupts | None = None,
) -> Status:
    """Trains `module` up to config.trainer.max_steps, with checkpoints in `folder`/checkpoints.

    Returns how it ended; after TERMINATED the process should end soon. `config` has `trainer`, `checkpoint`, `seed` and
    `threads` (threedgen.config.sections). `resume`: go on from the newest good checkpoint, or from the beginning if
    there is none. `metrics`: names in `module.metrics` to show. `interrupts`: the caller's, to obey Ctrl-C afterwards
    too. Raises ConfigError for a checkpoint that does not fit and for a disk that is full, KeyboardInterrupt at the
    second Ctrl-C.
    """
    silence_lightning()
    set_threads(threads_of(config))
    keep_freed_memory()
    folder = Path(folder).resolve()
    checkpoints = folder / CHECKPOINTS
    path = _go_on_from(module, checkpoints, config, resume)
    _check_space(module, checkpoints, config.checkpoint.keep)
    guard, every = FiniteGuard(), config.trainer.val_check_interval
    with interrupts or Interrupts() as heard, _determinism_restored():
        stop = StopOnInterrupt(heard)
        trainer = _trainer(
            config,
            folder,
            [
                Seeding(config.seed),
                guard,
                *callbacks,
                Logging(folder, config.trainer.log_every_n_steps),
                *([Validation(every, folder)] if every else []),
                stop,
                Progress(metrics=metrics, quiet=quiet),
                Checkpoint(checkpoints, config.checkpoint.seconds, lambda: not guard.in_a_row),
            ],
        )
        with _blaming(path, lambda: bool(stop.steps)):
            terminated = _terminated(trainer, module, path)
        if terminated or stop.terminated:
            return Status.TERMINATED
    guard.check_end(trainer, module)
    if guard.failure:
        return Status.FAILED
    return Status.FINISHED if trainer.global_step >= trainer.max_steps else Status.INTERRUPTED


def _go_on_from(module: System, checkpoints: Path, config: Any, resume: bool) -> Path | None:
    """The checkpoint to resume from. Raises ConfigError if it does not fit, is too late, or if none is wanted."""
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{checkpoints} cannot be made: {error.strerror}") from None
    if not resume and any(checkpoints.glob("*.ckpt")):
        raise ConfigError(f"{checkpoints.parent} holds a run already: resume it or choose another folder")
    found = latest(checkpoints, config.checkpoint.keep)
    if found is None:
        return None
    path, checkpoint = found
    check_config(checkpoint, module.config_yaml)
    check_weights(checkpoint, module.weights)
    compare(checkpoint["state_dict"], module.state_dict(), "the checkpoint")
    require_finite(
        {name: checkpoint["state_dict"][name] for name, _ in module.named_parameters()}, f"the weights in {path}"
    )
    done, asked = checkpoint["global_step"], config.trainer.max_steps
    if done > asked:
        told = f"{checkpoints.parent} has {done} steps already; ask for as many or more, or choose another folder"
        raise ConfigError(told, LENGTH, str(asked))
    warn_numerics(checkpoint)
    return path


def _check_space(module: torch.nn.Module, folder: Path, keep: int) -> None:
    """Raises ConfigError if the disk has no room for the checkpoints that are kept and one being written."""
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    state = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    needed = (keep + 1) * (state + 2 * trained) / 2**20  # Adam has two moments
    free = free_megabytes(folder)
    if free < needed:
        raise ConfigError(f"{folder} has {free:.0f} MB free, but the run's checkpoints need {needed:.0f} MB")


def _trainer(config: Any, folder: Path, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Trainer on an endless stream of steps, without Lightning's own logging, progress, validation and requeueing."""
    plugins: list[Any] = [AtomicCheckpointIO(config.checkpoint.keep)]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return pl.Trainer(
        **config.trainer.model_dump(exclude={"val_check_interval"}),
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=str(folder),
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=True,  # only ours is in the list
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )


def _terminated(trainer: pl.Trainer, module: pl.LightningModule, path: Path | None) -> bool:
    """Runs it; True if SIGTERM came before the first step. Raises KeyboardInterrupt at the second Ctrl-C."""

    def steps() -> Iterator[int]:  # begins when it is first asked, and the checkpoint is restored
        yield from itertools.count(trainer.global_step * trainer.accumulate_grad_batches)

    try:
        trainer.fit(module, steps(), ckpt_path=str(path) if path else None, weights_only=True)
    except SIGTERMException:
        return True
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1 by itself
            raise KeyboardInterrupt from None
        raise
    return trainer.received_sigterm


@contextmanager
def _blaming(checkpoint: Path | None, going_on: Callable[[], bool]) -> Iterator[None]:
    """What fails inside before the run is `going_on` from a checkpoint is the fault of that: Lightning and the
    optimisers take it apart without looking. Then raises ConfigError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if checkpoint is None or going_on() or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(f"{checkpoint} does not fit this run ({short(in_a_line(error), 160)[1:-1]})") from error


@contextmanager
def _determinism_restored() -> Iterator[None]:
    """Lightning switches deterministic algorithms on for good; here only as long as it is entered.

    With them torch fills fresh memory with NaN, which costs time and is left out.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
