"""Run a task: start or resume it, write its results and summary, and return the exit code.

    def work(task: Task) -> Status:
        return task.train(MySystem(task.config), metrics=("loss",))

    run = partial(run_task, work, result="prior", files=("prior/model_index.json",))

A finished run is not repeated. A run that Ctrl-C stopped can be resumed, or --finish writes its results so far.
"""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from threedgen.config import plugins, registry
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, key_prefix
from threedgen.run import cache
from threedgen.run.disk import Tree, writing
from threedgen.run.folder import finished
from threedgen.run.interrupts import Interrupts, Stopped
from threedgen.run.lock import release
from threedgen.run.metrics import read_summary, write_summary
from threedgen.run.options import is_rank_zero, local_rank
from threedgen.run.progress import ProgressDisplay, silence_lightning
from threedgen.run.text import say
from threedgen.run.threads import set_threads, threads_of
from threedgen.train.status import Status

if TYPE_CHECKING:  # Lightning takes seconds to import: only code that trains imports it, after the first output
    import pytorch_lightning as pl

    from threedgen.train.system import System

logger = logging.getLogger(__name__)


class Task:
    """Run of a task, with methods that load the prior, train a module and write summary.json.

    A task is what the program does in a run, such as a training or an evaluation; the config key `task` names it.

    Attributes:
        config: config of the run.
        folder: run folder, `config.out`.
        files: result files, relative to the folder.
        resume: whether an earlier run is continued.
        weights: SHA-256 of the files that the run starts from, such as weights and images, by config key.
        finish: whether the results are written now, before the last step (flag --finish).
        summarised: whether this process has written summary.json.
    """

    def __init__(self, config: Any, resume: Path | None = None, quiet: bool = False, files: Iterable[str] = ()) -> None:
        """Prepare a run in the folder `config.out`.

        Args:
            config: config of the run.
            resume: folder of the run to continue; None: start a new run.
            quiet: print neither weight files nor progress.
            files: result files, relative to the run folder. `summarise` lists the existing ones in summary.json.
        """
        self.config, self.resume, self.quiet, self.files = config, resume is not None, quiet, tuple(files)
        self.folder, self.start_time = Path(str(config.out)), time.monotonic()
        self.is_global_zero = True  # set by `fit`
        self.weights = dict[str, str]()  # config key -> SHA-256 of the weights that the run starts from
        self.previous_seconds = 0.0  # of earlier processes, up to their last checkpoints
        checkpoint = getattr(config, "checkpoint", None)
        self.finish = checkpoint is not None and checkpoint.finish  # write results before the last step
        self.summarised = False
        if self.resume and (checkpoint is None or self.is_finished()):  # otherwise the checkpoint's record counts
            plugins.warn_changed(read_summary(self.folder).get("plugins"), self.folder)

    def is_finished(self) -> bool:
        """Return whether the folder has all results of the run."""
        trainer = getattr(self.config, "trainer", None)
        return finished(self.folder, trainer.max_steps if trainer else None)

    def load_prior(self, compact: bool = False) -> Any:
        """Load the config's prior (diffusion model) on the device of the run, and return it.

        The SHA-256 of its weight files is added to the attribute `weights`. If `compact` is True, a UNet on a GPU
        is loaded in the dtype of the option `prior.dtype` instead of float32, which saves memory but excludes training.
        On CUDA, cuDNN benchmarks its algorithms and uses the fastest, unless the option `trainer.deterministic` is
        True. Raises ConfigError if the weights are missing or invalid.
        """
        prior, trainer = self.config.prior, getattr(self.config, "trainer", None)
        place = device(trainer.accelerator if trainer else "auto")
        if place.startswith("cuda"):
            torch.backends.cudnn.benchmark = getattr(trainer, "deterministic", False) is not True
        prior = prior.compact() if compact else prior
        with key_prefix("prior"):  # before hashing, which reads all files again
            built = registry.build("prior", prior, place)
        self.record_weights(prior.identify(), "prior.")
        return built

    def record_weights(self, identities: Mapping[str, Any], section: str = "") -> None:
        """Print the weight files that the run starts from; store their SHA-256 in `self.weights` for the checkpoints.

        `identities` maps config keys to objects whose `str()` is the text to print. Their attribute `digest` is the
        SHA-256 of the tensors, `configs` that of the configs beside them, or "". `section` is a prefix of the keys,
        such as "prior.".
        """
        for key, files in identities.items():
            if not self.quiet and is_rank_zero():
                say(f"{key}: {files}")
            self.weights[section + key] = files.digest
            if files.configs:  # a key of its own: checkpoints of earlier versions lack it
                self.weights[f"{section}{key} (configs)"] = files.configs

    def log_notes(self) -> None:
        """Log the notes of the config, which --dry-run prints too, as warnings."""
        for note in self.config.without_unused_sections().notes() if is_rank_zero() else ():
            logger.warning("%s", note)

    def fit(
        self,
        system: System,
        metrics: Iterable[str] = (),
        callbacks: Iterable[pl.Callback] = (),
        interrupts: Interrupts | None = None,
    ) -> Status:
        """Train a LightningModule with `loop.fit`; return the final status of the training.

        If this process will write results (`has_results(status)`), the system is put in eval mode and moved back to the
        training device, because Lightning leaves it on the CPU.

        Args:
            system: module to train.
            metrics: names in `system.metrics` to show in the progress display.
            callbacks: additional Lightning callbacks.
            interrupts: Ctrl-C handler of the caller, which stays active after the training; None: a new handler.
        """
        from threedgen.train.loop import fit

        system.weights, system.run_start, system.training_start = self.weights, self.start_time, time.monotonic()
        status = fit(
            system, self.config, self.folder, self.resume, self.quiet, callbacks, metrics=metrics, interrupts=interrupts
        )
        self.is_global_zero = system.trainer.is_global_zero
        if self.is_global_zero and status in (Status.INTERRUPTED, Status.TERMINATED) and not self.finish:
            again = command("--resume", str(self.folder))
            steps = f"{system.trainer.global_step} of {self.config.trainer.max_steps} steps"
            logger.info("stopped after %s. `%s` continues; with --finish it writes the results now", steps, again)
        self.previous_seconds = sum(system.previous_seconds.values())
        if self.has_results(status):
            system.eval().to(device(self.config.trainer.accelerator))  # Lightning leaves it on the CPU
            system.setup("fit")  # moves its unregistered networks
        return status

    def has_results(self, status: Status) -> bool:
        """Return whether this process may write results after a training with the final status `status`.

        Only rank 0 may, and only if the training is finished or, with the flag --finish, if it was stopped before its
        last step (status INTERRUPTED).
        """
        return self.is_global_zero and (status is Status.FINISHED or status is Status.INTERRUPTED and self.finish)

    def train(
        self, system: System, metrics: Iterable[str] = (), finish: Callable[[], Tree] = dict, partial: bool = True
    ) -> Status:
        """Train a LightningModule, write results and summary.json, and return the final status of the training.

        If the training reaches its last step, its results are written. If it is stopped earlier, it writes no results,
        but can be resumed. If it is resumed with the flag --finish, it trains no further: it writes the results of its
        newest checkpoint. A failed training never writes results.

        Args:
            system: module to train.
            metrics: names in `system.metrics` to show in the progress display.
            finish: function that writes the results and returns further entries {name: value} of summary.json.
            partial: whether --finish can write the results of an unfinished training. If True, the results include the
                files that `system.validate` writes: it is called before `finish`, also after the last step.

        Raises:
            ConfigError: the flag --finish is set, and `partial` is False.
        """
        if self.finish and not partial:
            problem = "this task writes its results only after the last step. Resume the run without --finish"
            raise ConfigError(problem, "checkpoint.finish")
        status = self.fit(system, metrics)
        if self.has_results(status):
            steps = system.trainer.global_step
            with torch.no_grad(), writing(self.folder):
                if partial:
                    system.validate(steps, self.folder)
                figures = finish()
                self.summarise(status, steps=steps, **figures)
        return status

    def train_network(
        self,
        name: str,
        network: torch.nn.Module,
        system: System,
        metric: str,
        postprocess: Callable[[], object] = lambda: None,
    ) -> None:
        """Load `network` from RUN/NAME/NAME.safetensors, or else train it and write this file.

        It is trained if the file is missing, damaged, or of another architecture. Tasks with several trainings use
        this, for example to train an autoencoder before the diffusion model. Raises `Stopped` if the training does not
        finish.

        Args:
            name: NAME in the path of the file; RUN is the run folder.
            network: network to load or train.
            system: module to train, which contains the network.
            metric: name in `system.metrics` that the progress display shows.
            postprocess: function that is called after the training, before the network is saved.
        """
        from threedgen.train.loop import fit

        folder = self.folder / name
        path = folder / f"{name}.safetensors"
        if cache.load_network(network, path):
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        system.weights = self.weights
        trainer = self.config.trainer.model_copy(update={"max_steps": system.max_steps, "val_check_interval": 200})
        config = self.config.model_copy(update={"trainer": trainer})
        status = fit(system, config, folder, self.resume, self.quiet, metrics=(metric,))
        if status is not Status.FINISHED:
            raise Stopped(status.exit_code)
        network.cpu().eval()
        postprocess()
        cache.save_network(path, network)

    @contextmanager
    def track_progress(self, stage: str, steps: int) -> Iterator[Callable[[], None]]:
        """Return a context for a computation of `steps` steps. Its value is a function to call before each step.

        The function shows the progress with the label `stage`, and raises `Stopped` after Ctrl-C.
        """
        done = itertools.count()
        with Interrupts() as interrupts, ProgressDisplay(stage, steps, self.quiet) as progress:

            def on_step() -> None:
                interrupts.raise_if_stopped()
                progress.show(next(done))

            yield on_step
            progress.show(steps)

    def summarise(self, status: Status = Status.FINISHED, **figures: Any) -> None:
        """Write summary.json with the status and the further entries `figures`, such as scores, by name.

        The entry "files" of `figures`, if any, is a list of result files in addition to `self.files`. Raises OSError if
        the file cannot be written.
        """
        files = [*(name for name in self.files if (self.folder / name).exists()), *figures.pop("files", ())]
        seconds = self.previous_seconds + time.monotonic() - self.start_time
        write_summary(self.folder, self.config, seconds, status=status.value, files=files, **figures)
        self.summarised = True


