"""Carries out the task "evaluate-subjects": is a tuned prior's subject the one in the photos, and what did it forget?

Base and tuned prior start from the same noise and cameras. The base is asked for "a dog wearing a red hat", the tuned
one for "a [v] dog wearing a red hat" (identity) and for the same as the base (what it forgot of its class); both for
held-out prompts of any kind (what it forgot of the world). With ``objects`` 3D results are made and looked at too.

RUN/subjects/003-dog/ has the photos, the mvdreambooth runs (l1/), what was measured of each (l1.json; l1-0.8.json: at
that strength; neither is made again), its views (l1-0.png: in the first setting; l1-class-0.png: of its class) and the
generate runs (objects/).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threedgen.config import registry
from threedgen.config.plain_file import read_json
from threedgen.data.toybox.grammar import article
from threedgen.evaluation.tables import finish, write_json
from threedgen.guidance.prior import Prior
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary
from threedgen.run.progress import Count
from threedgen.run.threads import set_threads
from threedgen.systems.dreambooth import task as dreambooth
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.train.loop import Status
from threedgen.train.task import Stopped, finished

from .object_score import load_task
from .options import EvaluateSubjectsConfig
from .probe import Probe
from .subject_report import row_key, write
from .subject_views import Instruments, Subject, accessory, held_out, objects, photograph, samples


def run(config: EvaluateSubjectsConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Tunes, samples, judges, reports; returns the exit code. Raises ConfigError before any work."""
    begun, folder = time.monotonic(), Path(str(config.out))
    accessories = tuple(accessory(setting) for setting in config.settings)
    base_config = tuning_config(config, folder, config.preservation[0], "thing").prior
    probe, embed = Probe.load(config.probe.weights), registry.build("identity", config.identity)
    tools = Instruments(probe, embed, config, accessories)
    set_threads(config.threads)
    base = registry.build("prior", base_config)
    rows: list[dict[str, Any]] = []
    with Count("subjects", config.subjects, quiet) as count:
        before = once(folder / "held-out.json", held_out, tools, base)
        for number in range(config.subjects):
            subject = photograph(tools, number, folder / "subjects", base.image_size)
            try:
                found = measure(tools, subject, base)
            except Stopped as stop:
                return stop.status.exit_code
            found["base"]["held_out"] = before["scores"]
            rows.append({"subject": subject.folder.name, "found": found})
            count.add(1, subject.asset.caption)
    write(config, folder, rows)
    return finish(config, begun, "report.md")


def measure(tools: Instruments, subject: Subject, base: Prior) -> dict[str, Any]:
    """Measures the base and each way of tuning on one subject, by the keys of the table's rows; tunes what is not tuned
    yet. Raises Stopped for a run that was."""
    config = tools.config
    found = {"base": once(subject.folder / "base.json", samples, tools, subject, base, "base")}
    for kind, strength in config.rows:
        tuning, key = tuning_config(config, subject.folder, kind, subject.asset.noun), row_key(kind, strength)
        tune(tuning)
        found[key] = once(subject.folder / f"{key}.json", after, tools, subject, tuning, key, strength)
    if config.objects is not None:
        kind, strength = config.rows[0]
        file = str(subject.folder / kind / dreambooth.RESULT)
        tuned = {"prior.personalisation": file, "prior.personalisation_strength": strength}
        for key, prior in (("base", {}), (row_key(kind, strength), tuned)):
            found[key]["objects"] = once(subject.folder / f"{key}-3d.json", objects, tools, subject, key, prior)
    return found


def tuning_config(config: EvaluateSubjectsConfig, folder: Path, kind: str, noun: str) -> MVDreamBoothConfig:
    """Loads the config of the run that teaches the subject in ``folder``. Raises ConfigError."""
    values = {
        "prompt": f"{article(noun)} [v] {noun}", "identifier": "[v]", "photos": [str(folder / "photos")],
        "seed": config.seed, "threads": config.threads, "out": str(folder / kind), "tuning.preservation": kind,
    }  # fmt: skip
    return load_task("config", "mvdreambooth", config.config, config.overrides, values)


def tune(config: MVDreamBoothConfig) -> None:
    """Carries out, or goes on with, one run; a finished one is left as it is. Raises Stopped if it did not end."""
    config.check()
    if not finished(Path(str(config.out)), config.trainer.max_steps):
        begun, resume = runs.begin(config, "subjects")
        status = dreambooth.run_status(begun, resume, quiet=True)
        if status is not Status.FINISHED:
            raise Stopped(status)


def after(
    tools: Instruments, subject: Subject, tuning: MVDreamBoothConfig, kind: str, strength: float
) -> dict[str, Any]:
    """Samples the tuned prior: the same, ``class`` (asked without the identifier), ``held_out``, and the ``seconds`` of
    the tuning."""
    run_folder = Path(str(tuning.out))
    file = {"personalisation": str(run_folder / dreambooth.RESULT), "personalisation_strength": strength}
    tuned = registry.build("prior", tuning.prior.model_copy(update=file))
    return {
        **samples(tools, subject, tuned, kind, tuning.identifier),
        "class": samples(tools, subject, tuned, f"{kind}-class"),
        "held_out": held_out(tools, tuned)["scores"],
        "seconds": read_summary(run_folder).get("seconds"),
    }


def once(path: Path, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Reads a file, or writes there what ``make(*arguments)`` gives, so that a killed run goes on."""
    found = read_json(path)
    if not found:
        found = make(*arguments)
        write_json(path, found)
    return found
