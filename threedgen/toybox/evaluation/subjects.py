"""Task "evaluate-subjects": tune a prior on photos of subjects (MVDreamBooth), and measure the samples of the result.

Subjects are unusual toybox objects; "[v]" is the identifier, a new word for the subject. The probe is a classifier of
toybox images. Samples of the base prior (before the tuning) and of the tuned prior start from the same noise and have
the same cameras. There are three measurements:
    identity              similarity of samples to true views of the subject, for "a [v] dog wearing a red hat"
    forgetting of a class fewer right answers of the probe for "a dog wearing a red hat" than with the base prior
    general forgetting    fewer right answers for held-out prompts of any noun than with the base prior

RUN/subjects/003-dog/   photos, measurements of the base prior (base.json), and for each method against forgetting,
                        such as l1 (penalty): the mvdreambooth run (l1/), measurements (l1.json; l1-0.8.json with 0.8
                        times the change of the weights), and sampled views (l1-0.png of the first prompt, with the
                        identifier; l1-class-0.png of the same prompt without the identifier)
RUN/report.json, report.md, sheet.png    comparison of the methods, and some of the samples
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.evaluation import runner
from threedgen.evaluation.metrics.figures import Json, mean_estimate
from threedgen.evaluation.report import format_estimate, write_report
from threedgen.geometry.image_file import load_image
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.prior import Prior
from threedgen.run import folder as runs
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.metrics import read_summary
from threedgen.run.seeding import generator, numpy_generator
from threedgen.systems.dreambooth import task as dreambooth
from threedgen.systems.dreambooth.options import MVDreamBoothConfig
from threedgen.toybox.data.subjects import make_subject, render_photos
from threedgen.toybox.world.grammar import Spec, article, caption
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.toybox import render_orbit
from threedgen.train.status import Status
from threedgen.train.task import Stopped, Task, device

from .held_out import held_out_cases
from .identity import ToyboxIdentity, similarity
from .judging import Verdict, judge_views
from .options import EvaluateSubjectsConfig, load_task
from .probe import Probe
from .subject_report import Rows, compare, row_key, row_name, table

KEYS = ("noun", "colour", "bound", "order")
"""Keys of the probe's answers that count in the score of a sample, which is the share of correct answers."""
VIEWS = 4
BATCH = 5
PHOTOS, HELD_OUT_PROMPTS = 5, 20  # training images per subject, and held-out prompts that show what was forgotten
Accessory = tuple[str, str]  # colour and noun of an accessory; both are "" for no accessory
ACCESSORIES_WORN: tuple[Accessory, ...] = (("", ""), ("red", "hat"), ("blue", "scarf"), ("green", "glasses"))
"""Accessories (colour, noun), one for each prompt of a subject; ("", ""): none. `setting` is an index into it."""


@dataclass(frozen=True)
class Subject:
    """Toybox object for a personalisation test.

    Attributes:
        asset: the object.
        folder: folder of its photos, runs and measurements.
        truth: unit vectors (V, D), one for each of V renders of the object from cameras other than those of the photos.
            The identity network (`ToyboxIdentity`) maps an image to such a vector; images of one object have similar
            ones.
    """

    asset: Asset
    folder: Path
    truth: Tensor


