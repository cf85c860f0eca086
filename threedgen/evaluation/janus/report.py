"""Results of the Janus meter (counter of fronts), and the report of the tasks "janus-benchmark" and "janus-score".

Each asset, a mesh, gets a result, mainly its number of fronts. Each method, which made a set of assets, gets rates. The
report compares methods.

RUN/looks/                   classified views of each asset; assets with a stored result are not classified again
RUN/report.html              tables with all views; report.md and report.json have the same content
"""

import hashlib
import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from markupsafe import Markup

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.data.coloured_mesh import EmptyMesh, fit_to_ball, read_mesh
from threedgen.evaluation import report
from threedgen.evaluation.metrics.figures import (
    Estimate,
    Json,
    Proportion,
    mean,
    mean_estimate,
    median,
    paired_differences,
    proportion_of_groups,
)
from threedgen.evaluation.metrics.fronts import ErrorRates
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import write_png
from threedgen.run.disk import write_json, writing
from threedgen.run.text import clean
from threedgen.train.task import Task
from threedgen.viewer.page import data_uri, jpeg, page

from .meter import Meter, view_labels
from .options import MeterConfig, MeteredConfig

HEADS = (
    "method", "Janus rate", "95 %", "corrected", "95 %", "no front", "right side", "R-Precision", "likeness", "seconds",
    "memory",
)  # fmt: skip
PAIRED = {"raw": "Janus rate", "match": "R-Precision", "likeness": "likeness"}
"""Metrics for which methods are compared prompt by prompt, and their names in the report."""
READINGS = "looks"
VERSION = 3
"""Version of the Janus meter. Results that were stored by another version are computed again."""
UNKNOWN = (
    "Meter errors unknown for these assets, so no rate is corrected. truth.assets=FOLDER measures them on your own "
    "files with one front."
)
STATES = {"seen": "seen", "empty": "empty", "unreadable": "unreadable", "failed": "failed", "missing": "not made"}
"""States of an asset and their names in the report."""
RESULT_KEYS = {"correct": "right"}
"""Keys in report.json of attributes of `Result` that have another name there."""


@dataclass(frozen=True)
class Result:
    """Result of the Janus meter for one asset: an object that a method made from a prompt.

    In the task "janus-benchmark", a run makes the object. In the task "janus-score", it is an existing mesh file.

    Attributes:
        method, prompt, seed: method, prompt and seed that made the object. The seed of an existing mesh is None.
        folder: path of the run that made the object, relative to the run folder of the benchmark; for an existing mesh,
            a name made from its path. The last part of it is the file name, without suffix, of the stored views and
            side probabilities (`Reader`).
        state: "seen" (evaluated), "empty" (nothing to render), "unreadable", "failed" (its run failed) or "missing"
            (not made yet). Unless it is "seen", ``fronts``, ``certainty`` and ``likeness`` are None, and ``shown``,
            ``correct`` and ``sides`` are empty.
        reason: why the state is not "seen"; "" if it is.
        fronts: number of fronts.
        certainty: how clearly a front is visible: the largest front probability, in [0, 1], among the views that more
            probably show the front than any other side. The probabilities are first smoothed over neighbouring views.
            It is 0 if there are no such views, or if the object probably has no front.
        shown: for each view, whether it shows a front.
        correct: for each view, whether the classified side is the side that the camera sees.
        sides: probabilities (V, 4) of front, left, back and right in each view.
        likeness: score of how well each prompt of the benchmark fits the views, in the order of the prompts; higher is
            better (`Meter.likeness`). None if the classifier computes no such scores.
        seconds, memory_mib: duration in seconds and peak memory in MiB of the run that made the object; None for an
            existing mesh, or if the run has not made an object.
    """

    method: str
    prompt: str
    seed: int | None
    folder: str
    state: str
    reason: str = ""
    fronts: int | None = None
    certainty: float | None = None
    shown: tuple[bool, ...] = ()
    correct: tuple[bool, ...] = ()
    sides: Sequence[Sequence[float]] = ()
    likeness: Sequence[float] | None = None
    seconds: float | None = None
    memory_mib: float | None = None

    @property
    def janus(self) -> bool:
        return self.fronts is not None and self.fronts > 1

    @property
    def several(self) -> bool | None:
        """Whether the object has two fronts or more; None if it has no front."""
        return self.janus if self.fronts else None

    def matches(self, prompts: Sequence[str]) -> bool | None:
        """Return whether the asset's own prompt fits best of all ``prompts``; None if there is nothing to compare."""
        if self.likeness is None or len(prompts) < 2:
            return None
        return prompts[int(np.argmax(self.likeness))] == self.prompt

    def own_likeness(self, prompts: Sequence[str]) -> float | None:
        return None if self.likeness is None else float(self.likeness[prompts.index(self.prompt)])

    def plain(self) -> Json:
        values = {RESULT_KEYS.get(name, name): value for name, value in asdict(self).items()}
        return report.rounded(values) | {"janus": self.janus}


