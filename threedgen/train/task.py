"""How the task of a run starts, goes on and ends: the same for all of them.

    def work(task: Task) -> Status:
        ...
        return task.train(system, metrics=("loss",))

    run = partial(run_task, work, result="prior", files=("prior/model_index.json",))

A run that is finished already is not begun again; Ctrl-C leaves results of what was learnt so far; the place of the
result is the last line on stdout, and the exit code says how it ended.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from threedgen.config import registry
from threedgen.config.errors import within
from threedgen.run import cache
from threedgen.run.disk import writing
from threedgen.run.interrupts import Interrupts, Stopped
from threedgen.run.lock import release
from threedgen.run.metrics import read_summary, write_summary
from threedgen.run.progress import Count, silence_lightning
from threedgen.run.text import say
from threedgen.run.threads import set_threads, threads_of
from threedgen.train.status import Status, finished

if TYPE_CHECKING:  # Lightning takes seconds to import: whoever trains imports it, and has first said what comes
    import pytorch_lightning as pl

    from threedgen.train.system import System

logger = logging.getLogger(__name__)


class Task:
    """One run: its config, its folder, when it began, and what it leaves there."""

    def __init__(self, config: Any, resume: Path | None = None, quiet: bool = False, files: Iterable[str] = ()) -> None:
        """`files`: what a run makes, as far as it can; one that has lost any of those that it made goes on."""
        self.config, self.resume, self.quiet, self.files = config, resume is not None, quiet, tuple(files)
        self.folder, self.begun = Path(str(config.out)), time.monotonic()
        self.leader = True  # of all processes; known when a training has begun
        self.weights = dict[str, str]()  # SHA-256 of those it is made with, by the keys of the config that name them
        self.earlier = 0.0  # seconds of the starts before this one, without what they did after their last checkpoint

    def load_prior(self) -> Any:
        """The prior of the config on the device of the run; then its weights are named. Raises ConfigError.

        To name them takes reading all of them once more, so what is wrong with them is found before.
        """
        prior, trainer = self.config.prior, getattr(self.config, "trainer", None)
        with within("prior"):
            built = registry.build("prior", prior, device(trainer.accelerator if trainer else "auto"))
        self.name_weights(prior.identify(), "prior.")
        return built

    def name_weights(self, found: Mapping[str, Any], section: str = "") -> None:
        """Says which files the run is made with, an ``Identity`` by each key of a section of the config that names
        some; checkpoints will know."""
        for key, files in found.items():
            if not self.quiet and os.environ.get("LOCAL_RANK", "0") == "0":
                say(f"{key}: {files}")
            self.weights[section + key] = files.digest

    def fit(
        self,
        system: System,
        metrics: Iterable[str] = (),
        callbacks: Iterable[pl.Callback] = (),
        interrupts: Interrupts | None = None,
    ) -> Status:
        """Trains a system; where there are results to be made, it is then back on its device, in eval mode."""
        from threedgen.train.loop import fit

        system.weights, system.begun, system.started = self.weights, self.begun, time.monotonic()
        words: Any = {"metrics": metrics, "callbacks": callbacks, "interrupts": interrupts}
        status = fit(system, self.config, self.folder, self.resume, self.quiet, **words)
        self.leader, self.earlier = system.trainer.is_global_zero, sum(system.earlier.values())
        if self.leader and status in (Status.FINISHED, Status.INTERRUPTED):
            system.eval().to(device(self.config.trainer.accelerator))  # Lightning leaves it on the CPU
            system.setup("fit")  # the networks that it holds follow
        return status

    def train(
        self,
        system: System,
        metrics: Iterable[str] = (),
        finish: Callable[[], dict[str, Any]] = dict,
        partial: bool = True,
    ) -> Status:
        """Trains a system, validates it a last time, and writes results and summary.

        `finish` writes the results and returns figures for the summary; without `partial` an interrupted run has none.
        """
        if self.resume:
            self._forget_end(system)
        status = self.fit(system, metrics)
        if self.leader and (status is Status.FINISHED or partial and status is Status.INTERRUPTED):
            steps = system.trainer.global_step
            with torch.no_grad(), writing(self.folder):
                if partial:
                    system.validate(steps, self.folder)
                figures = finish()
                self.summarise(status, steps=steps, **figures)
        return status

    def _forget_end(self, system: System) -> None:
        """Takes away what is only there because the run stopped: then it leaves the files of one that did not."""
        step, every = read_summary(self.folder).get("steps"), self.config.trainer.val_check_interval
        if isinstance(step, int) and step < system.max_steps and (not every or step % every):
            with writing(self.folder):
                system.forget(step, self.folder)

    def stage(
        self,
        name: str,
        network: torch.nn.Module,
        learner: System,
        metric: str,
        settle: Callable[[], object] = lambda: None,
    ) -> None:
        """Trains a part of the model in a folder of its own, NAME, or reads it from NAME/NAME.safetensors.

        `network`: what is kept in the file; `settle`: what is done to the trained network before it is kept. Raises
        Stopped if training did not end.
        """
        from threedgen.train.loop import fit

        folder = self.folder / name
        done = folder / f"{name}.safetensors"
        if cache.fill(network, done):
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        learner.weights = self.weights
        trainer = self.config.trainer.model_copy(update={"max_steps": learner.max_steps, "val_check_interval": 200})
        own = self.config.model_copy(update={"trainer": trainer})
        status = fit(learner, own, folder, self.resume, self.quiet, metrics=(metric,))
        if status is not Status.FINISHED:
            raise Stopped(status.exit_code)
        network.cpu().eval()
        settle()
        cache.keep(done, network)

    @contextmanager
    def counted(self, what: str, steps: int) -> Iterator[Callable[[], None]]:
        """Gives what is to be called before each of so many `steps`: it shows how far they are, and raises Stopped
        after Ctrl-C."""
        count = itertools.count()
        with Interrupts() as interrupts, Count(what, steps, self.quiet) as progress:

            def on_step() -> None:
                interrupts.heed()
                progress.show(next(count))  # so many are done

            yield on_step
            progress.show(steps)

    def summarise(self, status: Status = Status.FINISHED, **figures: Any) -> None:
        """Writes summary.json, with which a run is finished. Raises OSError."""
        files = [*(name for name in self.files if (self.folder / name).exists()), *figures.pop("files", ())]
        seconds = self.earlier + time.monotonic() - self.begun
        write_summary(self.folder, self.config, seconds, status=status.value, files=files, **figures)


def run_task(
    work: Callable[[Task], Status | None],
    config: Any,
    resume: Path | None = None,
    quiet: bool = False,
    *,
    result: str = "",
    files: Iterable[str] = (),
    again: bool = False,
) -> int:
    """Carries out a config by `work`, unless it is finished already; says where `result` is; returns the exit code.

    `work` returns how it ended, or nothing if it always comes to its end; it may raise Stopped.
    `again`: of an evaluation, which is always carried out: it keeps what took long, and reports on what is there now.
    """
    task = Task(config, resume, quiet, files)
    task.resume &= not again
    status = carry_out(work, task)
    ended = status is Status.FINISHED or status is Status.INTERRUPTED and not again  # else the result is an older one
    if task.leader and ended and (task.folder / result).exists():
        say(str(task.folder / result))
    return status.exit_code


def carry_out(work: Callable[[Task], Status | None], task: Task, hint: str = "") -> Status:
    """The same without a word on stdout; how it ended. `hint` is added to the line on a run that is finished.

    The folder is then given back (`run.lock`), for Python goes on.
    """
    trainer = getattr(task.config, "trainer", None)
    try:
        if task.resume and finished(task.folder, trainer.max_steps if trainer else None):
            logger.warning("%s is finished already; its files are as they were%s", task.folder, hint)
            return Status.FINISHED
        silence_lightning()
        set_threads(threads_of(task.config))  # before the first kernel
        return work(task) or Status.FINISHED
    except Stopped as stop:
        return Status.of(stop.code)
    finally:
        release(task.folder)


def device(accelerator: str = "auto") -> str:
    """torch's name of the device that Lightning will choose for this process."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
