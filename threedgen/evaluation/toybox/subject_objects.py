"""3D objects of toybox subjects, made by the base and by a prior that was tuned on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError, load
from threedgen.geometry.images import grid, readable, write_png
from threedgen.train.loop import Status

from .identity import likeness
from .judging import judge_pictures
from .object_score import make, read
from .subject_cases import KEYS, VIEWS, Instruments, Subject, asked_for, spec

NOTHING = np.full((8, 16, 16, 3), 0.5)
"""Stands for a run whose loss broke down."""


def objects(
    look: Instruments, thing: Subject, worn: Sequence[tuple[str, str]], key: str, prior: Mapping[str, Any]
) -> dict[str, Any]:
    """``identity`` and answers of one object for each setting; finished runs are not made again. Game assets are not
    made. ``key``: of the table's row; ``prior``: the config's values that make it a tuned one.

    Ends the process with the code of a run that was stopped. Raises ConfigError.
    """
    config, likes, answers = look.config, [], []
    for k, setting in enumerate(worn):
        values = {
            "prompt": asked_for(thing.asset.noun, setting, "[v]" if prior else ""),
            "seed": config.seed, "threads": config.threads, "out": str(thing.folder / "objects" / f"{key}-{k}"),
            "export.enabled": False, **prior,
        }  # fmt: skip
        task = load(str(config.objects)).task
        if task != "generate":
            raise ConfigError(f"should be a config of the task generate (got {config.objects!r}, {task})", "objects")
        wanted = load(str(config.objects), [], values)
        status = make(wanted)
        if status in (Status.INTERRUPTED, Status.TERMINATED):
            raise SystemExit(status.exit_code)
        views, azimuth = NOTHING, 2 * np.pi * np.arange(8) / 8
        if status is Status.FINISHED:
            made = read(wanted)
            views, azimuth = made.views / 255, made.azimuth
        write_png(thing.folder / f"{key}-3d-{k}.png", grid(readable(views[:: len(views) // VIEWS]), VIEWS))
        likes.append(likeness(look.embed(torch.from_numpy(views).float()), thing.truth))
        verdict = judge_pictures(look.probe, views, spec(thing.asset.noun, setting), azimuth, vote=True)
        answers.append({name: verdict.answers.get(name) for name in KEYS})
    return {"identity": likes, "answers": answers}
