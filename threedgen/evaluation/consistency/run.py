"""Carries out the task "consistency": draws or reads views of many scenes, fits fields, compares held-out views.

A killed run goes on: RUN/views/ROW/SCENE.safetensors keeps what a sampler drew, RUN/scores/ what ``fits.py`` computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError, registry
from threedgen.evaluation.sampling import read_views, write_views
from threedgen.evaluation.tables import write_strips
from threedgen.evaluation.toybox.probe import Probe
from threedgen.geometry.images import enlarge_small, to_uint8
from threedgen.geometry.views import Views
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.threads import set_threads
from threedgen.run.workers import run_jobs
from threedgen.train.task import Stopped, Task, run_task

from .fits import Job, Score, score_with, stored
from .options import ORIGINAL, ConsistencyConfig
from .report import distances, report, strip
from .scenes import Scene, fit_to, held_out_places, prompt_warnings

ATTEMPTS = 2
"""A fit may lose its worker once."""


def evaluate(task: Task) -> None:
    """Draws, fits, scores, reports. Raises ConfigError before any drawing."""
    config: ConsistencyConfig = task.config
    probe = Probe.load(config.features.weights, "features.weights") if config.features else None
    drawing, scores = Drawing(config), list[Score]()
    fields = sum(len(drawing.samplers) + (scene.original is not None) for scene in drawing.scenes)
    with Interrupts() as interrupts, Count("fields", fields, task.quiet) as count:

        def done(job: Job, score: Score) -> None:
            scores.append(score)
            count.add(1, f"{score['scene']} {score['row']} {score['psnr']:.1f} dB")

        def lacking() -> Iterator[Job]:
            for job in drawing.jobs(interrupts, count):
                if (before := stored(job)) is not None:
                    done(job, before)
                else:
                    yield job

        work = partial(score_with, max(1, set_threads(config.threads) // config.workers))
        how: Any = {"engine": "processes" if config.workers > 1 else "here", "workers": config.workers}
        if code := run_jobs(lacking(), work, done, attempts=ATTEMPTS, interrupts=interrupts, **how):
            raise Stopped(code)
    place, order = [scene.name for scene in drawing.scenes], [*drawing.samplers, ORIGINAL]
    scores.sort(key=lambda score: (place.index(score["scene"]), order.index(score["row"])))
    lines = [line for rows in drawing.strips.values() for line in rows]
    write_strips(task.folder / "views.png", [enlarge_small(strip) for _, strip in lines], [label for label, _ in lines])
    report(task, scores, distances(probe, task.folder / "scores", scores) if probe else {}, drawing.notes)


class Drawing:
    """The scenes of a run and who draws them. Raises ConfigError for what cannot be drawn or scored.

    ``strips``: scene -> a label and views (V, H, W, 3) of each row, of as many scenes as the sheets show; ``notes``:
    what makes scores doubtful.
    """

    def __init__(self, config: ConsistencyConfig) -> None:
        self.config, self.folder = config, Path(str(config.out)) / "views"
        self.samplers = {row: registry.build("sampler", options) for row, options in config.contestants.items()}
        first = next(iter(self.samplers.values()))
        self.scenes: list[Scene] = registry.build("scenes", config.scenes, first, config.seed)
        for row, sampler in self.samplers.items():
            check(config, row, sampler, self.scenes)
        self.held = {scene.name: held_out_places(scene, config.held_out, config.seed) for scene in self.scenes}
        self.notes = [note for scene in self.scenes for note in prompt_warnings(scene)]
        self.strips: dict[str, list[tuple[str, np.ndarray]]] = {}

    def jobs(self, interrupts: Interrupts, count: Count) -> Iterator[Job]:
        """Yields a field to fit for each row of each scene, with the views that it is fitted to; after Ctrl-C no
        more."""
        size = self.config.batch
        for batch in (self.scenes[start : start + size] for start in range(0, len(self.scenes), size)):
            true = [
                scene.original and Views(fit_to(scene, scene.original(range(len(scene.cameras))).images), scene.cameras)
                for scene in batch
            ]
            for row in (*self.samplers, ORIGINAL):
                drawn = row in self.samplers
                seen = self.draw(row, batch, count) if drawn else true
                for scene, views, truth in zip(batch, seen, true, strict=True):
                    if interrupts.stop:
                        return
                    if views is None:
                        continue
                    if scene.name in self.strips or len(self.strips) < self.config.sheet:
                        self.strips.setdefault(scene.name, []).append((f"{scene.name} {row}", strip(scene, views)))
                    known = truth if drawn and scene.condition else None
                    compared = {} if known is None else {"truth": to_uint8(known.images), "drawn": scene.targets}
                    yield Job.of(self.config, scene.name, row, views, self.held[scene.name], **compared)

    def draw(self, row: str, batch: Sequence[Scene], count: Count) -> list[Views]:
        """Draws all views of some scenes, those given included, or reads them where an earlier run drew them."""
        sampler, requests = self.samplers[row], [scene.request(self.config.seed) for scene in batch]
        paths = [self.folder / row / f"{scene.name}.safetensors" for scene in batch]
        mine = {"sampler": sampler.fingerprint(), "seed": str(self.config.seed)}
        metadata = [mine | {"views": " ".join(map(str, request.numbers))} for request in requests]
        kept = [read_views(path, expected) for path, expected in zip(paths, metadata, strict=True)]
        images = {k: torch.from_numpy(views).float() / 255 for k, views in enumerate(kept) if views is not None}
        if lacking := [k for k in range(len(batch)) if k not in images]:
            count.note(f"{row} draws {' '.join(batch[k].name for k in lacking)}")
            for k, views in zip(lacking, sampler([requests[k] for k in lacking]), strict=True):
                images[k] = fit_to(batch[k], views)
                if not getattr(sampler, "on_disk", False):
                    write_views(paths[k], images[k], metadata[k])
        return [scene.together(requests[k], images[k]) for k, scene in enumerate(batch)]


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


FILES = ("consistency.csv", "sheet.png", "views.png")
run = partial(run_task, evaluate, result="consistency.md", files=FILES, again=True)
