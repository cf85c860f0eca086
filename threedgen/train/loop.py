"""Training loop: Lightning's Trainer on an endless stream of step numbers, with exact resume.

The argument `batch` of `training_step(self, batch, batch_idx)` is the number of batches since the start of the run,
also after a resume; without accumulation it is the optimisation step. It seeds the random numbers (run.seeding).

Modules must have their state in parameters and persistent buffers, and change their state inside the step, not in
on_train_batch_end, which runs after the checkpoint. A resumed run then gives the same bytes on the same CPU.
"""

import itertools
import logging
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.exceptions import SIGTERMException

from threedgen.config import registry
from threedgen.config.errors import ConfigError, DiskFull
from threedgen.config.sections import CheckpointConfig, LoggerConfig, TrainerConfig, is_interactive, srun_tasks
from threedgen.run.disk import free_megabytes, make_folder, write_atomic, writing
from threedgen.run.folder import CHECKPOINTS, MAX_STEPS_KEY, restore_keys, resume_keys
from threedgen.run.interrupts import Interrupts
from threedgen.run.memory import keep_freed_memory
from threedgen.run.options import is_rank_zero
from threedgen.run.progress import silence_lightning
from threedgen.run.threads import set_threads, threads_of
from threedgen.run.torch_file import check_architecture
from threedgen.train.callbacks import FiniteGuard, Logging, Seeding, StopOnInterrupt, Validation
from threedgen.train.checkpoint import CONFIG_KEY, AtomicCheckpointIO, Checkpoint, check_config, check_weights
from threedgen.train.checkpoint_file import latest
from threedgen.train.progress import Progress
from threedgen.train.ranks import WatchRanks
from threedgen.train.status import Status
from threedgen.train.system import System

logger = logging.getLogger(__name__)

ONE_MACHINE = "a training runs on one machine, with one process per device. Start it without a launcher"


class TrainingConfig(Protocol):
    """Keys that a config must have for the training loop.

    They are `seed`, `threads` (number of CPU threads, None: one per core), and the sections `trainer` (options of
    Lightning's Trainer) and `checkpoint` (when checkpoints are saved).
    """

    seed: int
    threads: int | None
    trainer: TrainerConfig
    checkpoint: CheckpointConfig


def fit(
    module: System,
    config: TrainingConfig,
    folder: Path | str,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Iterable[pl.Callback] = (),
    *,
    metrics: Iterable[str] = (),
    interrupts: Interrupts | None = None,
) -> Status:
    """Train `module` up to config.trainer.max_steps, with checkpoints in `folder`/checkpoints.

    If config.checkpoint.finish (flag --finish) and `resume` are True and there is a checkpoint, nothing is trained:
    `module` is restored from the checkpoint, so that the caller can write its results. The status is then INTERRUPTED
    if the checkpoint has fewer steps than config.trainer.max_steps, as after a stop by Ctrl-C, else FINISHED.

    Args:
        module: module to train.
        config: config of the run.
        folder: run folder.
        resume: continue from the newest readable checkpoint, if there is one.
        quiet: show no progress.
        callbacks: additional Lightning callbacks.
        metrics: names in `module.metrics` to show in the progress bar.
        interrupts: Ctrl-C handler of the caller, which stays active after the training; None: a new handler.

    Returns:
        Final status of the training. After TERMINATED (SIGTERM) the process should exit soon.

    Raises:
        ConfigError: the checkpoint has another config, other weights or more steps than the run, `folder` already has
            checkpoints and `resume` is False, or torchrun or SLURM started the run on several machines or with another
            number of processes than `trainer.devices`.
        DiskFull: the disk has no room for the checkpoints.
        KeyboardInterrupt: Ctrl-C was pressed a second time.
    """
    if int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1:  # torchrun's number of machines
        raise ConfigError(ONE_MACHINE, "trainer.devices")
    silence_lightning()
    set_threads(threads_of(config))
    keep_freed_memory()
    folder = Path(folder).resolve()
    checkpoints = folder / CHECKPOINTS
    checkpoint_io = AtomicCheckpointIO()
    path, max_steps = _resume_path(module, checkpoints, config, resume, checkpoint_io), None
    if config.checkpoint.finish and checkpoint_io.checkpoint is not None:
        max_steps = checkpoint_io.checkpoint["global_step"]
    _check_space(module, checkpoints)
    guard, every = FiniteGuard(), config.trainer.val_check_interval
    with interrupts or Interrupts() as active, determinism(deterministic(config.trainer)):
        stop = StopOnInterrupt(active)
        trainer = _trainer(
            config,
            folder,
            checkpoint_io,
            max_steps or config.trainer.max_steps,
            [
                WatchRanks(),
                Seeding(config.seed),
                guard,
                *callbacks,
                *([Validation(every, folder)] if every else []),
                Logging(folder, config.trainer.log_every_n_steps),  # also logs what the validation has measured
                stop,
                Progress(metrics=metrics, quiet=quiet),
                Checkpoint(checkpoints, config.checkpoint.seconds, lambda: not guard.in_a_row, config.checkpoint.keep),
            ],
        )
        terminated = _run(trainer, module, path)
        if terminated or stop.terminated:
            return Status.TERMINATED
    guard.check_end(trainer, module)
    if guard.failure:
        return Status.FAILED
    return Status.FINISHED if trainer.global_step >= config.trainer.max_steps else Status.INTERRUPTED


