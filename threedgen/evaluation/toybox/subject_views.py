"""Asks a prior for toybox subjects, as views or 3D objects, and judges them: is it the one, and what does it wear?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from threedgen.evaluation.sampling import Ring, random_ring, ring_poses
from threedgen.geometry.images import grid, readable, to_uint8, write_png
from threedgen.guidance.prior import Prior
from threedgen.run.seeding import generator, numpy_generator

from .held_out import held_out_cases
from .identity import similarity
from .judging import Verdict, judge_pictures
from .object_score import make, object_config
from .options import EvaluateSubjectsConfig
from .probe import Probe

VIEWS = 4
KEYS = ("noun", "colour", "bound", "order")
"""What a sample is asked for; a score is the share of right answers among those that apply."""
BATCH = 5
"""Held-out prompts that are sampled together."""

Accessory = tuple[str, str]
"""Its colour and its word; both are empty for none."""


@dataclass(frozen=True)
class Instruments:
    """What samples are judged with, and how they are asked for."""

    probe: Probe
    embed: Any
    config: EvaluateSubjectsConfig
    accessories: tuple[Accessory, ...]


@dataclass(frozen=True)
class Subject:
    """One of the toybox's, with the truth that its samples are compared with: unit vectors (V, D)."""

    asset: Asset
    folder: Path
    truth: torch.Tensor


def accessory(setting: str) -> Accessory:
    """Parses "red hat" to ("red", "hat"), "" to ("", ""). Raises ConfigError with the nearest word."""
    if not setting:
        return "", ""
    colour, word = setting.split()
    for given, known, what in ((colour, COLOURS, "colour"), (word, ACCESSORIES, "accessory")):
        if given not in known:
            raise ConfigError(f"settings: the toybox has no {what} {given!r}{did_you_mean(nearest(given, known))}")
    return colour, word


def spec(noun: str, worn: Accessory) -> Spec:
    """Describes what is asked for."""
    return Spec(noun, "", "", worn[1], worn[0])


def prompt_of(noun: str, worn: Accessory, identifier: str = "") -> str:
    """Words the prompt: "a dog wearing a red hat", or "a [v] dog wearing a red hat"."""
    return caption(spec(noun, worn)).replace(noun, f"{identifier} {noun}".strip(), 1)


def photograph(tools: Instruments, number: int, folder: Path, size: int) -> Subject:
    """Draws subject ``number``, writes its photos, and renders its true views from where samples of it are seen."""
    config = tools.config
    asset = subjects.draw(config.seed, number, wearing=[word for _, word in tools.accessories if word])
    place = folder / f"{number:03d}-{asset.noun.replace(' ', '-')}"
    for k, picture in enumerate(subjects.photograph(asset, config.photos, 2 * size, config.seed)):
        if not (place / "photos" / f"{k}.png").exists():
            write_png(place / "photos" / f"{k}.png", picture)
    azimuth, elevation = cameras(config, number, 0)
    rgb = subjects.views(asset, azimuth, np.full(VIEWS, elevation), size)
    return Subject(asset, place, tools.embed(torch.from_numpy(rgb)))


def cameras(config: EvaluateSubjectsConfig, number: int, setting: int) -> Ring:
    """Draws where the cameras of the samples of a subject stand."""
    return random_ring(numpy_generator(config.seed, number, f"subject cameras {setting}"), VIEWS, (5, 30))


def score(verdict: Verdict) -> float:
    """Counts the share of right answers, in [0, 1]."""
    asked = [verdict.answers[key] for key in KEYS if verdict.answers.get(key) is not None]
    return float(np.mean(asked))


def sample(
    tools: Instruments, prior: Prior, prompts: Sequence[str], places: Sequence[tuple[int, int]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Samples all prompts together: of each its views (4, S, S, 3) uint8 and their azimuth (4,).

    ``places``: (number, setting) of each, which draw its cameras and its noise.
    """
    config = tools.config
    rings = [cameras(config, *place) for place in places]
    rngs = [generator(config.seed, number, f"subject sample {setting}") for number, setting in places]
    c2w = torch.stack([ring_poses(ring) for ring in rings])
    drawn = prior.sample(prompts, c2w, config.steps, config.guidance_scale, generator=rngs)
    return [(to_uint8(views), azimuth) for views, (azimuth, _) in zip(drawn.chunk(len(prompts)), rings, strict=True)]


def held_out(tools: Instruments, prior: Prior) -> dict[str, Any]:
    """Scores held-out prompts, the same for every prior."""
    cases, scores = held_out_cases(tools.config.held_out, tools.config.seed), []
    for begin in range(0, len(cases), BATCH):
        batch = cases[begin : begin + BATCH]
        drawn = sample(tools, prior, [case.caption for case in batch], [(case.index, -1) for case in batch])
        for case, (views, azimuth) in zip(batch, drawn, strict=True):
            scores.append(score(judge_pictures(tools.probe, views, case.spec, azimuth)))
    return {"scores": scores}


def samples(tools: Instruments, subject: Subject, prior: Prior, kind: str, identifier: str = "") -> dict[str, Any]:
    """Samples a subject in each setting: ``identity``, ``answers`` and ``scores``; each is a picture too."""
    noun, number = subject.asset.noun, subject.asset.index
    prompts = [prompt_of(noun, worn, identifier) for worn in tools.accessories]
    drawn = sample(tools, prior, prompts, [(number, k) for k in range(len(prompts))])
    for k, (views, _) in enumerate(drawn):
        write_png(subject.folder / f"{kind}-{k}.png", grid(views, VIEWS))
    found, verdicts = compared(tools, subject, drawn)
    return found | {"scores": [score(verdict) for verdict in verdicts]}


def objects(tools: Instruments, subject: Subject, key: str, prior: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a 3D object of each setting, without a game asset: ``identity`` and ``answers``; each is a picture too.

    Finished runs are not made again. ``key``: of the table's row; ``prior``: the config's values that make it a tuned
    one. Raises Stopped for a run that was, and ConfigError.
    """
    results = []
    for k, worn in enumerate(tools.accessories):
        prompt = prompt_of(subject.asset.noun, worn, "[v]" if prior else "")
        place = f"subjects/{subject.folder.name}/objects/{key}-{k}"
        result = make(object_config(tools.config, "objects", prompt, place, **prior))
        shown = result.views[:: len(result.views) // VIEWS]
        write_png(subject.folder / f"{key}-3d-{k}.png", grid(readable(shown), VIEWS))
        results.append((result.views, result.azimuth))
    return compared(tools, subject, results, vote=True)[0]


def compared(
    tools: Instruments, subject: Subject, seen: Sequence[tuple[np.ndarray, np.ndarray]], vote: bool = False
) -> tuple[dict[str, Any], list[Verdict]]:
    """Compares views of each setting and their azimuths with the subject, and judges what it wears."""
    identity, verdicts = [], []
    for worn, (views, azimuth) in zip(tools.accessories, seen, strict=True):
        pictures = torch.from_numpy(views).float() / (255 if views.dtype == np.uint8 else 1)
        identity.append(similarity(tools.embed(pictures), subject.truth))
        verdicts.append(judge_pictures(tools.probe, views, spec(subject.asset.noun, worn), azimuth, vote))
    answers = [{key: verdict.answers.get(key) for key in KEYS} for verdict in verdicts]
    return {"identity": identity, "answers": answers}, verdicts