class Reader:
    """Janus meter for mesh files: the method `read` renders a file and counts the fronts of the object.

    `read(path, name, prompt)` returns a dict with the number of fronts and other attributes of `Result`. It stores the
    output of the classifier in ``folder``/NAME.json and the views in ``folder``/NAME.png, where NAME is ``name``. A
    later call with the same mesh, textures, prompt, options and classifier reads them.

    Args:
        config: options of the Janus meter.
        prompts: all prompts of the benchmark. For each of them, the dict has a score of how well it fits the views.
        folder: folder of the stored results and views.
        unknown_orientation: False: each object should face +x, which decides whether a view shows the correct side.
            True: it is assumed to face the way for which most views show the correct side.
    """

    def __init__(
        self, config: MeterConfig, prompts: Sequence[str], folder: Path, unknown_orientation: bool = False
    ) -> None:
        self.config, self.prompts, self.folder, self.unknown_orientation = (
            config,
            list(prompts),
            folder,
            unknown_orientation,
        )

    @cached_property
    def meter(self) -> Meter:
        return Meter(self.config)

    def read(
        self, path: Path, name: str, prompt: str, up: Literal["y", "z"] = "y", turn: float = 0.0, fit: bool = False
    ) -> Json:
        """Render and classify a mesh file, or read the stored result. Return attributes of `Result` as a dict.

        Args:
            path: mesh file.
            name: name of the stored files, without suffix.
            prompt: text that names the object.
            up: up axis of the mesh file; a y-up file should face +z, a z-up file +x.
            turn: rotation about this axis in degrees, counter-clockwise seen from above, that is applied to the mesh.
            fit: whether to centre the mesh first, and scale it to fit into a ball of radius 0.8.

        Returns:
            For a missing or unusable file, a dict with "state" ("empty" or "unreadable") and "reason". Otherwise a dict
            with these keys, for V views:
            "state": "seen".
            "sides": probabilities (V, 4) of front, left, back and right in each view, as lists.
            "likeness": how well each prompt of the benchmark fits the views, one score per prompt; None: not computed.
            "fronts": number of fronts.
            "certainty": how clearly a front is visible, in [0, 1].
            "shown": for each view, whether it shows a front.
            "correct": for each view, whether the classified side is the side that the camera sees.
        """
        if not path.exists():
            return {"state": "empty", "reason": f"there is no {path.name}"}
        kept = self.folder / f"{name}.json"
        try:
            mesh = read_mesh(path, up, warn=True, turn=turn)
        except ConfigError as error:
            return {"state": "empty" if isinstance(error, EmptyMesh) else "unreadable", "reason": str(error)}
        options = self.config.model_dump(mode="json", exclude={"threshold"})
        described = json.dumps([VERSION, options, self.meter.weights, self.prompts, prompt, fit])
        content = pickle.dumps(replace(mesh, side_files=(), notes=()))  # with the textures, without paths
        key = hashlib.sha256(described.encode() + content).hexdigest()
        found = read_json(kept)
        if found.get("key") != key or not kept.with_suffix(".png").is_file():
            reading = self.meter.classify(fit_to_ball(mesh) if fit else mesh, prompt)
            likeness = self.meter.likeness(reading.views, self.prompts)
            found = {"key": key, "sides": reading.sides.tolist(), "likeness": likeness}
            write_png(kept.with_suffix(".png"), np.concatenate(list(report.thumbnails(reading.views)), axis=1))
            write_json(kept, found)
        ring = self.meter.evaluate(np.array(found["sides"]), self.unknown_orientation)
        return {"state": "seen", "sides": found["sides"], "likeness": found["likeness"]} | vars(ring)


