"""The task "evaluate-subjects": is a tuned prior's subject the one in the photos, and what did it forget?

    RUN/subjects/003-dog/photos/       what it was learnt from
    RUN/subjects/003-dog/l1/           the mvdreambooth run; a finished one is not made again
    RUN/subjects/003-dog/l1.json       what was measured of it; likewise (l1-0.8.json: at that strength)
    RUN/subjects/003-dog/l1-0.png      four views of it in the first setting; l1-class-0.png: of its class
    RUN/subjects/003-dog/objects/      generate runs of the base and of the tuned prior, if they are asked for
    RUN/report.json, report.md         the table, paired with the base, with intervals
    RUN/objects.png                    photos and views of the objects, if any
    RUN/sheet.png                      photos, the base's samples, the tuned one's in two settings and of its class

Base and tuned prior start from the same noise and cameras. The base is asked for "a dog wearing a red hat", the tuned
one for "a [v] dog wearing a red hat" (identity) and for the same as the base (what it forgot of its class); both for
held-out prompts of any kind (what it forgot of the world). With ``objects`` 3D results are made and looked at too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.config import ConfigError, load, registry
from threedgen.data.toybox.grammar import article
from threedgen.geometry.cameras import orbit_c2w
from threedgen.geometry.images import grid, to_uint8, write_png
from threedgen.run import folder as runs
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import read_summary, write_summary
from threedgen.run.progress import Count
from threedgen.run.seeding import generator
from threedgen.systems.dreambooth import task as dreambooth
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.train.loop import Status, set_threads
from threedgen.train.task import finished

from .held_out import held_out_cases
from .identity import likeness
from .judging import judge_pictures
from .options import EvaluateSubjectsConfig
from .prior_score import FOV, RELATIVE_DISTANCE, sample_batch
from .probe import Probe
from .subject_cases import KEYS, VIEWS, Instruments, Subject, accessory, asked_for, score, spec, stand, subject
from .subject_objects import objects
from .subject_report import row_key, write

BATCH = 5
"""Held-out prompts that are sampled together."""


def run(config: EvaluateSubjectsConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Tune, sample, look, report; returns the exit code. Raises ConfigError before any work if something is missing."""
    begun, folder = time.monotonic(), Path(str(config.out))
    worn = [accessory(setting) for setting in config.settings]
    base_config = tuning_config(config, folder, config.preservation[0], "thing").prior
    look = Instruments(Probe.load(config.probe.weights), registry.build("identity", config.identity), config)
    set_threads(config.threads)
    base = registry.build("prior", base_config)
    rows: list[dict[str, Any]] = []
    with Count("subjects", config.subjects, quiet) as count:
        before = once(folder / "held-out.json", held_out, look, base)
        for number in range(config.first, config.first + config.subjects):
            thing = subject(look, number, worn, folder / "subjects", base.image_size)
            found = {"base": once(thing.folder / "base.json", samples, look, thing, worn, base, "base")}
            found["base"]["held_out"] = before["scores"]
            for kind, strength in config.rows:
                wanted = tuning_config(config, thing.folder, kind, thing.asset.noun)
                status = tune(wanted)
                if status is not Status.FINISHED:
                    return status.exit_code
                key = row_key(kind, strength)
                found[key] = once(thing.folder / f"{key}.json", after, look, thing, worn, wanted, key, strength)
            if config.objects is not None:
                kind, strength = config.rows[0]
                tuned = {
                    "prior.personalisation": str(thing.folder / kind / dreambooth.RESULT),
                    "prior.personalisation_strength": strength,
                }
                for key, prior in (("base", {}), (row_key(kind, strength), tuned)):
                    path = thing.folder / f"{key}-3d.json"
                    found[key]["objects"] = once(path, objects, look, thing, worn, key, prior)
            rows.append({"subject": thing.folder.name, "found": found})
            count.add(1, thing.asset.caption)
    write(config, folder, rows)
    write_summary(folder, config, time.monotonic() - begun, status="finished")
    print(folder / "report.md")
    return 0


# --- the tuned priors ---------------------------------------------------------------------------------------------


def tuning_config(config: EvaluateSubjectsConfig, folder: Path, kind: str, noun: str) -> MVDreamBoothConfig:
    """The run that teaches the subject in ``folder``. Raises ConfigError for a config of another task."""
    values = {
        "prompt": f"{article(noun)} [v] {noun}", "identifier": "[v]", "photos": [str(folder / "photos")],
        "seed": config.seed, "threads": config.threads, "out": str(folder / kind), "tuning.preservation": kind,
    }  # fmt: skip
    task = load(config.config, list(config.overrides)).task
    if task != "mvdreambooth":
        raise ConfigError(f"should be a config of the task mvdreambooth (got {config.config!r}, {task})", "config")
    return load(config.config, list(config.overrides), values)


