"""Trainings of a second, one of each kind: their commands, where they may be killed, and the files they leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.support.asset_folder import make_assets
from tests.support.kept_folder import made_once
from tests.support.task_server import (
    TINY_BASE,
    TINY_DREAMBOOTH,
    TINY_MVADAPTER,
    TINY_PRIOR,
    TINY_THREEDIM,
    finished_run,
    prior_folder,
    tiny,
    write_config,
)
from tests.support.tiny_mvadapter import adapter_base
from tests.support.tiny_mvdiffusion import tiny_model as multiview

TINY_OWN = tiny(
    "train-own-prior", 6, log_every=1, engine="here", held_out=1, views={"size": 16, "azimuths": 4},
    training={
        "batch": 4, "fresh": 2, "first": 4, "pictures": 12, "n_view": 2, "two_d": 0.5, "learning_rate": 0.01,
    },
)  # fmt: skip
TINY_MATTE = tiny(
    "train-matte", 6, log_every=2, network={"size": 32, "channels": [4, 6]},
    training={"batch": 4, "first": 8, "pictures": 32},
)  # fmt: skip
PANORAMAS = {"name": "toy-panoramas", "count": 6, "views": 4, "size": 16, "fov": 100.0}
PATHS = {"name": "toy-paths", "count": 6, "views": 3, "height": 16, "width": 16}
SCENES = {"panorama": PANORAMAS, "outpaint": PANORAMAS, "depth": PATHS}
TINY_MVDIFFUSION = tiny(
    "train-mvdiffusion", 6, log_every=2, single_view={"max_steps": 4, "batch": 3, "rank": 2},
    training={"batch": 2, "first": 3, "learning_rate": 0.01, "ema": 0.5},
)  # fmt: skip
TRAINER = TINY_MVDIFFUSION["trainer"]


def command(path: Path, *overrides: str) -> list[str]:
    """Return the words of a run of a config in the folder "run"."""
    return ["--config", str(path), "out=run", *overrides]


def base_command(folder: Path, *overrides: str) -> list[str]:
    return command(write_config(folder / "base.yaml", TINY_BASE), *overrides)


def prior_command(folder: Path, *overrides: str) -> list[str]:
    """Return the command of train-prior, from a finished run of train-base."""
    start = str(finished_run(base_command) / "base")
    return command(write_config(folder / "prior.yaml", TINY_PRIOR, start=start), *overrides)


def own_command(folder: Path, *overrides: str) -> list[str]:
    if not (folder / "assets").exists():
        make_assets(folder / "assets", more=1)
    values = {"data": str(folder / "assets"), "prior": {"weights": str(prior_folder())}}
    return command(write_config(folder / "own.yaml", TINY_OWN, **values), *overrides)


def matte_command(folder: Path, *overrides: str) -> list[str]:
    return command(write_config(folder / "matte.yaml", TINY_MATTE), *overrides)


def adapter_config(folder: Path, training: dict[str, Any] | None = None, **values: Any) -> Path:
    values = {"start": str(adapter_base()), "training": TINY_MVADAPTER["training"] | (training or {})} | values
    return write_config(folder / "mvadapter.yaml", TINY_MVADAPTER, **values)


def adapter_command(folder: Path, *overrides: str) -> list[str]:
    return command(adapter_config(folder), *overrides)


def scene_base() -> Path:
    """Return the folder of a 2D model for MVDiffusion."""
    return made_once("scene-base", lambda folder: multiview().save(folder / "base")) / "base"


def scene_config(folder: Path, variant: str = "outpaint", **values: Any) -> Path:
    values = {"start": str(scene_base()), "variant": variant, "scenes": SCENES[variant]} | values
    return write_config(folder / "mvdiffusion.yaml", TINY_MVDIFFUSION, **values)


def scene_command(folder: Path, *overrides: str) -> list[str]:
    return command(scene_config(folder), *overrides)


def dreambooth_config(folder: Path, **values: Any) -> Path:
    """Write a config, and photos of three coloured boxes into the folder "photos"."""
    (folder / "photos").mkdir(exist_ok=True)
    for k, colour in enumerate([(200, 30, 30), (190, 40, 20), (210, 20, 60)]):
        image = np.full((40, 40, 3), 250, np.uint8)
        image[8:30, 12 + k : 28] = colour
        Image.fromarray(image).save(folder / "photos" / f"{k}.png")
    values = {"prior": {"weights": str(prior_folder()), "dtype": "fp32"}} | values
    return write_config(folder / "dreambooth.yaml", TINY_DREAMBOOTH, **values)


def dreambooth_command(folder: Path, *overrides: str) -> list[str]:
    return command(dreambooth_config(folder), *overrides)


def threedim_command(folder: Path, *overrides: str) -> list[str]:
    path = write_config(folder / "threedim.yaml", TINY_THREEDIM)
    return command(path, "trainer.log_every_n_steps=1", *overrides)


class Training(NamedTuple):
    """A kind of training.

    Attributes:
        command: words of its command line for a folder.
        kills: (step, start of the system's name, folder of its checkpoints) where a run is killed.
        files: results, equal in a run that was killed and resumed.
        loss: recorded loss of the last step.
    """

    command: Callable[..., list[str]]
    kills: tuple[tuple[int, str, str], ...]
    files: tuple[str, ...]
    loss: float


STAGES = tuple(f"{part}/{part}.safetensors" for part in ("autoencoder", "decoder", "words"))
SHEET = "samples.png"
TRAININGS = {
    "base": Training(base_command, ((3, "Prior", ""),), (*STAGES, "base/SHA256SUMS", SHEET), 0.902),
    "prior": Training(prior_command, ((2, "Coarse", "coarse"), (6, "Prior", "")), ("prior/SHA256SUMS", SHEET), 0.909),
    "own": Training(own_command, ((4, "OwnPrior", ""),), ("prior/SHA256SUMS", SHEET), 0.522),
    "mvadapter": Training(
        adapter_command, ((2, "Adapter", ""), (4, "Adapter", "")), ("adapter.safetensors", SHEET), 1.051
    ),
    "mvdiffusion": Training(
        scene_command,
        ((2, "SingleView", "single-view"), (3, "Views", "")),
        ("blocks.safetensors", SHEET, "single-view/single-view.safetensors"),
        0.825,
    ),
    "dreambooth": Training(
        dreambooth_command,
        ((2, "DreamBooth", ""), (5, "DreamBooth", "")),
        ("personalisation.safetensors", "photos.png", "samples/000008.png"),
        0.585,
    ),
    "threedim": Training(threedim_command, ((3, "Pair", ""), (7, "Pair", "")), ("model/SHA256SUMS", SHEET), 0.538),
    "matte": Training(
        matte_command, ((3, "Matte", ""),), ("matte/config.json", "matte/diffusion_pytorch_model.safetensors"), 0.666
    ),
}
