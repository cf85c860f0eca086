"""Task "evaluate-subjects": tune a prior on subjects, and measure the identity of the subjects and forgetting.

Samples of the base prior and of the tuned prior start from the same noise and have the same cameras. The base prior
receives "a dog wearing a red hat". The tuned prior receives "a [v] dog wearing a red hat" (identity) and the prompt of
the base prior (forgetting of the class). Both receive held-out prompts of any noun (general forgetting). If
``objects`` is set, 3D objects are made and measured too.

RUN/subjects/003-dog/   photos, mvdreambooth runs (l1/), measurements (l1.json; l1-0.8.json at another strength), views
                        (l1-0.png of the first setting; l1-class-0.png of its class), generate runs (objects/)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError, registry
from threedgen.config.errors import did_you_mean, nearest
from threedgen.evaluation.metrics.figures import Json
from threedgen.evaluation.runner import Evaluation, evaluation_task, kept_json
from threedgen.evaluation.samples import Ring, random_ring, ring_poses, sample_objects
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.guidance.prior import Prior
from threedgen.run import folder as runs
from threedgen.run.arrays import Array
from threedgen.run.metrics import read_summary
from threedgen.run.seeding import generator, numpy_generator
from threedgen.systems.dreambooth import task as dreambooth
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.toybox.data import subjects
from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, Spec, article, caption
from threedgen.toybox.world.primitives import Asset
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task, device, finished

from .held_out import held_out_cases
from .identity import similarity
from .judging import Verdict, judge_views
from .object_score import make, object_config
from .options import EvaluateSubjectsConfig, load_task
from .probe import Probe
from .subject_report import VIEWS, row_key, write_subjects

KEYS = ("noun", "colour", "bound", "order")
"""Keys of the answers in the score of a sample, which is the share of correct answers."""
BATCH = 5
"""Number of held-out prompts per batch."""
Accessory = tuple[str, str]
"""Colour and noun of an accessory; both are "" for no accessory."""
ViewsOfSetting = tuple[Array, Array]
"""Views (V, S, S, 3) of one setting, uint8 or in [0, 1], and azimuths (V,) of their cameras, radians."""


@dataclass(frozen=True)
class Subject:
    """Subject: toybox object, folder, and identity vectors ``truth`` (V, D) of its true views, unit length."""

    asset: Asset
    folder: Path
    truth: Tensor


class Subjects(Evaluation[EvaluateSubjectsConfig, int, Json]):
    """Evaluation of priors that are tuned on toybox subjects. An item is the number of a subject."""

    stage = "subjects"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.items = range(config.subjects)
        self.accessories = [accessory(setting) for setting in config.settings]
        self.probe = Probe.load(config.probe.weights)
        self.embed: Callable[[Tensor], Tensor] = registry.build("identity", config.identity)
        self.base = prior_of(tuning_config(config, self.folder, config.preservation[0], "thing"))

    def prepare(self) -> None:
        self.base_scores = kept_json(self.folder / "held-out.json", partial(self.held_out, self.base))["scores"]

    def measure(self, item: int) -> Json:
        """Measure the base prior and each tuned prior on one subject. ``found`` maps table rows to measurements."""
        config, subject = self.config, self.make_subject(item)
        self.progress.note(subject.folder.name)
        found = {"base": kept_json(subject.folder / "base.json", partial(self.samples, subject, self.base, "base"))}
        for method, strength in config.rows:
            tuning, key = tuning_config(config, subject.folder, method, subject.asset.noun), row_key(method, strength)
            tune(tuning)
            found[key] = kept_json(subject.folder / f"{key}.json", partial(self.tuned, subject, tuning, key, strength))
        if config.objects is not None:
            method, strength = config.rows[0]
            file = str(subject.folder / method / dreambooth.RESULT)
            options = {"prior.personalisation": file, "prior.personalisation_strength": strength}
            for key, prior in (("base", {}), (row_key(method, strength), options)):
                path = subject.folder / f"{key}-3d.json"
                found[key]["objects"] = kept_json(path, partial(self.objects, subject, key, prior))
        found["base"]["held_out"] = self.base_scores
        return {"subject": subject.folder.name, "found": found}

    def report(self, rows: list[Json]) -> None:
        write_subjects(self.task, rows)

    def make_subject(self, number: int) -> Subject:
        """Create subject ``number``, write its photos, and encode its true views from the cameras of setting 0."""
        config, size = self.config, self.base.image_size
        asset = subjects.make_subject(config.seed, number, wearing=[word for _, word in self.accessories if word])
        folder = self.folder / "subjects" / f"{number:03d}-{asset.noun.replace(' ', '-')}"
        for k, image in enumerate(subjects.render_photos(asset, config.photos, 2 * size, config.seed)):
            if not (folder / "photos" / f"{k}.png").exists():
                write_png(folder / "photos" / f"{k}.png", image)
        azimuth, elevation = self.ring(number, 0)
        rgb = subjects.render_views(asset, azimuth, np.full(VIEWS, elevation), size)
        return Subject(asset, folder, self.embed(torch.from_numpy(rgb)))

    def ring(self, number: int, setting: int) -> Ring:
        """Choose the random cameras for the samples of a subject in a setting."""
        return random_ring(numpy_generator(self.config.seed, number, f"subject cameras {setting}"), VIEWS, (5, 30))

    def sample(self, prior: Prior, prompts: Sequence[str], places: Sequence[tuple[int, int]]) -> list[ViewsOfSetting]:
        """Sample a batch of prompts. ``places`` has number and setting of each, which seed cameras and noise."""
        config = self.config
        rings = [self.ring(*place) for place in places]
        rngs = [generator(config.seed, number, f"subject sample {setting}") for number, setting in places]
        c2w = torch.stack([ring_poses(ring) for ring in rings])
        views = sample_objects(prior, prompts, c2w, rngs, config.steps, config.guidance_scale)
        return [(images, azimuth) for images, (azimuth, _) in zip(views, rings, strict=True)]

    def held_out(self, prior: Prior) -> Json:
        """Sample held-out prompts, which are the same for all priors, and return the score of each under ``scores``."""
        cases, scores = held_out_cases(self.config.held_out, self.config.seed), []
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            samples = self.sample(prior, [case.caption for case in batch], [(case.index, -1) for case in batch])
            for case, (views, azimuth) in zip(batch, samples, strict=True):
                scores.append(score(judge_views(self.probe, views, case.spec, azimuth)))
        return {"scores": scores}

    def samples(self, subject: Subject, prior: Prior, name: str, identifier: str = "") -> Json:
        """Sample a subject in each setting, write the images, and return ``identity``, ``answers``, ``scores``."""
        noun, number = subject.asset.noun, subject.asset.index
        prompts = [prompt_of(noun, worn, identifier) for worn in self.accessories]
        samples = self.sample(prior, prompts, [(number, k) for k in range(len(prompts))])
        for k, (views, _) in enumerate(samples):
            write_png(subject.folder / f"{name}-{k}.png", grid(views, VIEWS))
        found, verdicts = self.compare(subject, samples)
        return found | {"scores": [score(verdict) for verdict in verdicts]}

    def tuned(self, subject: Subject, tuning: MVDreamBoothConfig, key: str, strength: float) -> Json:
        """Measure a tuned prior by samples of the subject, of its class (``class``) and of ``held_out`` prompts."""
        folder = Path(str(tuning.out))
        options = {"personalisation": str(folder / dreambooth.RESULT), "personalisation_strength": strength}
        prior = prior_of(tuning, **options)
        return {
            **self.samples(subject, prior, key, tuning.identifier),
            "class": self.samples(subject, prior, f"{key}-class"),
            "held_out": self.held_out(prior)["scores"],
            "seconds": read_summary(folder).get("seconds"),
        }

    def objects(self, subject: Subject, key: str, prior: Mapping[str, object]) -> Json:
        """Make a 3D object of each setting, write its images, and return ``identity`` and ``answers``.

        Args:
            key: key of the table row.
            prior: config values that select a tuned prior; empty for the base prior.
        """
        results = []
        for k, worn in enumerate(self.accessories):
            prompt = prompt_of(subject.asset.noun, worn, "[v]" if prior else "")
            place = f"subjects/{subject.folder.name}/objects/{key}-{k}"
            result = make(object_config(self.config, "objects", prompt, place, **prior))
            shown = result.views[:: len(result.views) // VIEWS]
            write_png(subject.folder / f"{key}-3d-{k}.png", grid(enlarge_small(shown), VIEWS))
            results.append((result.views, result.azimuth))
        return self.compare(subject, results, vote=True)[0]

    def compare(
        self, subject: Subject, settings: Sequence[ViewsOfSetting], vote: bool = False
    ) -> tuple[Json, list[Verdict]]:
        """Compare the views of each setting with the true views of the subject and with its accessory."""
        identity, verdicts = [], []
        for worn, (views, azimuth) in zip(self.accessories, settings, strict=True):
            images = torch.from_numpy(views).float() / (255 if views.dtype == np.uint8 else 1)
            identity.append(similarity(self.embed(images), subject.truth))
            verdicts.append(judge_views(self.probe, views, spec_of(subject.asset.noun, worn), azimuth, vote))
        answers = [{key: verdict.answers.get(key) for key in KEYS} for verdict in verdicts]
        return {"identity": identity, "answers": answers}, verdicts


def tuning_config(config: EvaluateSubjectsConfig, folder: Path, method: str, noun: str) -> MVDreamBoothConfig:
    """Load the config that tunes the prior on the photos of the subject in ``folder``. Raises ConfigError."""
    values = {
        "prompt": f"{article(noun)} [v] {noun}", "identifier": "[v]", "photos": [str(folder / "photos")],
        "seed": config.seed, "threads": config.threads, "out": str(folder / method), "tuning.preservation": method,
    }  # fmt: skip
    tuning: MVDreamBoothConfig = load_task("config", "mvdreambooth", config.config, config.overrides, values)
    return tuning


def prior_of(tuning: MVDreamBoothConfig, **options: object) -> Prior:
    """Build the prior of a tuning config, with changed ``options``, on the device of the config."""
    prior: Prior = registry.build("prior", tuning.prior.model_copy(update=options), device(tuning.trainer.accelerator))
    return prior


def tune(config: MVDreamBoothConfig) -> None:
    """Start or resume a tuning run. A finished run is not repeated. Raises Stopped if the run does not finish."""
    config.check()
    if not finished(Path(str(config.out)), config.trainer.max_steps):
        run_config, resume = runs.open_run(config, "subjects")
        status = dreambooth.run_status(run_config, resume, quiet=True)
        if status is not Status.FINISHED:
            raise Stopped(status.exit_code)


def accessory(setting: str) -> Accessory:
    """Parse a setting: "red hat" -> ("red", "hat"), "" -> ("", ""). Raises ConfigError for an unknown word."""
    if not setting:
        return "", ""
    colour, word = setting.split()
    for value, known, kind in ((colour, COLOURS, "colour"), (word, ACCESSORIES, "accessory")):
        if value not in known:
            guess = did_you_mean(nearest(value, known))
            raise ConfigError(f"the toybox has no {kind} {value!r}{guess}", "settings")
    return colour, word


def spec_of(noun: str, worn: Accessory) -> Spec:
    """Return the specification of an object with a noun and an accessory."""
    return Spec(noun, "", "", worn[1], worn[0])


def prompt_of(noun: str, worn: Accessory, identifier: str = "") -> str:
    """Return a prompt like "a dog wearing a red hat", or "a [v] dog wearing a red hat" with the identifier "[v]"."""
    return caption(spec_of(noun, worn)).replace(noun, f"{identifier} {noun}".strip(), 1)


def score(verdict: Verdict) -> float:
    """Return the share of correct answers to `KEYS`, in [0, 1]. Answers that do not apply are not counted."""
    return float(np.mean([verdict.answers[key] for key in KEYS if verdict.answers.get(key) is not None]))


run = evaluation_task(Subjects)
