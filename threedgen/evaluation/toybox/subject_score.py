"""Carries out the task "evaluate-subjects": is a tuned prior's subject the one in the photos, and what did it forget?

Base and tuned prior start from the same noise and cameras. The base is asked for "a dog wearing a red hat", the tuned
one for "a [v] dog wearing a red hat" (identity) and for the same as the base (what it forgot of its class); both for
held-out prompts of any kind (what it forgot of the world). With ``objects`` 3D results are made and looked at too.

RUN/subjects/003-dog/ has the photos, the mvdreambooth runs (l1/), what was measured of each (l1.json; l1-0.8.json: at
that strength; neither is made again), its views (l1-0.png: in the first setting; l1-class-0.png: of its class) and the
generate runs (objects/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError, registry
from threedgen.config.errors import did_you_mean, nearest
from threedgen.data.toybox import subjects
from threedgen.data.toybox.grammar import ACCESSORIES, COLOURS, Spec, article, caption
from threedgen.data.toybox.primitives import Asset
from threedgen.evaluation.sampling import Ring, random_ring, sample_rings
from threedgen.evaluation.tables import read_or_make
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.guidance.prior import Prior
from threedgen.run import folder as runs
from threedgen.run.metrics import read_summary
from threedgen.run.progress import Count
from threedgen.run.seeding import generator, numpy_generator
from threedgen.systems.dreambooth import task as dreambooth
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task, device, finished, run_task

from .held_out import held_out_cases
from .identity import similarity
from .judging import Verdict, judge_pictures
from .object_score import make, object_config
from .options import EvaluateSubjectsConfig, load_task
from .probe import Probe
from .subject_report import VIEWS, report, row_key

KEYS = ("noun", "colour", "bound", "order")
"""What a sample is asked for; a score is the share of right answers among those that apply."""
BATCH = 5
"""Held-out prompts that are sampled together."""

Accessory = tuple[str, str]
"""Its colour and its word; both are empty for none."""


class Instruments:
    """What samples are judged with, and how they are asked for. Raises ConfigError."""

    def __init__(self, config: EvaluateSubjectsConfig) -> None:
        self.config, self.accessories = config, tuple(accessory(setting) for setting in config.settings)
        self.probe, self.embed = Probe.load(config.probe.weights), registry.build("identity", config.identity)


@dataclass(frozen=True)
class Subject:
    """One of the toybox's, with the truth that its samples are compared with: unit vectors (V, D)."""

    asset: Asset
    folder: Path
    truth: torch.Tensor


def evaluate(task: Task) -> None:
    """Tunes, samples, judges, reports. Raises ConfigError before any work, Stopped for a run that was."""
    config, folder = task.config, task.folder
    tools, base = Instruments(config), prior_of(tuning_config(config, folder, config.preservation[0], "thing"))
    rows: list[dict[str, Any]] = []
    with Count("subjects", config.subjects, task.quiet) as count:
        before = read_or_make(folder / "held-out.json", partial(held_out, tools, base))
        for number in range(config.subjects):
            subject = photograph(tools, number, folder / "subjects", base.image_size)
            found = measure(tools, subject, base)
            found["base"]["held_out"] = before["scores"]
            rows.append({"subject": subject.folder.name, "found": found})
            count.add(1, subject.asset.caption)
    report(task, rows)


def measure(tools: Instruments, subject: Subject, base: Prior) -> dict[str, Any]:
    """Measures the base and each way of tuning on one subject, by the keys of the table's rows; tunes what is not tuned
    yet. Raises Stopped for a run that was."""
    config = tools.config
    found = {"base": read_or_make(subject.folder / "base.json", partial(samples, tools, subject, base, "base"))}
    for kind, strength in config.rows:
        tuning, key = tuning_config(config, subject.folder, kind, subject.asset.noun), row_key(kind, strength)
        tune(tuning)
        found[key] = read_or_make(subject.folder / f"{key}.json", partial(after, tools, subject, tuning, key, strength))
    if config.objects is not None:
        kind, strength = config.rows[0]
        file = str(subject.folder / kind / dreambooth.RESULT)
        tuned = {"prior.personalisation": file, "prior.personalisation_strength": strength}
        for key, prior in (("base", {}), (row_key(kind, strength), tuned)):
            path = subject.folder / f"{key}-3d.json"
            found[key]["objects"] = read_or_make(path, partial(objects, tools, subject, key, prior))
    return found


def tuning_config(config: EvaluateSubjectsConfig, folder: Path, kind: str, noun: str) -> MVDreamBoothConfig:
    """Loads the config of the run that teaches the subject in ``folder``. Raises ConfigError."""
    values = {
        "prompt": f"{article(noun)} [v] {noun}", "identifier": "[v]", "photos": [str(folder / "photos")],
        "seed": config.seed, "threads": config.threads, "out": str(folder / kind), "tuning.preservation": kind,
    }  # fmt: skip
    return load_task("config", "mvdreambooth", config.config, config.overrides, values)


def prior_of(tuning: MVDreamBoothConfig, **options: Any) -> Prior:
    """Builds what a run tunes, with other ``options``, on the device of that run."""
    prior: Prior = registry.build("prior", tuning.prior.model_copy(update=options), device(tuning.trainer.accelerator))
    return prior


def tune(config: MVDreamBoothConfig) -> None:
    """Carries out, or goes on with, one run; a finished one is left as it is. Raises Stopped if it did not end."""
    config.check()
    if not finished(Path(str(config.out)), config.trainer.max_steps):
        begun, resume = runs.open_run(config, "subjects")
        status = dreambooth.run_status(begun, resume, quiet=True)
        if status is not Status.FINISHED:
            raise Stopped(status.exit_code)


def after(
    tools: Instruments, subject: Subject, tuning: MVDreamBoothConfig, kind: str, strength: float
) -> dict[str, Any]:
    """Samples the tuned prior: the same, ``class`` (asked without the identifier), ``held_out``, and the ``seconds`` of
    the tuning."""
    run_folder = Path(str(tuning.out))
    file = {"personalisation": str(run_folder / dreambooth.RESULT), "personalisation_strength": strength}
    tuned = prior_of(tuning, **file)
    return {
        **samples(tools, subject, tuned, kind, tuning.identifier),
        "class": samples(tools, subject, tuned, f"{kind}-class"),
        "held_out": held_out(tools, tuned)["scores"],
        "seconds": read_summary(run_folder).get("seconds"),
    }


# --- what is asked of a prior, and what is seen of it --------------------------------------------------------------


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
    asset = subjects.make_subject(config.seed, number, wearing=[word for _, word in tools.accessories if word])
    place = folder / f"{number:03d}-{asset.noun.replace(' ', '-')}"
    for k, picture in enumerate(subjects.render_photos(asset, config.photos, 2 * size, config.seed)):
        if not (place / "photos" / f"{k}.png").exists():
            write_png(place / "photos" / f"{k}.png", picture)
    azimuth, elevation = cameras(config, number, 0)
    rgb = subjects.render_views(asset, azimuth, np.full(VIEWS, elevation), size)
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
    drawn = sample_rings(prior, prompts, rings, config, rngs)
    return [(views, azimuth) for views, (azimuth, _) in zip(drawn, rings, strict=True)]


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
        write_png(subject.folder / f"{key}-3d-{k}.png", grid(enlarge_small(shown), VIEWS))
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


run = partial(run_task, evaluate, result="report.md", again=True)