class Subjects(runner.Evaluation[EvaluateSubjectsConfig, int, Json]):
    """Evaluation of priors (image generators) that are tuned on photos of unusual toybox objects, the subjects.

    It measures how well samples of a tuned prior show the subject, and how much it has forgotten: how much worse it
    samples ordinary toybox objects than before. `measure` gets the number of a subject and returns its measurements.
    """

    stage = "subjects"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        self.items = range(config.subjects)
        self.probe = Probe.load(config.probe.weights)
        self.embed = ToyboxIdentity(config.identity)
        self.base = prior_of(tuning_config(config, self.folder, config.preservation[0], "thing"))
        prior, identity, probe = digest(self.base.networks), digest(self.embed.net), digest(self.probe)
        self.weights = {"prior_weights": prior, "identity_weights": identity, "probe_weights": probe}

    def prepare(self) -> None:
        found = runner.cached_json(self.folder / "held-out.json", partial(self.held_out, self.base), **self.weights)
        self.base_scores = found["scores"]

    def measure(self, item: int) -> Json:
        config, subject = self.config, self.make_subject(item)
        self.progress.note(subject.folder.name)
        base = partial(self.measure_samples, subject, self.base, "base")
        found = {"base": runner.cached_json(subject.folder / "base.json", base, **self.weights)}
        for method, strength in config.rows:
            tuning, key = tuning_config(config, subject.folder, method, subject.asset.noun), row_key(method, strength)
            tune(tuning)
            found[key] = runner.cached_json(
                subject.folder / f"{key}.json",
                partial(self.measure_tuned, subject, tuning, key, strength),
                **self.weights,
            )
        found["base"]["held_out"] = self.base_scores
        return {"subject": subject.folder.name, "found": found}

    def make_subject(self, number: int) -> Subject:
        config, size = self.config, self.base.image_size
        asset = make_subject(config.seed, number, wearing=[word for _, word in ACCESSORIES_WORN if word])
        folder = self.folder / "subjects" / f"{number:03d}-{asset.noun.replace(' ', '-')}"
        for k, image in enumerate(render_photos(asset, PHOTOS, 2 * size, config.seed)):
            if not (folder / "photos" / f"{k}.png").exists():
                write_png(folder / "photos" / f"{k}.png", image)
        azimuth, elevation = self.ring(number, 0)
        rgb = render_orbit(asset, azimuth, np.full(VIEWS, elevation), size).rgb
        return Subject(asset, folder, self.embed(torch.from_numpy(rgb)))

    def ring(self, number: int, setting: int) -> runner.Ring:
        return runner.random_ring(
            numpy_generator(self.config.seed, number, f"subject cameras {setting}"), VIEWS, (5, 30)
        )

    def sample(
        self, prior: Prior, prompts: Sequence[str], seeds: Sequence[tuple[int, int]]
    ) -> list[tuple[Array, Array]]:
        """Sample V = 4 views of each prompt.

        ``seeds`` has a pair of integers per prompt, which seeds its cameras and noise: priors that sample with the same
        pair have the same cameras and noise. A subject is an unusual toybox object with a number, and has four prompts.
        The pair of its prompt k, from 0 to 3, is (number of the subject, k). For a held-out prompt, which no training
        of a prior uses, the pair is (number of the prompt in the held-out split of the toybox, -1).

        Return one pair per prompt: views (V, S, S, 3), uint8, where S is the image size of the prior, and azimuths (V,)
        of their cameras in radians, 0 at the front.
        """
        config = self.config
        rings = [self.ring(*pair) for pair in seeds]
        rngs = [generator(config.seed, number, f"subject sample {setting}") for number, setting in seeds]
        c2w = torch.stack([runner.ring_poses(ring) for ring in rings])
        views = runner.sample_objects(prior, prompts, c2w, rngs, config.steps, config.guidance_scale)
        return [(images, azimuth) for images, (azimuth, _) in zip(views, rings, strict=True)]

    def held_out(self, prior: Prior) -> Json:
        cases, scores = held_out_cases(HELD_OUT_PROMPTS, self.config.seed), []
        for start in range(0, len(cases), BATCH):
            batch = cases[start : start + BATCH]
            samples = self.sample(prior, [case.caption for case in batch], [(case.index, -1) for case in batch])
            for case, (views, azimuth) in zip(batch, samples, strict=True):
                scores.append(score(judge_views(self.probe, views, case.spec, azimuth)))
        return {"scores": scores}

    def measure_samples(self, subject: Subject, prior: Prior, name: str, identifier: str = "") -> Json:
        """Sample and measure views of a subject for four prompts: without and with accessories (`ACCESSORIES_WORN`).

        The accessories are none, a red hat, a blue scarf and green glasses. The views of prompt k are written to
        <name>-k.png in the folder of the subject. ``identifier`` is a word before the noun in the prompts, such as
        "[v]"; "": no such word.

        Returns:
            JSON dict with three lists, which have one entry per prompt.
            "identity": mean cosine similarity of sampled and true views, as vectors of the identity network.
            "answers": dict from an attribute in `KEYS`, such as "noun", to whether the answer of the probe (image
                classifier) about it is right; None: not applicable.
            "scores": share of right answers.
        """
        noun, number = subject.asset.noun, subject.asset.index
        prompts = [prompt_of(noun, worn, identifier) for worn in ACCESSORIES_WORN]
        identity, verdicts = [], []
        samples = self.sample(prior, prompts, [(number, k) for k in range(len(prompts))])
        for k, (worn, (views, azimuth)) in enumerate(zip(ACCESSORIES_WORN, samples, strict=True)):
            write_png(subject.folder / f"{name}-{k}.png", grid(views, VIEWS))
            identity.append(similarity(self.embed(torch.from_numpy(views).float() / 255), subject.truth))
            verdicts.append(judge_views(self.probe, views, spec_of(noun, worn), azimuth))
        answers = [{key: verdict.answers.get(key) for key in KEYS} for verdict in verdicts]
        return {"identity": identity, "answers": answers, "scores": [score(verdict) for verdict in verdicts]}

    def measure_tuned(self, subject: Subject, tuning: MVDreamBoothConfig, key: str, strength: float) -> Json:
        """Measure a prior that was tuned on photos of a subject: how well it shows the subject, and what it forgot.

        The four prompts of a subject name no accessory, a red hat, a blue scarf and green glasses. They are used with
        the identifier (the word for the subject, such as "[v]"), to show the subject, and without it, to show any
        object of its class. There are also 20 prompts for ordinary objects that no training of a prior uses.

        Args:
            subject: object on whose photos the prior was tuned.
            tuning: config of the run that tuned the prior.
            key: start of the names of image files in the folder of the subject. The views of prompt k are written to
                <key>-k.png (with the identifier) and <key>-class-k.png (without it).
            strength: factor on the change of the weights.

        Returns:
            JSON dict. Right answers are those of the probe (image classifier) that agree with the prompt.
            "identity", "answers", "scores": lists with one entry per prompt with the identifier: mean cosine similarity
                of sampled and true views, as vectors of a network that recognises objects; dict from an attribute such
                as "noun" to whether its answer is right; and share of right answers.
            "class": dict with these three lists for the prompts without the identifier.
            "held_out": list with the share of right answers for each of the 20 prompts for ordinary objects.
            "seconds": duration of the run that tuned the prior; None if unknown.
        """
        folder = Path(str(tuning.out))
        options = {"personalisation": str(folder / dreambooth.RESULT), "personalisation_strength": strength}
        prior = prior_of(tuning, **options)
        return {
            **self.measure_samples(subject, prior, key, tuning.identifier),
            "class": self.measure_samples(subject, prior, f"{key}-class"),
            "held_out": self.held_out(prior)["scores"],
            "seconds": read_summary(folder).get("seconds"),
        }

    def report(self, rows: list[Json]) -> None:
        config = self.config
        figures = {key: compare(rows, key) for key in (row_key(*row) for row in config.rows)}
        base = mean_estimate([np.mean(row["found"]["base"]["identity"]) for row in rows])
        text = f"""# Subjects

{len(rows)} toybox subjects, {PHOTOS} photos each, {len(ACCESSORIES_WORN)} prompts, four views, DDIM
{config.steps} steps, guidance {config.guidance_scale:g}, seed {config.seed}. Identity is the mean cosine to the
subject's true views; that of the base prior, with the noun as prompt, is {format_estimate(base)}.
Differences are tuned minus base with the same noise and cameras. 95 % intervals are bootstraps over subjects. A score
is the share of the probe's correct answers: for prompts of the subject (compared with the base's for the class), of
the class, and held-out ones.

{table(figures)}
"""
        write_png(self.folder / "sheet.png", sheet(config, self.folder / "subjects", rows))
        write_report(
            self.task, "report", {"base_identity": base["mean"], "compared": figures, "subjects": list(rows)}, text
        )


