"""Tasks "janus-benchmark" and "janus-score": Janus rates of text-to-3D methods.

"janus-benchmark" makes objects with each method and evaluates them. "janus-score" evaluates existing mesh files.

RUN/runs/KEY/     run of one job (one object), and its exit state; finished jobs are not repeated; KEY has a config hash
RUN/looks/        classified views of each object (`report.Reader`)
RUN/meter.json    error rates of the Janus meter, which counts fronts, on objects with a known number of fronts
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from threedgen.config.plain_file import read_json
from threedgen.data.assets.listing import Asset
from threedgen.evaluation.metrics.figures import Json
from threedgen.evaluation.metrics.fronts import ErrorRates
from threedgen.evaluation.runner import Evaluation, cached_json, evaluation_task, measure_all
from threedgen.run.threads import set_threads
from threedgen.systems.batch.jobs import FAILED, FINISHED, RECORD, REFUSED, Job, make_all
from threedgen.train.task import Stopped, Task

from .meter import Meter, MeterErrors
from .options import UNREADABLE, JanusBenchmarkConfig, JanusScoreConfig, MeteredConfig, asset_files, folder_of_assets
from .report import READINGS, VERSION, Reader, Result, method_row, write_janus_report

logger = logging.getLogger(__name__)
M = TypeVar("M", bound=MeteredConfig)
Item = TypeVar("Item")
FILES = ("report.html",)
MESH = "mesh.glb"


class JanusRates(Evaluation[M, Item, Result]):
    """Base class of the tasks "janus-benchmark" and "janus-score", which compute Janus rates of methods.

    The Janus rate of a method is the fraction of objects with two or more fronts, among its objects with at least one.
    This class measures the error rates of the Janus meter (`meter.Meter`, which counts fronts), and writes the report.
    A subclass sets `items` (assets) and `prompts` in its constructor, and implements `measure(item)`, which returns the
    `Result` of an asset, and `report(rows)`, which calls `write` with the list of results.
    """

    unknown_orientation = False
    toybox = False  # whether all assets are toybox objects
    prompts: Sequence[str]

    def prepare(self) -> None:
        self.reader = Reader(self.config.meter, self.prompts, self.folder / READINGS, self.unknown_orientation)
        self.rates = self.error_rates()

    def error_rates(self) -> ErrorRates | None:
        """Return the error rates of the Janus meter, which counts the fronts of an object: misses and false alarms.

        They are read from RUN/meter.json if it is up to date, else measured on objects with a known number of fronts:
        those in the folder of the option ``truth.assets``, or toybox objects (procedural objects of this package) if it
        is null. The result is None if the option ``truth.objects`` is 0. It is also None if ``truth.assets`` is null
        and one of the assets to evaluate is no toybox object.
        """
        config = self.config
        if not config.truth.objects or not (self.toybox or config.truth.assets):
            return None
        key: Json = {name: getattr(config, name).model_dump(mode="json") for name in ("meter", "truth")}
        key["weights"] = self.reader.meter.weights
        if config.truth.assets:
            folder = Path(config.truth.assets).expanduser()
            files = {*folder.rglob("[!.]*"), *asset_files(folder), *folder.parent.glob("[Tt]extures/*")}
            stats = ((str(path), path.stat()) for path in sorted(files) if path.is_file())
            key["files"] = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]

        def measure() -> Json:
            errors = MeterErrors(self.task, self.reader.meter)
            return errors.rates(measure_all(errors)).plain()

        kept = cached_json(self.folder / "meter.json", measure, **key, seed=config.seed, version=VERSION)
        return ErrorRates.from_plain(kept)

    def write(
        self, methods: Sequence[str], rows: Sequence[Result], left_out: dict[str, str], refused: Mapping[str, str]
    ) -> None:
        of = {method: [row for row in rows if row.method == method] for method in methods}
        table = [method_row(method, mine, self.prompts, self.rates, refused.get(method)) for method, mine in of.items()]
        write_janus_report(self.task, self.prompts, table, rows, self.rates, left_out, self.unknown_orientation)


class Benchmark(JanusRates[JanusBenchmarkConfig, Job]):
    """Task "janus-benchmark": make an object per prompt, method and seed, and compute Janus rates of the methods.

    A method is a config that makes an object of a prompt. The Janus rate is the fraction of objects with two or more
    fronts among those with at least one. An item, the argument of `measure`, is the job of one object: its method,
    prompt, seed and config.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.plan = self.config.plan()
        self.items, self.prompts, self.toybox = self.plan.jobs, self.plan.prompts, self.plan.toybox
        for note in self.plan.notes():
            logger.warning("%s", note)
        Meter(self.config.meter)  # a missing classifier is reported before hours of work

    def prepare(self) -> None:
        if code := make_all(self.config, self.plan.jobs, self.folder / "runs", self.task.quiet):
            raise Stopped(code)
        set_threads(self.config.threads)
        super().prepare()

    def measure(self, item: Job) -> Result:
        run = self.folder / "runs" / item.key
        record = read_json(run / RECORD)
        state, found = record.get("state"), Json(state="missing")
        if state == FINISHED:
            found = self.reader.read(run / MESH, item.key, item.prompt)
            found |= {"seconds": round(record["seconds"], 3), "memory_mib": record.get("memory_mib")}
        elif state == FAILED:
            found = {"state": "failed", "reason": record.get("reason", "")}
        elif state == REFUSED:
            self.plan.refused[item.method] = record["reason"]
        return Result(item.method, item.prompt, item.seed, f"runs/{item.key}", **found)

    def report(self, rows: list[Result]) -> None:
        self.write(self.config.methods, rows, self.plan.left_out, self.plan.refused)


class Score(JanusRates[JanusScoreConfig, Asset]):
    """Task "janus-score": compute Janus rates of mesh files ASSETS/METHOD/a-blue-dog.glb or ASSETS/a-blue-dog.glb.

    The Janus rate of a method is the fraction of objects with two or more fronts, among its objects with at least one.
    Files directly in ASSETS (the folder of the option ``assets``) are of one method, named after this folder. The
    prompt of a file is its name without suffix, with spaces instead of "-" and "_" (or that of the folder
    ASSETS/METHOD/a-blue-dog, see `options.prompts_of`), unless the config or ASSETS/captions.csv sets another one. Each
    mesh is centred and scaled to fit into a ball. An item, the argument of `measure`, is a mesh file with its prompt.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.unknown_orientation = self.config.orientation == "free"
        self.assets = folder_of_assets(self.config.assets, "assets")
        self.items, unused = self.config.listing()
        skipped = [path.relative_to(self.assets).as_posix() for path in asset_files(self.assets, UNREADABLE)]
        self.left_out = dict.fromkeys(skipped, "only GLB, glTF, OBJ, PLY and OFF files are read") | unused
        self.prompts = list(dict.fromkeys(asset.caption for asset in self.items))

    def method(self, asset: Asset) -> str:
        folder, _, inside = asset.file.partition("/")
        return folder if inside else self.assets.resolve().name

    def measure(self, item: Asset) -> Result:
        found = self.reader.read(self.assets / item.file, item.name, item.caption, item.up, item.turn, fit=True)
        return Result(self.method(item), item.caption, None, item.name, **found)

    def report(self, rows: list[Result]) -> None:
        self.write(list(dict.fromkeys(map(self.method, self.items))), rows, self.left_out, {})


run = evaluation_task(Benchmark, FILES[0], FILES)
score = evaluation_task(Score, FILES[0], FILES)