def _resume_path(
    module: System, checkpoints: Path, config: TrainingConfig, resume: bool, checkpoint_io: AtomicCheckpointIO
) -> Path | None:
    with writing(checkpoints):
        make_folder(checkpoints)
    if not resume and any(checkpoints.glob("*.ckpt")):
        raise ConfigError(f"{checkpoints.parent} already contains a run. Resume it or choose another folder")
    found = latest(checkpoints)
    if found is None:
        return None
    path, checkpoint = found
    check_config(checkpoint, module.config_yaml, resume_keys(config))
    try:
        check_weights(checkpoint, module.weights)
        if (done := checkpoint["global_step"]) > (max_steps := config.trainer.max_steps):
            problem = f"{checkpoints.parent} already has {done} steps. Set at least {done}, or choose another folder"
            raise ConfigError(problem, MAX_STEPS_KEY, str(max_steps))
    except ConfigError:
        keys = (MAX_STEPS_KEY, *getattr(config, "movable_inputs", ()))
        restore_keys(checkpoints.parent, config, checkpoint.get(CONFIG_KEY, ""), keys)
        raise
    module.resize(checkpoint["state_dict"])
    check_architecture(checkpoint["state_dict"], module.state_dict(), "the checkpoint")
    checkpoint_io.checkpoint = checkpoint
    return path


def _check_space(module: torch.nn.Module, folder: Path) -> None:
    # room for two checkpoints, and for one more while it is written
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    state = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    needed = 3 * (state + 2 * trained) / 2**20  # Adam has two moments
    free = free_megabytes(folder)
    if free < needed:
        raise DiskFull(f"not enough disk space for checkpoints in {folder}: {free:.0f} MB free, {needed:.0f} needed")


def _trainer(
    config: TrainingConfig, folder: Path, saver: AtomicCheckpointIO, max_steps: int, callbacks: list[pl.Callback]
) -> pl.Trainer:
    options = config.trainer
    if options.accelerator == "auto" and not torch.cuda.is_available():
        options = options.model_copy(update={"accelerator": "cpu"})  # as `task.device`; Lightning would take MPS
    plugins: list[Any] = [saver]
    if srun_tasks() > 1:
        plugins.append(SLURMEnvironment(auto_requeue=False))
    elif "SLURM_NTASKS" in os.environ:  # this process starts the others; by default Lightning expects them from Slurm
        plugins.append(LightningEnvironment())
    return pl.Trainer(
        **options.model_dump(exclude={"val_check_interval", "deterministic"})
        | {"max_steps": max_steps, "deterministic": deterministic(options)},
        strategy=_strategy(options),
        callbacks=callbacks,
        plugins=plugins,
        default_root_dir=str(folder),
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=True,  # by our callback only
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=_logger(config, folder),
    )


