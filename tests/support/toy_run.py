"""A small fit for tests that kill it, fill its disk or spoil its loss; run by fork_server.py."""

import errno
import functools
import hashlib
import json
import logging
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.fork_server import Server, log

STEPS = 60
CONFIG_YAML = "task: toy\nseed: 3\ntrainer:\n  max_steps: 60\nlearning_rate: 0.01\n"


def _toy(width: int, pause: float, nan: list[int], spoil: int, sleep_at: int, starve_at: int, config_yaml: str) -> Any:
    import numpy as np
    import pytorch_lightning as pl
    import torch

    from threedgen.run import seeding
    from threedgen.train.system import EMA

    class Toy(pl.LightningModule):
        """Dropout, a schedule, an EMA, a grid that feeds the loss, and draws from every kind of generator."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.net = torch.nn.Sequential(torch.nn.Linear(6, width), torch.nn.Dropout(0.2), torch.nn.Linear(width, 1))
            self.ema = EMA(self.net, 0.9)
            self.register_buffer("grid", torch.zeros(10))
            self.config_yaml, self.weights = config_yaml, {}
            self.terms: dict[str, Any] = {}
            self.metrics: dict[str, Any] = {}

        def resize(self, state: dict[str, Any]) -> None:
            """Keep the shapes."""

        def training_step(self, batch: int, batch_idx: int) -> torch.Tensor:
            time.sleep(300 if batch == sleep_at else pause)
            if batch == starve_at and os.environ.get("LOCAL_RANK") == "1":
                raise MemoryError("3 GB")
            if batch == spoil:
                self.net[0].weight.data.fill_(float("nan"))
            x = torch.randn(8, 6) + torch.rand(8, 1, generator=seeding.generator(3, batch, "shift"))
            x = x * np.random.rand() + random.random()
            self.grid[batch % 10] = 0.5 * self.grid[batch % 10] + x.mean()
            fit_term = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
            if batch in nan:
                fit_term = fit_term * float("nan")
            self.terms = {"reconstruction": fit_term.detach(), "grid": self.grid.mean()}
            return fit_term + 0.1 * self.net[0].weight.square().mean() * self.grid.mean()

        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            self.ema.update(self.net, self.global_step)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.net.parameters(), 1e-2, fused=True)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

        def validate(self, step: int, folder: Path) -> None:
            assert not self.net.training and not torch.is_grad_enabled()
            torch.rand(7), np.random.rand(5), random.random()
            (folder / f"validation-{step}.txt").write_text(str(step))

    return Toy()


def digest(module: Any) -> str:
    """SHA-256 of all weights, averages and buffers."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode() + value.contiguous().numpy().tobytes())
    return sha.hexdigest()


def _sabotage(die_at: str, die_after: int, full: list[int], full_as: str) -> None:
    """Makes the disk, or the process, fail in the middle of writing a checkpoint."""
    import torch

    saves = {"n": 0}
    real = {"fsync": os.fsync, "replace": os.replace, "save": torch.save}

    def save(*args: Any, **kwargs: Any) -> None:
        saves["n"] += 1
        if full and full[0] <= saves["n"] <= full[1]:
            if full_as == "torch":
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real["save"](*args, **kwargs)

    def fatal(name: str, *args: Any) -> None:
        if saves["n"] >= die_after and die_at == name:
            os.kill(os.getpid(), signal.SIGKILL)
        real[name.split(" ")[0]](*args)

    def replace(source: Any, target: Any) -> None:
        fatal("replace last" if str(target).endswith("last.ckpt") else "replace previous", source, target)

    torch.save = save
    os.replace = replace
    os.fsync = functools.partial(fatal, "fsync")


def run(
    folder: str,
    resume: bool = False,
    max_steps: int = STEPS,
    seconds: float = 0.05,
    pause: float = 0.004,
    accumulate: int = 1,
    validate: int = 0,
    nan: tuple[int, ...] = (),
    spoil: int = -1,
    sleep_at: int = -1,
    width: int = 12,
    config_yaml: str = CONFIG_YAML,
    die_at: str = "",
    die_after: int = 3,
    full: tuple[int, ...] = (),
    full_as: str = "system",
    environment: dict[str, str] | None = None,
    devices: int = 1,
    check_seconds: float = 5,
    starve_at: int = -1,
) -> int:
    """One fit; leaves result.json (status, step, digest) and log.txt in `folder`; returns the exit code."""
    from threedgen.config.errors import as_expected_error
    from threedgen.config.sections import CheckpointConfig, TrainerConfig
    from threedgen.run import watch
    from threedgen.train.loop import fit

    watch.CHECK_SECONDS = check_seconds
    os.environ.update(environment or {})
    _sabotage(die_at, die_after, list(full), full_as)
    module = _toy(width, pause, list(nan), spoil, sleep_at, starve_at, config_yaml)
    trainer = TrainerConfig(
        max_steps=max_steps, accelerator="cpu", accumulate_grad_batches=accumulate, val_check_interval=validate,
        devices=devices,
    )  # fmt: skip
    config = SimpleNamespace(trainer=trainer, checkpoint=CheckpointConfig(seconds=seconds), seed=3, threads=1)
    try:
        status = fit(module, config, folder, resume=resume)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (shown := as_expected_error(error)) is None:
            raise
        logging.getLogger("toy").error("%s: %s", type(shown).__name__, shown)
        return shown.exit_code
    result = {"status": status.value, "step": module.trainer.global_step, "digest": digest(module)}
    if module.trainer.is_global_zero:
        (Path(folder) / "result.json").write_text(json.dumps(result))
    return status.exit_code


def server() -> Server:
    return Server("tests.support.toy_run:run")


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@functools.cache
def undisturbed(**options: Any) -> str:
    """The digest of a run that nothing disturbed and that saved nothing but its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = server().run(folder, seconds=1000, pause=0, **options)
        assert code == 0, log(folder)
        return result(folder)["digest"]