def run_task(
    work: Callable[[Task], Status | None],
    config: Any,
    resume: Path | None = None,
    quiet: bool = False,
    *,
    result: str = "",
    files: Iterable[str] = (),
    rerun_finished: bool = False,
) -> int:
    """Run a task, print the path of its result on stdout, and return the exit code.

    The exit code is 0 if results were written or the resumed run was finished before, else that of the final status,
    such as 130 after Ctrl-C.

    Args:
        work: function that does the task; it returns the final status (None: finished) or raises `Stopped`.
        config: config of the task, with the run folder `out`.
        resume: folder of the run to resume; None: start a new run.
        quiet: show neither weight files nor progress.
        result: file or folder in the run folder whose path is printed.
        files: names of result files. If a file that the run has written is missing, the run does not count as finished.
        rerun_finished: False: a resumed run continues, and is not run again if it is finished. True: a resumed run,
            finished or not, calls `work` from the start, with `task.resume` False. This is for tasks such as
            evaluations, which have no checkpoints, but keep the results of their slow parts in the run folder.
    """
    task = Task(config, resume, quiet, files)
    task.resume &= not rerun_finished
    status = run_prepared(work, task)
    new = task.has_results(status) and (status is Status.FINISHED or task.summarised)
    if new and (task.folder / result).exists():
        say(str(task.folder / result))
    return 0 if new else status.exit_code