def _strategy(options: TrainerConfig) -> str:
    gpus = torch.cuda.device_count() if options.accelerator in ("auto", "gpu", "cuda") else 0
    if options.devices == "auto" and is_interactive():
        return "auto"  # of several GPUs, Lightning then takes one
    count = gpus if options.devices == "auto" else options.devices
    return "ddp_find_unused_parameters_true" if count > 1 else "auto"  # DDP that allows parameters without gradients


def _logger(config: Any, folder: Path) -> Any:
    options = getattr(config, "logger", None)
    return False if options is None else registry.build("logger", options, folder) or False


def csv_logger(options: LoggerConfig, folder: Path) -> None:
    """Return None: no Lightning logger is needed, because every run writes metrics.csv. The arguments are not used."""


def tensorboard_logger(options: LoggerConfig, folder: Path) -> Logger:
    return TensorBoardLogger(folder, name="tensorboard", version="")


def wandb_logger(options: LoggerConfig, folder: Path) -> Logger:
    """Return a logger to Weights & Biases. A resumed run continues its curves: its random id is in RUN/wandb-id.

    The project is the environment variable WANDB_PROJECT, or "threedgen". `options` is not used.
    """
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:  # of an earlier training in this process
        wandb.finish()
    path, project = folder / "wandb-id", os.environ.get("WANDB_PROJECT", "threedgen")
    if is_rank_zero() and not path.is_file():
        write_atomic(path, uuid.uuid4().hex)
    run_id = path.read_text(encoding="utf-8") if path.is_file() else None  # only rank 0 logs
    return WandbLogger(name=folder.name, id=run_id, save_dir=folder, project=project, resume="allow")


def _run(trainer: pl.Trainer, module: pl.LightningModule, path: Path | None) -> bool:
    def steps() -> Iterator[int]:  # a generator reads global_step late, after the checkpoint is restored
        yield from itertools.count(trainer.global_step * trainer.accumulate_grad_batches)

    try:
        trainer.fit(module, steps(), ckpt_path=str(path) if path else None, weights_only=True)
    except SIGTERMException:
        return True
    except ValueError as error:
        if "in Lightning, but" in str(error):  # other processes than torchrun or SLURM has started
            raise ConfigError(f"{ONE_MACHINE}, or with as many processes ({error})", "trainer.devices") from None
        raise
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1 by itself
            raise KeyboardInterrupt from None
        raise
    return trainer.received_sigterm


def deterministic(options: TrainerConfig) -> bool | Literal["warn"]:
    """Return the value for the option `deterministic` of Lightning's Trainer: True, False or "warn" (only warnings).

    It is `options.deterministic`, except that on CUDA "warn" becomes False. There, deterministic algorithms would cost
    time and still not make runs repeatable, because some sums in the Triton kernels of the hash grid have no fixed
    order.
    """
    on_gpu = options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return False if options.deterministic == "warn" and on_gpu else options.deterministic


@contextmanager
def determinism(setting: bool | Literal["warn"]) -> Iterator[None]:
    """Set torch's deterministic mode inside a context: on (True), off (False), or on with warnings only ("warn").

    If the mode is off, cuDNN measures its algorithms and takes the fastest (`cudnn.benchmark`). By default torch's
    deterministic mode also fills new memory with NaN; this function turns that off. On exit from the context the
    deterministic mode is off.
    """
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning does: cuBLAS then repeats its sums
    torch.use_deterministic_algorithms(setting is not False, warn_only=setting == "warn")
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, setting is False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before
