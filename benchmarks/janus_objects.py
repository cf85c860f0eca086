"""Number of fronts that the Janus meter finds on 60 objects with a known number of fronts, half not toybox objects."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball
from threedgen.evaluation import report
from threedgen.evaluation.corruption import two_fronted
from threedgen.evaluation.janus.meter import FIRST_OBJECT, Meter
from threedgen.evaluation.janus.options import MeterConfig, front_objects
from threedgen.evaluation.metrics.figures import proportion

from .known_fronts import WITH_FRONT, WITHOUT_FRONT
from .table import Row, Table

SEED, COUNT = 7, 10  # seed of the toybox objects; objects per kind and number of fronts
RESULTS = ("not counted", "one front", "Janus")  # by the number of fronts that the meter finds
Hit = Callable[[int, int], bool | None]
FIGURES: dict[str, Hit] = {
    "front missed, one front": lambda true, found: not found if true == 1 else None,
    "front missed, two fronts": lambda true, found: not found if true == 2 else None,
    "false alarms, one front": lambda true, found: found == 2 if true == 1 and found else None,
    "recall, two fronts": lambda true, found: found == 2 if true == 2 and found else None,
    "front invented, no front": lambda true, found: None if true else found > 0,
}
"""Figure -> whether an object with (true, found) fronts is a hit; None: the object is not part of the figure."""


def objects() -> Iterator[tuple[str, str, int, ColouredMesh]]:
    """Yield (kind, name, fronts, mesh) of 30 "other" and 30 "toybox" objects: of each kind 10 with 0, 1, 2 fronts."""
    for build in WITH_FRONT:
        mesh = ColouredMesh(tuple(build()))
        yield "other", build.__name__, 1, fit_to_ball(mesh)
        yield "other", build.__name__, 2, fit_to_ball(two_fronted(mesh))
    for name, without in WITHOUT_FRONT.items():
        yield "other", name, 0, fit_to_ball(ColouredMesh(tuple(without())))
    fronted = front_objects().meshes(SEED, FIRST_OBJECT, 2 * COUNT)
    yield from (("toybox", name, 1, mesh) for name, mesh in islice(fronted, COUNT))
    yield from (("toybox", name, 2, two_fronted(mesh)) for name, mesh in fronted)
    for name, mesh in front_objects().meshes(SEED, FIRST_OBJECT, COUNT, front=False):
        yield "toybox", name, 0, mesh


def table(folder: Path) -> Table:
    """Return a table with a row per object, and the rates per kind. Write the views to `folder`/sheet.png."""
    meter, strips, labels = Meter(MeterConfig()), [], []
    rows: list[Row] = []
    results: dict[str, list[tuple[int, int]]] = {"other": [], "toybox": []}
    for kind, name, fronts, mesh in objects():
        # as janus-score and janus-meter: colours of files unshaded, toybox objects shaded
        views, sides = meter.classify(mesh, name.rpartition(", named ")[2], kind == "toybox")
        result = meter.evaluate(sides, unknown_orientation=True)
        found = min(result.fronts, 2)
        error = "" if found == fronts else " (wrong)" if found else " (missed)"
        row: Row = {"kind": kind, "object": name, "fronts": fronts, "certainty": result.certainty}
        rows.append(row | {"meter": RESULTS[found] + error})
        results[kind].append((fronts, found))
        strips.append(report.thumbnails(views))
        labels.append(f"{name}, fronts: {fronts}. {rows[-1]['meter']}")
    folder.mkdir(parents=True, exist_ok=True)
    report.write_strips(folder / "sheet.png", strips, labels, columns=2)
    rates = [
        (figure, *(report.format_rate(proportion([hit(*pair) for pair in pairs])) for pairs in results.values()))
        for figure, hit in FIGURES.items()
    ]
    return Table("Fronts of 60 objects", rows, [report.markdown_table(("figure", *results), rates)])