def tuning_config(config: EvaluateSubjectsConfig, folder: Path, method: str, noun: str) -> MVDreamBoothConfig:
    """Load the config of the run that personalises the prior on the photos of an object in ``folder``/photos.

    ``method`` is the method against forgetting, such as "l1"; the run has the folder ``folder``/``method``. ``noun`` is
    the noun of the object in the prompt.

    Raises ConfigError if ``config.config`` does not name a valid mvdreambooth config.
    """
    values = {
        "prompt": f"{article(noun)} [v] {noun}", "identifier": "[v]", "photos": [str(folder / "photos")],
        "seed": config.seed, "threads": config.threads, "out": str(folder / method), "tuning.preservation": method,
    }  # fmt: skip
    return load_task("config", "mvdreambooth", config.config, config.overrides, values)


def prior_of(tuning: MVDreamBoothConfig, **options: object) -> Prior:
    return registry.build("prior", tuning.prior.model_copy(update=options), device(tuning.trainer.accelerator))


def tune(config: MVDreamBoothConfig) -> None:
    """Start or resume the run that tunes a prior on photos of a subject, on one device. No finished run is repeated.

    Raises Stopped if the run does not finish, and ConfigError if its config is invalid.
    """
    config.check()
    if not runs.finished(Path(str(config.out)), config.trainer.max_steps):
        run_config, resume = runs.open_run(runs.on_one_device(config), "subjects")
        status = dreambooth.run_status(run_config, resume, quiet=True)
        if status is not Status.FINISHED:
            raise Stopped(status.exit_code)