def method_row(
    method: str, results: Sequence[Result], prompts: Sequence[str], rates: ErrorRates | None, refused: str | None
) -> Json:
    """Compute the metrics of a method from the results of its assets.

    ``prompts`` are all prompts of the benchmark. ``rates`` are the error rates of the Janus meter, which counts fronts,
    or None if they were not measured. ``refused`` is the reason why the method cannot run, for the key "reason", or
    None if it can run.

    Returns:
        Dict with the keys below. "raw", "no_front", "right" and "match" are shares: dicts with "hits", "total", "share"
        (hits / total), "low" and "high" (95 % interval, in which the results of one prompt count as dependent). They
        include only assets with the state "seen" (evaluated).
        "method": ``method``.
        "raw": Janus rate, the share of assets with two or more fronts among those with a front.
        "corrected": Janus rate corrected for the errors of the meter, a dict with "share", "low" and "high". All three
            are None if ``rates`` is None or does not allow a correction (`ErrorRates.corrected`).
        "no_front": share of assets in which the meter finds no front.
        "right": share of views whose classified side is the side that the camera sees, over assets with a front.
        "match": R-Precision, the share of assets that are more similar to their own prompt than to all others; without
            answers if there is only one prompt.
        "likeness": score of how well its own prompt fits an asset, mean over the prompts: a dict with "mean", "low" and
            "high" (95 % interval).
        "states": dict from state, such as "failed", to the number of assets in this state.
        "seconds": median duration of the runs, in seconds.
        "memory_mib": maximum peak memory of the runs, in MiB.
        "reason": ``refused``, else the first `Result.reason` that is not empty, else "".
    """
    by_prompt = results_by_prompt(results)

    def share(answers: Callable[[Result], Sequence[bool | None]]) -> Proportion:
        return proportion_of_groups([list(chain.from_iterable(map(answers, group))) for group in by_prompt.values()])

    raw = share(lambda one: [one.several])
    low, high = (rates and rates.interval(raw)) or (None, None)
    states = Counter(result.state for result in results)
    return {
        "method": method,
        "raw": raw.plain(),
        "no_front": share(lambda one: [one.fronts == 0]).plain(),
        "corrected": {"share": rates.corrected(raw) if rates else None, "low": low, "high": high},
        "right": share(lambda one: one.correct if one.fronts else ()).plain(),
        "match": share(lambda one: [one.matches(prompts)]).plain(),
        "likeness": mean_estimate([row["likeness"] for row in prompt_means(results, prompts).values()]),
        "states": {state: states[state] for state in STATES if states[state]},
        "seconds": median([result.seconds for result in results]),
        "memory_mib": max((r.memory_mib for r in results if r.memory_mib is not None), default=None),
        "reason": refused or next((result.reason for result in results if result.reason), ""),
    }


