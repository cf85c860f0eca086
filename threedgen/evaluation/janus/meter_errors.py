"""Carries out the task "janus-meter": how often does the meter err, on objects whose truth is known?

    RUN/meter.json, meter.md    false alarms on good objects, recall on two-faced ones, with intervals
    RUN/sheet.png               objects and what the meter says of them, those it errs about first

A good object is a fresh one of the toybox, or a file that faces +z. A two-faced one is made of it: its front half
twice, back to back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh, toybox_mesh
from threedgen.evaluation.metrics.figures import Share, share
from threedgen.evaluation.metrics.fronts import doubt, front_curve
from threedgen.evaluation.tables import finish, limits, markdown_table, percent, write_strips
from threedgen.evaluation.toybox.corruption import rough, two_fronted
from threedgen.evaluation.toybox.held_out import clear_nouns, held_out_cases
from threedgen.evaluation.toybox.judging import equal_error
from threedgen.run.progress import Count
from threedgen.run.seeding import numpy_generator
from threedgen.train.task import Task, run_task

from .meter import Meter, Reading, view_labels
from .options import JanusMeterConfig, TruthConfig, asset_files, folder_of_assets
from .rates import ErrorRates

FRESH, CALIBRATION = 1_000_000, 2_000_000
"""Numbers of the first objects; no other evaluation asks for the same ones."""


@dataclass(frozen=True)
class Pair:
    """What the meter saw of an object whose fronts are known: as it is, and with two of them."""

    prompt: str
    good: Reading
    two_fronted: Reading


@dataclass(frozen=True)
class Measured:
    """``rates``, the share of good objects' views with the right side, and what was seen of each object."""

    rates: ErrorRates
    right: Share
    known: list[Pair]


def evaluate(task: Task) -> None:
    """Measures, reports. Raises ConfigError."""
    config: JanusMeterConfig = task.config
    meter = Meter(config.meter)
    found = measure(meter, config.truth, config.seed, task.quiet)
    figures = found.rates.plain() | {
        "direction_accuracy": found.right.plain(),
        "meter": config.meter.model_dump(mode="json"),
        "truth": config.truth.model_dump(mode="json"),
        "seed": config.seed,
        "doubts": doubts(found.known),
    }
    text = page(found, config)
    write_sheet(task.folder / "sheet.png", meter, found, config.sheet)
    finish(task, "meter", text, figures, text)


def measure(meter: Meter, truth: TruthConfig, seed: int, quiet: bool = True) -> Measured:
    """Measures the error rates on ``truth.objects`` objects, at the meter's threshold or at one chosen on others."""
    threshold = meter.config.threshold
    if threshold is None:
        seen = doubts(classify(meter, truth, seed, CALIBRATION, truth.calibration, "calibration", quiet))
        threshold = min(max(equal_error(seen["glued"], seen["good"]), 1e-6), 1 - 1e-6)
    known = classify(meter, truth, seed, FRESH, truth.objects, "ground truth", quiet)
    good = [meter.judge(k.good.sides, threshold) for k in known]
    bad = [meter.judge(k.two_fronted.sides, threshold) for k in known]
    alarms, hits = share([result.failed for result in good]), share([result.failed for result in bad])
    right = share([view for result in good for view in result.right])
    return Measured(ErrorRates(alarms, hits, threshold), right, known)


def doubts(known: Sequence[Pair]) -> dict[str, list[float]]:
    """Finds up to which threshold each object would be called Janus (see ``fronts.RingResult``)."""
    pairs = {"good": [k.good for k in known], "glued": [k.two_fronted for k in known]}
    return {kind: [doubt(front_curve(reading.sides)) for reading in readings] for kind, readings in pairs.items()}


def classify(
    meter: Meter, truth: TruthConfig, seed: int, first: int, count: int, stage: str, quiet: bool
) -> list[Pair]:
    """Looks at ``count`` objects as they are and with two fronts."""
    known = []
    with Count(stage, count, quiet) as counter:
        for number, (prompt, smooth) in enumerate(objects(truth, seed, first, count), first):
            light = True if truth.assets is None else None
            mesh = rough(smooth, numpy_generator(seed, number, "rough"), truth.rough)
            seen = [meter.classify(each, prompt, light) for each in (mesh, two_fronted(mesh))]
            known.append(Pair(prompt, *(reading.small() for reading in seen)))
            counter.add(1, prompt)
    return known


def objects(truth: TruthConfig, seed: int, first: int, count: int) -> Iterator[tuple[str, ColouredMesh]]:
    """Yields prompts and good objects: the files, or ``count`` toybox things, no two alike, every noun in turn.

    Of files the calibration takes every other one, and the measurement the rest.
    """
    if truth.assets is not None:
        files = asset_files(folder_of_assets(truth.assets, "truth.assets"))
        kept = files[0 if first == FRESH else 1 :: 2]
        for path in kept[:count]:
            yield path.stem.replace("_", " "), fit_to_ball(read_mesh(path))
        return
    nouns = clear_nouns()
    cases = held_out_cases(len(nouns), seed, spread=True, nouns=nouns)
    for k in range(count):
        case, number = cases[k % len(cases)], first + k // len(cases)
        yield case.caption, toybox_mesh(case.truth(seed, number))


def page(found: Measured, config: JanusMeterConfig) -> str:
    """Words meter.md."""
    rates, what = found.rates, config.truth.assets or "fresh toybox objects"
    rows = [("false alarms, good objects", rates.alarms), ("recall, two fronts glued", rates.hits)]
    rows += [("views with the right side, good objects", found.right)]
    cells = [(name, percent(value), limits(value)) for name, value in rows]
    return f"""# Errors of the Janus meter

Classifier {config.meter.classifier.name}, {config.meter.n_view} views, threshold {rates.threshold:.3g}.
Truth: {what}, seed {config.seed}.

{markdown_table(("what", "measured", "95 % interval"), cells)}
"""


def write_sheet(path: Path, meter: Meter, found: Measured, count: int) -> None:
    """Draws strips of views with the meter's words, those it errs about first."""
    strips = []
    for known in found.known:
        for truth, reading in ((1, known.good), (2, known.two_fronted)):
            result = meter.judge(reading.sides, found.rates.threshold)
            wrong = result.failed != (truth == 2)
            label = f"{known.prompt}: {truth} front{'s' * (truth > 1)}, found {result.fronts}{' WRONG' * wrong}"
            strips.append((not wrong, f"{label} ({', '.join(view_labels(reading.sides))})", reading.views))
    strips = sorted(strips, key=lambda strip: strip[0])[:count]
    write_strips(path, [views for _, _, views in strips], [label for _, label, _ in strips])


run = partial(run_task, evaluate, result="meter.md", files=("sheet.png",), again=True)
