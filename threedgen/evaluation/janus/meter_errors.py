"""Task "janus-meter": error rates of the meter on objects with a known number of fronts.

    RUN/meter.json, meter.md    false alarm rate on correct objects, recall on two-fronted objects, with intervals
    RUN/sheet.png               views of the objects with the results of the meter, wrong results first

A correct object has one front: a toybox object that no training uses, or a mesh file that faces +z (y up). For a
two-fronted object, the back half of a correct object is replaced by a copy of its front half.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.evaluation.corruption import rough, two_fronted
from threedgen.evaluation.metrics.figures import equal_error, share
from threedgen.evaluation.metrics.fronts import doubt, front_curve
from threedgen.evaluation.report import (
    format_limits,
    format_share,
    markdown_table,
    thumbnails,
    write_report,
    write_strips,
)
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.run.seeding import numpy_generator
from threedgen.train.task import Task

from .meter import Meter, Reading, view_labels
from .options import MeteredConfig, asset_files, folder_of_assets
from .plan import front_objects
from .rates import ErrorRates

FIRST_OBJECT, FIRST_CALIBRATION = 1_000_000, 2_000_000
"""Numbers of the first object for the error rates and for the calibration. No other evaluation uses these objects."""
SHEET_OBJECTS = 12
"""Maximum number of objects on the contact sheet."""


class TrueObject(NamedTuple):
    """Prompt and mesh of a correct object, which has one front."""

    prompt: str
    mesh: ColouredMesh


@dataclass(frozen=True)
class KnownObject:
    """Classified views of one object: of the correct mesh, and of the mesh with two fronts."""

    prompt: str
    correct: Reading
    two_fronted: Reading


def doubts(known: Sequence[KnownObject]) -> dict[str, list[float]]:
    """Return the highest threshold at which each correct ("good") and two-fronted ("glued") object has two fronts."""
    readings = {"good": [one.correct for one in known], "glued": [one.two_fronted for one in known]}
    return {kind: [doubt(front_curve(reading.sides)) for reading in found] for kind, found in readings.items()}


class MeterErrors(Evaluation[MeteredConfig, TrueObject, KnownObject]):
    """Measurement of the errors of the meter on ``truth.objects`` objects, for the config of any Janus evaluation."""

    stage = "ground truth"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.truth, self.meter = self.config.truth, Meter(self.config.meter)
        self.items, self.total = self.objects(FIRST_OBJECT, self.truth.objects), self.truth.objects

    def objects(self, first: int, count: int) -> Iterator[TrueObject]:
        """Yield ``count`` correct objects from number ``first`` on, with the configured roughness.

        Files at even positions are used for the error rates, and files at odd positions for the calibration.
        """
        pairs: Iterable[tuple[str, ColouredMesh]]
        if self.truth.assets is None:
            pairs = front_objects().meshes(self.config.seed, first, count)
        else:
            files = asset_files(folder_of_assets(self.truth.assets, "truth.assets"))
            chosen = files[0 if first == FIRST_OBJECT else 1 :: 2][:count]
            pairs = ((path.stem.replace("_", " "), fit_to_ball(read_mesh(path))) for path in chosen)
        for number, (prompt, mesh) in enumerate(pairs, first):
            rng = numpy_generator(self.config.seed, number, "rough")
            yield TrueObject(prompt, rough(mesh, rng, self.truth.rough))

    def prepare(self) -> None:
        """Set the threshold: the configured one, or the one with equal error rates on the calibration objects."""
        self.threshold = self.meter.config.threshold or 0.0
        if self.meter.config.threshold is None:
            found = doubts([self.measure(one) for one in self.objects(FIRST_CALIBRATION, self.truth.calibration)])
            self.threshold = min(max(equal_error(found["glued"], found["good"]), 1e-6), 1 - 1e-6)

    def measure(self, item: TrueObject) -> KnownObject:
        light = True if self.truth.assets is None else None
        readings = [self.meter.classify(mesh, item.prompt, light) for mesh in (item.mesh, two_fronted(item.mesh))]
        return KnownObject(item.prompt, *(Reading(thumbnails(one.views), one.sides) for one in readings))

    def rates(self, known: Sequence[KnownObject]) -> ErrorRates:
        """Compute false alarm rate and recall at the threshold."""
        correct, two = (
            [self.meter.evaluate(reading.sides, self.threshold).failed for reading in readings]
            for readings in ([one.correct for one in known], [one.two_fronted for one in known])
        )
        return ErrorRates(share(correct), share(two), self.threshold)

    def report(self, rows: list[KnownObject]) -> None:
        config, rates = self.config, self.rates(rows)
        rings = [self.meter.evaluate(one.correct.sides, self.threshold) for one in rows]
        right = share([view for ring in rings for view in ring.right])
        figures = rates.plain() | {
            "direction_accuracy": right.plain(),
            "meter": config.meter.model_dump(mode="json"),
            "truth": config.truth.model_dump(mode="json"),
            "seed": config.seed,
            "doubts": doubts(rows),
        }
        shares = {
            "false alarms, correct objects": rates.alarms,
            "recall, two fronts": rates.hits,
            "views with the right side, correct objects": right,
        }
        cells = [(name, format_share(value), format_limits(value)) for name, value in shares.items()]
        text = f"""# Errors of the Janus meter

Classifier {config.meter.classifier.name}, {config.meter.n_view} views, threshold {rates.threshold:.3g}.
Truth: {config.truth.assets or "fresh toybox objects"}, seed {config.seed}.

{markdown_table(("figure", "measured", "95 % interval"), cells)}
"""
        self.write_sheet(rows)
        write_report(self.task, "meter", figures, text, text)

    def write_sheet(self, known: Sequence[KnownObject]) -> None:
        """Write sheet.png: views of the objects with the results of the meter, wrong results first."""
        strips = []
        for one in known:
            for truth, reading in ((1, one.correct), (2, one.two_fronted)):
                result = self.meter.evaluate(reading.sides, self.threshold)
                wrong = result.failed != (truth == 2)
                label = f"{one.prompt}: {truth} front{'s' * (truth > 1)}, found {result.fronts}{' WRONG' * wrong}"
                strips.append((not wrong, f"{label} ({', '.join(view_labels(reading.sides))})", reading.views))
        strips = sorted(strips, key=lambda strip: strip[0])[:SHEET_OBJECTS]
        write_strips(self.folder / "sheet.png", [strip[2] for strip in strips], [strip[1] for strip in strips])


run = evaluation_task(MeterErrors, result="meter.md", files=("sheet.png",))