def results_by_prompt(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group the results of the assets that were evaluated by prompt. Those of one prompt are dependent."""
    by_prompt = defaultdict[str, list[Result]](list)
    for result in results:
        if result.state == "seen":
            by_prompt[result.prompt].append(result)
    return by_prompt


def prompt_means(results: Sequence[Result], prompts: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return the metrics `PAIRED` of each prompt: means over its assets, None where undefined."""
    return {
        prompt: {
            "raw": mean([one.several for one in group]),
            "match": mean([one.matches(prompts) for one in group]),
            "likeness": mean([one.own_likeness(prompts) for one in group]),
        }
        for prompt, group in results_by_prompt(results).items()
    }


def differences_of_methods(
    methods: Sequence[str], results: Sequence[Result], prompts: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Compare the first method with each other one on the prompts of both, with 95 % bootstrap intervals over prompts.

    Return, for each other method, a dict from the keys of `PAIRED` to the mean of the first method minus the other.
    """
    first, *others = (prompt_means([one for one in results if one.method == method], prompts) for method in methods)
    found = dict[str, dict[str, Estimate]]()
    for method, other in zip(methods[1:], others, strict=True):
        both = [prompt for prompt in first if prompt in other]
        rows = paired_differences([first[prompt] for prompt in both], [other[prompt] for prompt in both], PAIRED)
        found[method] = {key: mean_estimate([row[key] for row in rows]) for key in PAIRED}
    return found


def write_janus_report(
    task: Task,
    prompts: Sequence[str],
    rows: Sequence[Json],
    results: Sequence[Result],
    rates: ErrorRates | None,
    left_out: dict[str, str],
    unknown_orientation: bool,
) -> None:
    """Write report.html, report.md and report.json to the run folder, and summary.json, which marks it as finished.

    Args:
        task: run of the task "janus-benchmark" or "janus-score".
        prompts: all prompts of the benchmark.
        rows: metrics of the methods, one dict per method (`method_row`).
        results: results of all assets.
        rates: error rates of the Janus meter, or None if they were not measured.
        left_out: prompts or files that have no result; prompt or file -> reason.
        unknown_orientation: whether the orientation of the assets is unknown, which the report mentions.
    """
    config: MeteredConfig = task.config
    about = [*explanation(config, rates, unknown_orientation), f"R-Precision is among {len(prompts)} prompts."]
    methods = [row["method"] for row in rows]
    differences = differences_of_methods(methods, results, prompts)
    figures = {
        "prompts": list(prompts),
        "meter": config.meter.model_dump(mode="json"),
        "errors": rates.plain() if rates else None,
        "truth": config.truth.model_dump(mode="json") if rates else None,
        "methods": list(rows),
        "differences": differences,
        "left_out": left_out,
        "assets": [result.plain() for result in results],
    }
    sections: list[Json] = []
    for row in rows:
        mine = [result for result in results if result.method == row["method"]]
        strips = [(result, *strip(task.folder / READINGS, result)) for result in mine]
        sections.append({"row": row, "remarks": notes(row, mine), "assets": strips})
    table = report.markdown_table(HEADS, [[clean(cell).replace("|", "/") for cell in cells(row)] for row in rows])
    lines = ["- " + clean(f"{section['row']['method']}: {note}") for section in sections for note in section["remarks"]]
    lines += [f"- left out: {clean(name)} ({reason})" for name, reason in left_out.items()]
    paired = [report.figure_table(f"{methods[0]} minus", differences, PAIRED), ""] if differences else []
    text = "\n".join(["# Janus rates", "", table, "", *paired, *lines, "", *about]) + "\n"
    html = page(
        "janus.html",
        (),
        title="Janus rates",
        head=HEADS,
        lines=[cells(row) for row in rows],
        about=about,
        sections=sections,
        left_out=left_out,
        count=sum(result.state == "seen" for result in results),
    )
    with writing(task.folder / "report.html"):
        report.write_report(task, "report", figures, text, text, {"report.html": html})


def explanation(config: MeteredConfig, rates: ErrorRates | None, unknown_orientation: bool) -> list[str]:
    meter, turn = config.meter, "turned to fit best" if unknown_orientation else "as given"
    lines = [
        f"Meter: {meter.classifier.name} ({meter.classifier.weights}), {meter.n_view} views, threshold "
        f"{meter.threshold:.3g}, assets {turn}. Intervals are 95 %: Wilson's, for the corrected rate Lang and "
        "Reiczigel's; with several answers per prompt a bootstrap over prompts. Definitions: docs/janus.md.",
        "Assets in which the meter finds no front are not part of the Janus rate and of the right side.",
    ]
    if rates is None:
        return [*lines, UNKNOWN]
    names = {"false alarms": rates.false_alarms, "recall of two fronts": rates.recall}
    names["front missed"] = rates.front_missed
    names |= {"front invented": rates.front_invented} if rates.front_invented.total else {}
    errors = ", ".join(f"{name} {report.format_rate(one)}" for name, one in names.items())
    useless = "" if rates.useful else " They are too similar to correct any rate."
    return [*lines, f"Errors on {config.truth.assets or 'toybox objects'}: {errors}.{useless}"]


def cells(row: Json) -> list[str]:
    raw, *others = (Proportion.of(row[key]) for key in ("raw", "no_front", "right", "match"))
    rate, seconds, memory = row["corrected"], row["seconds"], row["memory_mib"]
    return [
        row["method"],
        report.format_proportion(raw),
        report.format_limits(raw),
        "-" if rate["share"] is None else f"{100 * rate['share']:.1f} %",
        report.format_range(rate["low"], rate["high"]),
        *map(report.format_rate, others),
        report.format_estimate(row["likeness"]),
        "-" if seconds is None else f"{seconds:.3g}",
        "-" if memory is None else f"{memory:.0f} MiB",
    ]


def notes(row: Json, results: Sequence[Result]) -> list[str]:
    """Return remarks on a method: how many assets were not evaluated, by state such as "failed", and error messages.

    ``row`` has the metrics of the method (`method_row`), ``results`` are the results of its assets.
    """
    counts = ", ".join(f"{n} {STATES[state]}" for state, n in row["states"].items() if state != "seen")
    found = (counts, row["reason"], *(result.reason for result in results))
    return list(dict.fromkeys(sentence for sentence in found if sentence))


def strip(folder: Path, result: Result) -> tuple[Markup | None, list[tuple[str, bool, bool]]]:
    """Read the stored views of an asset from ``folder``. Return a JPEG data URI of all views, and a label for each.

    A label is (text, whether the view shows a front, whether the classified side is correct). For an asset that was not
    evaluated, the result is (None, []).
    """
    if result.state != "seen":
        return None, []
    image = load_image(folder / f"{Path(result.folder).name}.png")
    labels = zip(view_labels(np.array(result.sides)), result.shown, result.correct, strict=True)
    return data_uri(jpeg(image), ".jpg"), list(labels)