def spec_of(noun: str, worn: Accessory) -> Spec:
    return Spec(noun, "", "", worn[1], worn[0])


def prompt_of(noun: str, worn: Accessory, identifier: str = "") -> str:
    """Return a prompt like "a dog wearing a red hat", for ``noun`` "dog".

    With ``identifier`` "[v]" the prompt is "a [v] dog wearing a red hat". ``worn`` is the (colour, noun) of an
    accessory, such as ("red", "hat"), or ("", "") for a prompt without an accessory.
    """
    return caption(spec_of(noun, worn)).replace(noun, f"{identifier} {noun}".strip(), 1)


def score(verdict: Verdict) -> float:
    """Return the share, in [0, 1], of right answers in the verdict on an object.

    A `Verdict` says which attributes of an object agree with its prompt, according to the probe (image classifier).
    Four attributes count: "noun", "colour", "bound" (the named part is present in its colour) and "order" (the views
    show the sides of the object in the right order). Those that do not apply to the object (missing or None) are left
    out.
    """
    return float(np.mean([verdict.answers[key] for key in KEYS if verdict.answers.get(key) is not None]))


def sheet(config: EvaluateSubjectsConfig, folder: Path, rows: Rows) -> Array:
    """Return a contact sheet (H, W, 3), uint8, with one row of images per subject.

    If the noun of the subject is "dog", its row has these five groups of four images:
    - photos of the subject
    - views of "a dog", by the base prior (before the tuning)
    - views of "a [v] dog" (with the identifier, the word for the subject), by the tuned prior
    - views of "a [v] dog wearing a red hat", by the tuned prior
    - views of "a dog", by the tuned prior

    The tuned prior is that of the first entry of ``config.rows``. ``rows`` has one dict per subject, whose entry
    "subject" is the name of the subfolder of ``folder`` from which the images are read.
    """
    key = row_key(*config.rows[0])
    shown = {"base-0": "{}, base"}
    for k, worn in enumerate(ACCESSORIES_WORN[:2]):
        words = " ".join(("[v]", *worn)).strip()
        shown[f"{key}-{k}"] = f"{words}, {row_name(key)}"
    shown[f"{key}-class-0"] = "{}, after tuning"
    cells, labels = list[Array](), list[str]()
    for row in rows:
        place, noun = folder / row["subject"], row["subject"].split("-", 1)[-1]
        photos = [load_image(path).convert("RGB") for path in sorted((place / "photos").glob("*.png"))[:VIEWS]]
        cells.append(grid([np.asarray(photo.reduce(2)) for photo in photos], VIEWS))
        cells += [np.asarray(load_image(place / f"{name}.png").convert("RGB")) for name in shown]
        labels += [f"{noun}, photos", *(label.format(noun) for label in shown.values())]
    return grid(cells, 1 + len(shown), labels)


run = runner.evaluation_task(Subjects)
