"""Callback that ends a training on several devices when one of its processes on this machine has died or is frozen."""

import logging
import os
import platform
import threading

import psutil
import pytorch_lightning as pl
import torch

from threedgen.config.errors import WorkerLost
from threedgen.run.watch import FrozenProcesses, ended

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


class WatchRanks(pl.Callback):
    """Callback that ends this process (exit code 5, `WorkerLost`) if another process of the training has ended.

    Without this callback the remaining processes would wait up to 30 minutes in a collective operation. Frozen
    processes (SIGSTOP) are killed, and so count as ended. Each process watches only the processes on its own machine.
    If another machine fails, the broken connections end the training.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._others: list[psutil.Process] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            places = [("", 0)] * trainer.world_size
            torch.distributed.all_gather_object(places, (platform.node(), os.getpid()))
            pids = [pid for node, pid in places if node == platform.node() and pid != os.getpid()]
            self._others = [psutil.Process(pid) for pid in pids]
            for thread in threading.enumerate():  # Lightning's own would kill this process without a word
                if thread.name == "child-process-observer":
                    vars(thread)["_child_processes"] = []  # it then ends
            threading.Thread(target=self._watch, daemon=True).start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.barrier("end of the training")  # no process exits before all have stopped watching
        self._over.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, RuntimeError):  # perhaps a broken connection to a process that ends just now
            self._over.wait(3 * POLL_SECONDS if self._others else 0)
        self._over.set()

    def _watch(self) -> None:
        frozen = FrozenProcesses()
        while not self._over.wait(POLL_SECONDS):
            frozen.kill(lambda: self._others)
            for process in filter(ended, self._others):
                if not self._over.wait(POLL_SECONDS):
                    reason = "was killed, ran out of memory or crashed. Run the same command again to continue"
                    logger.error("the process %d of this training %s", process.pid, reason)
                    os._exit(WorkerLost.exit_code)
