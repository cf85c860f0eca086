"""Carries out the task "consistency": draws or reads views of many scenes, fits fields, compares held-out views.

A killed run goes on: RUN/views/ROW/SCENE.safetensors keeps what a sampler drew, RUN/scores/ what ``fits.py`` computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from threedgen.config import ConfigError, registry
from threedgen.evaluation.sampling import read_views, write_views
from threedgen.evaluation.tables import finish
from threedgen.evaluation.toybox.probe import Probe
from threedgen.geometry.images import to_uint8
from threedgen.geometry.views import Views
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.threads import set_threads
from threedgen.run.workers import run_jobs

from .fits import Job, Score, score_with, stored
from .options import ORIGINAL, ConsistencyConfig
from .report import Strips, distances, strip, write, write_strips
from .scenes import Scene, fit_to, held_out_places, warn_about

ATTEMPTS = 2
"""A fit may lose its worker once."""


def run(config: ConsistencyConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Draws, fits, scores, reports; returns the exit code. Raises ConfigError before any drawing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    threads = set_threads(config.threads)
    probe = Probe.load(config.features.weights) if config.features else None
    samplers = {row: registry.build("sampler", options) for row, options in config.contestants.items()}
    every: list[Scene] = registry.build("scenes", config.scenes, next(iter(samplers.values())), config.seed)
    for row, sampler in samplers.items():
        check(config, row, sampler, every)
    held = {scene.name: held_out_places(scene, config.held_out, config.seed) for scene in every}
    notes = [note for scene in every for note in warn_about(scene)]
    scores: list[Score] = []
    strips: Strips = {}
    fields = sum(len(samplers) + (scene.original is not None) for scene in every)
    with Interrupts() as interrupts, Count("fields", fields, quiet) as count:

        def done(job: Job, score: Score) -> None:
            scores.append(score)
            count.add(1, f"{score['scene']} {score['row']} {score['psnr']:.1f} dB")

        def lacking() -> Iterator[Job]:
            for job in jobs(config, samplers, every, held, strips, interrupts, count):
                if (before := stored(job)) is not None:
                    done(job, before)
                else:
                    yield job

        code = run_jobs(
            lacking(),
            partial(score_with, max(1, threads // config.workers)),
            done,
            engine="processes" if config.workers > 1 else "here",
            workers=config.workers,
            attempts=ATTEMPTS,
            interrupts=interrupts,
        )
    if code:
        return code
    place = {scene.name: k for k, scene in enumerate(every)}
    order = [*samplers, ORIGINAL]
    scores.sort(key=lambda score: (place[score["scene"]], order.index(score["row"])))
    features = distances(probe, folder / "scores", scores) if probe else {}
    text = write(config, folder, scores, features, notes)
    write_strips(folder / "views.png", strips)
    return finish(config, begun, "consistency.md", "" if quiet else text, scenes=len(every))


def jobs(
    config: ConsistencyConfig,
    samplers: Mapping[str, Any],
    every: Sequence[Scene],
    held: Mapping[str, list[int]],
    strips: Strips,
    interrupts: Interrupts,
    count: Count,
) -> Iterator[Job]:
    """Yields a field to fit for each row of each scene, with the views that it is fitted to; after Ctrl-C no more."""
    folder = Path(str(config.out))
    for start in range(0, len(every), config.batch):
        batch = every[start : start + config.batch]
        true = [
            scene.original and Views(fit_to(scene, scene.original(range(len(scene.at))).images), scene.at)
            for scene in batch
        ]
        for row in (*samplers, ORIGINAL):
            drawn = row in samplers
            seen = draw(config, row, samplers[row], batch, folder / "views" / row, count) if drawn else true
            for number, (scene, views, truth) in enumerate(zip(batch, seen, true, strict=True), start):
                if interrupts.stop:
                    return
                if views is None:
                    continue
                if number < config.sheet:
                    strips.setdefault(scene.name, []).append((f"{scene.name} {row}", strip(scene, views)))
                known = truth if drawn and scene.condition else None
                compared = {} if known is None else {"truth": to_uint8(known.images), "drawn": scene.targets}
                yield Job.of(config, scene.name, row, views, held[scene.name], **compared)


def check(config: ConsistencyConfig, row: str, sampler: Any, every: Sequence[Scene]) -> None:
    """Raises ConfigError for what the sampler of a row cannot draw."""
    if not every:
        raise ConfigError("there are none", "scenes")
    for scene in every:
        needs = (
            ("needs_text", scene.text, "words", "toybox"),
            ("needs_condition", scene.condition, "a given view", "srn"),
        )
        for need, given, what, other in needs:
            if getattr(sampler, need, False) and not given:
                mistake = f"{row} draws from {what}, and the scenes {config.scenes.name!r} have none"
                raise ConfigError(f"{mistake}; scenes.name={other} has", "sampler")
        if getattr(sampler, "on_disk", False):
            sampler.places(scene.request(config.seed, pictures=False))


def draw(
    config: ConsistencyConfig, row: str, sampler: Any, batch: Sequence[Scene], folder: Path, count: Count
) -> Sequence[Views | None]:
    """Draws all views of some scenes, those given included, or reads them where an earlier run drew them."""
    requests = [scene.request(config.seed) for scene in batch]
    paths = [folder / f"{scene.name}.safetensors" for scene in batch]
    mine = {"sampler": sampler.fingerprint(), "seed": str(config.seed)}
    metadata = [mine | {"views": " ".join(map(str, request.numbers))} for request in requests]
    kept = [read_views(path, expected) for path, expected in zip(paths, metadata, strict=True)]
    images = [None if views is None else torch.from_numpy(views).float() / 255 for views in kept]
    lacking = [k for k, views in enumerate(images) if views is None]
    if lacking:
        count.note(f"{row} draws {' '.join(batch[k].name for k in lacking)}")
    drawn = sampler([requests[k] for k in lacking]) if lacking else []
    for k, views in zip(lacking, drawn, strict=True):
        images[k] = fit_to(batch[k], views)
        if not getattr(sampler, "on_disk", False):
            write_views(paths[k], images[k], metadata[k])
    triples = zip(batch, requests, images, strict=True)
    return [scene.together(request, views) for scene, request, views in triples if views is not None]
