"""Toybox subjects as the evaluation asks for them: who they are, what they wear, and where the cameras stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.config.errors import did_you_mean, nearest
from threedgen.data.toybox import subjects
from threedgen.data.toybox.grammar import ACCESSORIES, COLOURS, Spec, caption
from threedgen.data.toybox.primitives import Asset
from threedgen.geometry.images import write_png
from threedgen.run.seeding import numpy_generator

from .judging import Verdict
from .options import EvaluateSubjectsConfig
from .probe import Probe

VIEWS = 4
KEYS = ("noun", "colour", "bound", "order")
"""What a sample is asked for; a score is the share of right answers among those that apply."""


@dataclass(frozen=True)
class Instruments:
    """What looks at samples."""

    probe: Probe
    embed: Any
    config: EvaluateSubjectsConfig


@dataclass(frozen=True)
class Subject:
    """One of the toybox's, with the truth that its samples are compared with: unit vectors (V, D)."""

    asset: Asset
    folder: Path
    truth: torch.Tensor


def accessory(setting: str) -> tuple[str, str]:
    """"red hat" -> ("red", "hat"); "" -> ("", ""). Raises ConfigError with the nearest word."""
    if not setting:
        return "", ""
    colour, word = setting.split()
    for given, known, what in ((colour, COLOURS, "colour"), (word, ACCESSORIES, "accessory")):
        if given not in known:
            raise ConfigError(f"the toybox has no {what} {given!r}{did_you_mean(nearest(given, known))}", "settings")
    return colour, word


def spec(noun: str, worn: tuple[str, str]) -> Spec:
    return Spec(noun, "", "", worn[1], worn[0])


def asked_for(noun: str, worn: tuple[str, str], identifier: str = "") -> str:
    """The prompt: "a dog wearing a red hat", or "a [v] dog wearing a red hat"."""
    return caption(spec(noun, worn)).replace(noun, f"{identifier} {noun}".strip(), 1)


def subject(
    look: Instruments, number: int, worn: Sequence[tuple[str, str]], folder: Path, size: int
) -> Subject:
    """Subject ``number``, its photos written, and its true views from where the samples' cameras stand."""
    config = look.config
    asset = subjects.draw(config.seed, number, wearing=[word for _, word in worn if word])
    place = folder / f"{number:03d}-{asset.noun.replace(' ', '-')}"
    for k, picture in enumerate(subjects.photograph(asset, config.photos, 2 * size, config.seed)):
        if not (place / "photos" / f"{k}.png").exists():
            write_png(place / "photos" / f"{k}.png", picture)
    azimuth, elevation = stand(config, number, 0)
    rgb = subjects.views(asset, azimuth, np.full(VIEWS, elevation), size)
    return Subject(asset, place, look.embed(torch.from_numpy(rgb)))


def stand(config: EvaluateSubjectsConfig, number: int, setting: int) -> tuple[np.ndarray, float]:
    """Azimuth (4,) from a random first one, and one elevation, of the samples of a subject; radians."""
    rng = numpy_generator(config.seed, number, f"subject cameras {setting}")
    azimuth = rng.uniform(0, 2 * np.pi) + np.pi / 2 * np.arange(VIEWS)
    return azimuth % (2 * np.pi), float(np.deg2rad(rng.uniform(5, 30)))


def score(verdict: Verdict) -> float:
    """The share of right answers, in [0, 1]."""
    asked = [verdict.answers[key] for key in KEYS if verdict.answers.get(key) is not None]
    return float(np.mean(asked))