def tune(config: MVDreamBoothConfig) -> Status:
    """Carries out, or goes on with, one run; a finished one is left as it is."""
    config.check()
    begun, resume = runs.begin(config, "subjects")
    if finished(Path(str(begun.out)), config.trainer.max_steps):
        return Status.FINISHED
    return dreambooth.run_status(begun, resume, quiet=True)


# --- what is seen ------------------------------------------------------------------------------------------------


def sampled(
    look: Instruments, prior: Any, prompts: Sequence[str], places: Sequence[tuple[int, int]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each prompt its views (4, S, S, 3) uint8 and their azimuth (4,); ``places``: (number, setting) of each, which
    draw its cameras and its noise. All are sampled together."""
    config, azimuths, cameras, rngs = look.config, [], [], []
    for number, setting in places:
        azimuth, elevation = stand(config, number, setting)
        ring = torch.from_numpy(azimuth).float()
        away = torch.full_like(ring, RELATIVE_DISTANCE / np.tan(FOV / 2))
        cameras.append(orbit_c2w(torch.full_like(ring, elevation), ring, away))
        rngs.append(generator(config.seed, number, f"subject sample {setting}"))
        azimuths.append(azimuth)
    drawn = sample_batch(prior, prompts, torch.stack(cameras), config.steps, config.guidance_scale, rngs)
    return [to_uint8(views) for views in drawn], azimuths


def samples(
    look: Instruments, thing: Subject, worn: Sequence[tuple[str, str]], prior: Any, kind: str, identifier: str = ""
) -> dict[str, Any]:
    """What is seen of a subject in each setting: ``identity``, answers and ``scores``; each is a picture too."""
    noun, number = thing.asset.noun, thing.asset.index
    prompts = [asked_for(noun, setting, identifier) for setting in worn]
    drawn, azimuths = sampled(look, prior, prompts, [(number, k) for k in range(len(worn))])
    likes, answers, scores = [], [], []
    for k, (setting, views, azimuth) in enumerate(zip(worn, drawn, azimuths, strict=True)):
        write_png(thing.folder / f"{kind}-{k}.png", grid(views, VIEWS))
        verdict = judge_pictures(look.probe, views, spec(noun, setting), azimuth)
        likes.append(likeness(look.embed(torch.from_numpy(views).float() / 255), thing.truth))
        answers.append({key: verdict.answers.get(key) for key in KEYS})
        scores.append(score(verdict))
    return {"identity": likes, "answers": answers, "scores": scores}


def after(
    look: Instruments,
    thing: Subject,
    worn: Sequence[tuple[str, str]],
    wanted: MVDreamBoothConfig,
    kind: str,
    strength: float,
) -> dict[str, Any]:
    """The same of the tuned prior; ``class``: asked without the identifier; ``held_out``; ``seconds`` of the tuning."""
    run_folder = Path(str(wanted.out))
    file = {"personalisation": str(run_folder / dreambooth.RESULT), "personalisation_strength": strength}
    prior = wanted.prior.model_copy(update=file)
    tuned = registry.build("prior", prior)
    return {
        **samples(look, thing, worn, tuned, kind, wanted.identifier),
        "class": samples(look, thing, worn, tuned, f"{kind}-class"),
        "held_out": held_out(look, tuned)["scores"],
        "seconds": read_summary(run_folder).get("seconds"),
    }


def held_out(look: Instruments, prior: Any) -> dict[str, Any]:
    """Scores of held-out prompts, the same for every prior."""
    cases, scores = held_out_cases(look.config.held_out, look.config.seed), []
    for begin in range(0, len(cases), BATCH):
        some = cases[begin : begin + BATCH]
        drawn = sampled(look, prior, [case.caption for case in some], [(case.index, -1) for case in some])
        for case, views, azimuth in zip(some, *drawn, strict=True):
            scores.append(score(judge_pictures(look.probe, views, case.spec, azimuth)))
    return {"scores": scores}


def once(path: Path, make: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a file holds, or what ``make(*arguments)`` gives, written there, so that a killed run goes on."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = make(*arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(found, indent=1) + "\n")
        return found
