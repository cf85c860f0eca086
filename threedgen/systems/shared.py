"""What the tasks share: the prior on its device, tensors kept for a resume, and how a run ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from threedgen.cli import say
from threedgen.config import Schedule, at, registry
from threedgen.config.errors import ConfigError
from threedgen.guidance.options import PriorConfig
from threedgen.run import seeding
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import read_summary
from threedgen.train.loop import Status

logger = logging.getLogger(__name__)


def load_prior(config: PriorConfig, accelerator: str = "auto") -> Any:
    """The prior that a config describes, on the device where it will be asked. Raises ConfigError."""
    return registry.build("prior", config, device(accelerator))


def say_weights(config: PriorConfig, quiet: bool) -> None:
    """One line before any work: which files the config of a prior leads to, and their check sum. Raises ConfigError."""
    if not quiet and os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"weights: {config.describe()}")


def device(accelerator: str = "auto") -> str:
    """torch's name of the device that Lightning will choose for this process."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def adamw(
    parameters: Iterable[Tensor], learning_rate: Schedule, max_steps: int, weight_decay: float
) -> dict[str, Any]:
    """What Lightning's configure_optimizers gives back: AdamW whose rate follows a schedule of the config."""
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    return scheduled(optimizer, learning_rate, max_steps)


def scheduled(optimizer: torch.optim.Optimizer, learning_rate: Schedule, max_steps: int) -> dict[str, Any]:
    """What Lightning's configure_optimizers gives back: an optimizer whose rate, set to 1, follows a schedule."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: at(learning_rate, step, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def seed_networks(seed: int, name: str) -> None:
    """Lets the random weights of new networks depend on nothing that happened before."""
    torch.manual_seed(seeding.key(seed, 0, name))


# --- tensors that a resumed run must find as they were ----------------------------------------------------------


def kept(path: Path, name: str, shape: tuple[int | None, ...], make: Callable[[], Tensor]) -> Tensor:
    """The tensor `name` of a safetensors file; if it is not there yet, what `make` gives, float32, written there.

    A file that is damaged, or holds another shape (None: any) or NaN, is made again. Raises ConfigError for a
    full disk.
    """
    found = _read(path, name)
    if found is not None and _fits(found, shape):
        return found
    if path.exists():
        logger.warning("%s is damaged and was made again", path)
    value = make().detach().float().cpu().contiguous()
    with writing(path.parent):
        write_atomic(path, save({name: value}))
    return value


def _read(path: Path, name: str) -> Tensor | None:
    try:
        return load_file(path).get(name)
    except (OSError, SafetensorError, ValueError):
        return None


def _fits(tensor: Tensor, shape: tuple[int | None, ...]) -> bool:
    same = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    return same and tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all())


# --- the end of a run ----------------------------------------------------------------------------------------


def finished(folder: Path, max_steps: int) -> bool:
    """Does the folder hold the results of this run, all of them, of as many steps as are asked for?"""
    summary = read_summary(folder)
    whole = summary.get("status") == Status.FINISHED.value and summary.get("steps") == max_steps
    files = summary.get("files", [])
    return whole and isinstance(files, list) and all((folder / str(name)).exists() for name in files)


def existing(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the files that are there, for `files` in the summary."""
    return [name for name in names if (folder / name).exists()]


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Inside, an OSError (full disk, folder gone) becomes a ConfigError that says what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{folder} could not be written ({error.strerror or error}): make room there and run the same "
            "command again, it goes on from its last checkpoint"
        ) from error