def run_prepared(work: Callable[[Task], Status | None], task: Task, hint: str = "") -> Status:
    """Run a task, release the lock of its run folder, and return the final status.

    A resumed run that is finished already is not run again: a warning is logged, and the status is FINISHED. `run_task`
    calls this function, and also prints the path of the result.

    Args:
        work: function that does the task; it returns the final status (None: finished) or raises `Stopped`, whose exit
            code determines the status.
        task: the run, with its config and folder.
        hint: text that is appended to the warning.
    """
    try:
        if task.resume and task.is_finished():
            logger.warning("%s is finished already; its files are unchanged%s", task.folder, hint)
            return Status.FINISHED
        silence_lightning()
        set_threads(threads_of(task.config))  # before the first kernel
        return work(task) or Status.FINISHED
    except Stopped as stop:
        return Status.of(stop.code)
    finally:
        release(task.folder)
        gc.collect()  # networks, which the trainer and the system keep in a cycle: a later run may need their memory


def device(accelerator: str = "auto") -> str:
    """Return torch's name ("cuda:0", "mps", "cpu") of the device that Lightning's option `accelerator` selects.

    "auto" selects CUDA, else the CPU. MPS, which has no float64 and no fast kernels here, is selected only by its name.
    The index of a CUDA device is the rank of this process on its machine.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return f"cuda:{local_rank()}"
    if accelerator == "mps" and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
