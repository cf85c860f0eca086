"""Lightning loggers in addition to metrics.jsonl: functions from config and run folder, of the kind `logger`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from threedgen.train.options import CSVLoggerConfig, TensorBoardConfig, WandbConfig


def csv(options: CSVLoggerConfig, folder: Path) -> None:
    """Return None, because every run writes metrics.csv without a Lightning logger."""


def tensorboard(options: TensorBoardConfig, folder: Path) -> Logger:
    """Return a logger that writes to RUN/tensorboard."""
    return TensorBoardLogger(folder, name="tensorboard", version="")


def wandb(options: WandbConfig, folder: Path) -> Logger:
    """Return a logger to Weights & Biases. The run id is the folder name, so a resumed run continues its curves."""
    return WandbLogger(name=folder.name, save_dir=folder, project=options.project, id=folder.name, resume="allow")


def log_image(loggers: Iterable[Logger], name: str, image: Any, step: int) -> None:
    """Send an image (H, W, 3) in [0, 1] to those loggers that accept images."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, image, step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [image.cpu().numpy()], step=step)
