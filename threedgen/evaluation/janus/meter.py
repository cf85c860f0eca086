"""Janus meter: classifies the side that each view of a ring around an object shows, and counts the fronts.

The task "janus-meter" measures the errors of the meter on objects with a known number of fronts:

    RUN/meter.json, meter.md    false alarm rate on objects with one front, recall on two-fronted objects, fraction of
                                objects whose front is missed or invented, with intervals
    RUN/sheet.png               views of the objects with the results of the meter, wrong results first

An object with one front is a toybox object (procedural object of this package) that no training uses, or a mesh file
that faces +z (y up). A two-fronted object is such an object with its back half replaced by a copy of its front half.
Objects without a front are toybox objects such as balls.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import ConfigError, registry
from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.evaluation import report
from threedgen.evaluation.corruption import rough, two_fronted
from threedgen.evaluation.metrics.figures import SIDES, proportion, proportion_of_groups
from threedgen.evaluation.metrics.fronts import ErrorRates, RingResult, classify_ring
from threedgen.evaluation.options import CLIP_WEIGHTS
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.weights.hub import reachable, split_revision
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.seeding import numpy_generator
from threedgen.train.task import Task, device

from .options import (
    WITHOUT_CLIP,
    CLIPSidesConfig,
    MeterConfig,
    MeteredConfig,
    asset_files,
    folder_of_assets,
    front_objects,
    words_of,
)

SENTENCES = ("{prompt}, front view", "{prompt}, side view facing left", "{prompt}, back view",
             "{prompt}, side view facing right", "{prompt}, without a front, the same from all sides")  # fmt: skip
"""Sentences that CLIP compares with a view: one for each side in the order of ``figures.SIDES``, one for no front."""
ELEVATION, DISTANCE, FOV, BACKGROUND = np.deg2rad(15.0), 2.6, np.deg2rad(40.0), 0.5
"""Ring of cameras: elevation in radians, distance, vertical field of view in radians, grey value of the background."""
FIRST_OBJECT = 1_000_000
"""Index of the first toybox object for the error rates. No other evaluation uses objects from this index on."""
SHEET_OBJECTS = 12
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per RGB channel by which images in [0, 1] are normalised for CLIP."""
CLIP_BATCH = 16  # images that CLIP encodes at a time
TEXTS_KEPT = 1024  # lists of texts whose embeddings are kept, as all assets are compared with the same prompts


class ViewClassifier(Protocol):
    """Protocol of classifiers of the side of an object (front, left, back, right) that an image shows.

    An implementation has two methods, whose images are V square views (V, S, S, 3) of one object, in [0, 1].
    `sides(images, prompt)` returns probabilities (V, 4) of the sides. `likeness(images, prompts)` returns scores (V, N)
    of how well N prompts fit the views, or None. A config selects a classifier by name (component of the kind
    "view-classifier").
    """

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        """Return the probabilities (V, 4) that each view shows the front, left, back or right side of an object.

        ``prompt`` names the object. If the four sum to less than 1, the rest is the probability that the object has no
        front.
        """

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Return scores (V, N) of how well each of N prompts fits each view; higher is better.

        The range depends on the classifier. CLIP gives the cosine of the embeddings of view and prompt. The probe, a
        classifier of toybox objects (procedural objects of this package), gives log-probabilities. The result is None
        if the classifier does not support one of the prompts.
        """


class CLIPSides:
    """Zero-shot classifier of the side (front, left, back, right) that a view shows, with CLIP.

    `sides` compares an image with one sentence per side, such as "a dog, back view", and one for objects without a
    front. It returns the first four of the five probabilities: the softmax of the cosines at CLIP's temperature.
    `likeness` returns the cosine of the embeddings of image and prompt. The constructor raises ConfigError if CLIP
    cannot be loaded.
    """

    def __init__(self, config: CLIPSidesConfig) -> None:
        from transformers import AutoProcessor, CLIPModel

        name, revision = split_revision(config.weights)
        place: dict[str, Any] = {"local_files_only": not reachable(), "trust_remote_code": False, "revision": revision}
        try:
            net: Any = CLIPModel.from_pretrained(name, **place)
            self.tokenizer = AutoProcessor.from_pretrained(name, **place).tokenizer
        except Exception as error:  # transformers raises many classes
            advice = f"Give a folder or hub id like {CLIP_WEIGHTS}; {WITHOUT_CLIP}"
            problem = f"cannot be loaded as CLIP ({type(error).__name__}). {advice}"
            raise ConfigError(problem, "meter.classifier.weights", config.weights) from None
        self.net, self.device = net.eval().requires_grad_(False).to(device()), device()
        self.text_features = lru_cache(TEXTS_KEPT)(self._text_features)

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        sentences = [sentence.replace("{prompt}", prompt) for sentence in SENTENCES]
        return (self.net.logit_scale.exp().cpu() * self.likeness(images, sentences)).softmax(1)[:, : len(SIDES)]

    @torch.no_grad()
    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        net, parts = self.net, clip_input(images, int(self.net.config.vision_config.image_size)).split(CLIP_BATCH)
        encoded = [net.visual_projection(net.vision_model(part.to(self.device)).pooler_output) for part in parts]
        return (F.normalize(torch.cat(encoded), dim=1) @ self.text_features(tuple(prompts)).T).cpu()

    @torch.no_grad()
    def _text_features(self, prompts: tuple[str, ...]) -> Tensor:
        net, longest = self.net, int(self.net.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        found = net.text_model(tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device))
        return F.normalize(net.text_projection(found.pooler_output), dim=1)


def clip_input(images: Tensor, size: int) -> Tensor:
    """Resize square images (V, H, H, 3) in [0, 1] to (V, 3, size, size), and normalise the channels for CLIP."""
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    offset, scale = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    return (x - offset) / scale


class Reading(NamedTuple):
    """Views of an object, and probabilities (V, 4) that each view shows its front, left, back or right.

    Views are (V, S, S, 3): floats in [0, 1], or uint8 if they are thumbnails.
    """

    views: Array
    sides: Array


def view_labels(sides: Array) -> list[str]:
    """Return a label such as "front 0.93" for each view: its most probable side. ``sides`` are probabilities (V, 4)."""
    return [f"{SIDES[int(view.argmax())]} {view.max():.2f}" for view in np.asarray(sides)]


class Meter:
    """Janus meter: renders an object from a ring of V cameras, classifies the side in each view, and counts the fronts.

    `classify` renders a mesh and returns the views with their side probabilities. `evaluate` counts the fronts from
    these probabilities. `likeness` compares the views with prompts. The cameras are evenly spaced, at azimuths
    ``azimuth`` (V,) in radians; 0 is at +x. The constructor raises ConfigError if the classifier cannot be loaded.
    """

    def __init__(self, config: MeterConfig) -> None:
        self.config = config
        self.classifier: ViewClassifier = registry.build("view-classifier", config.classifier)
        self.azimuth = 2 * np.pi * np.arange(config.n_view) / config.n_view
        ones = torch.ones(config.n_view)
        self.c2w = orbit_c2w(ELEVATION * ones, torch.from_numpy(self.azimuth).float(), DISTANCE * ones).numpy()

    @cached_property
    def weights(self) -> str:
        """Hash of the weights of the classifier's networks."""
        parts = vars(self.classifier).items()
        return digest({name: part for name, part in parts if isinstance(part, torch.nn.Module)})

    def classify(self, mesh: ColouredMesh, prompt: str, light: bool | None = None) -> Reading:
        """Render V views of an object that fits into the unit sphere, and classify the side that each view shows.

        Return views (V, S, S, 3) in [0, 1] and probabilities (V, 4) of front, left, back and right. The world has z up,
        and an object should face +x. ``prompt`` names the object. ``light`` is whether to light the mesh, from the
        camera and from above; None: only if it has neither vertex colours nor a texture.
        """
        views = mesh.render(self.c2w, FOV, self.config.size, BACKGROUND, mesh.flat if light is None else light)
        return Reading(views, self.classifier.sides(torch.from_numpy(views), prompt).double().numpy())

    def evaluate(self, sides: Array, unknown_orientation: bool = False) -> RingResult:
        """Count the fronts of an object, and check for each view whether its most probable side is correct.

        ``sides`` (V, 4) are the probabilities of front, left, back and right in each view. A side is correct if the
        camera sees it on an object that faces +x. If ``unknown_orientation`` is True, the object is assumed to face the
        way for which most sides are correct. The number of fronts does not depend on this.
        """
        return classify_ring(sides, self.azimuth, self.config.threshold, unknown_orientation)

    def likeness(self, views: Array, prompts: Sequence[str]) -> list[float] | None:
        """Return one score per prompt: how well it fits the views (V, S, S, 3) in [0, 1], mean over the views.

        A higher score is a better fit. The range depends on the classifier: for CLIP a cosine in [-1, 1], for the
        probe (classifier of toybox objects, the procedural objects of this package) a log-probability. The result is
        None if the classifier does not support one of the prompts.
        """
        scores = self.classifier.likeness(torch.from_numpy(views), prompts)
        return None if scores is None else scores.double().mean(0).tolist()


class KnownObject(NamedTuple):
    """Result of the meter for an object whose number of fronts is known.

    Attributes:
        prompt: name of the object, which the classifier compares with the views.
        fronts: true number of fronts: 0, 1 or 2.
        reading: views of the object, as thumbnails, and side probabilities of the full-size views.
        result: number of fronts that the meter finds; for each view, whether a front was found in it, and whether its
            classified side is the true side.
    """

    prompt: str
    fronts: int
    reading: Reading
    result: RingResult


class MeterErrors(Evaluation[MeteredConfig, tuple[str, ColouredMesh, int], KnownObject]):
    """Task "janus-meter": error rates of the Janus meter (`Meter`) on objects with a known number of fronts.

    The meter counts the fronts of an object: errors are missed second fronts and false alarms. The other Janus tasks
    run this evaluation too, to give the error rates next to their results.

    An item, the argument of `measure`, is (prompt, mesh, number of fronts: 0, 1 or 2). Each object with one front is
    followed by the same object with two fronts: the back half is replaced by a copy of the front half. Objects without
    a front are last. Smooth noise of the strength ``truth.rough`` is added to the surfaces and colours of all meshes.
    """

    stage = "ground truth"

    def __init__(self, task: Task, meter: Meter | None = None) -> None:
        super().__init__(task)
        self.truth, self.meter = self.config.truth, meter or Meter(self.config.meter)
        self.files, count = list[Path](), self.truth.objects
        if self.truth.assets is not None:
            self.files = asset_files(folder_of_assets(self.truth.assets, "truth.assets"))[:count]
        self.items, self.total = self.objects(), 3 * count if self.truth.assets is None else 2 * len(self.files)

    def objects(self) -> Iterator[tuple[str, ColouredMesh, int]]:
        seed, count = self.config.seed, self.truth.objects
        pairs: Iterable[tuple[str, ColouredMesh]]
        without: Iterable[tuple[str, ColouredMesh]] = ()
        if self.truth.assets is None:
            pairs, without = (front_objects().meshes(seed, FIRST_OBJECT, count, front) for front in (True, False))
        else:
            pairs = ((words_of(path.stem), fit_to_ball(read_mesh(path, warn=True))) for path in self.files)
        for number, (prompt, mesh) in enumerate(pairs, FIRST_OBJECT):
            mesh = rough(mesh, numpy_generator(seed, number, "rough"), self.truth.rough)
            yield prompt, mesh, 1
            yield prompt, two_fronted(mesh), 2
        for number, (prompt, mesh) in enumerate(without, FIRST_OBJECT):
            yield prompt, rough(mesh, numpy_generator(seed, number, "rough without front"), self.truth.rough), 0

    def measure(self, item: tuple[str, ColouredMesh, int]) -> KnownObject:
        prompt, mesh, fronts = item
        views, sides = self.meter.classify(mesh, prompt, True if self.truth.assets is None else None)
        return KnownObject(prompt, fronts, Reading(report.thumbnails(views), sides), self.meter.evaluate(sides))

    def rates(self, known: Sequence[KnownObject]) -> ErrorRates:
        several = {n: proportion([one.result.several for one in known if one.fronts == n]) for n in (1, 2)}
        versions = zip(*([one.result.fronts == 0 for one in known if one.fronts == n] for n in (1, 2)), strict=True)
        missed = proportion_of_groups(list(versions))  # the two versions of an object are dependent
        invented = proportion([one.result.fronts > 0 for one in known if not one.fronts])
        return ErrorRates(several[1], several[2], missed, invented)

    def report(self, rows: list[KnownObject]) -> None:
        config, rates = self.config, self.rates(rows)
        right = proportion_of_groups(one.result.correct for one in rows if one.fronts == 1)
        figures = rates.plain() | {
            "direction_accuracy": right.plain(),
            "meter": config.meter.model_dump(mode="json"),
            "truth": config.truth.model_dump(mode="json"),
            "seed": config.seed,
        }
        shares = {
            "false alarms, one front": rates.false_alarms,
            "recall, two fronts": rates.recall,
            "front missed, one or two fronts": rates.front_missed,
            "front invented, no front": rates.front_invented,
            "views with the right side, one front": right,
        }
        cells = [(name, report.format_proportion(value), report.format_limits(value)) for name, value in shares.items()]
        text = f"""# Errors of the Janus meter

Classifier {config.meter.classifier.name}, {config.meter.n_view} views, threshold {config.meter.threshold:.3g}.
Truth: {config.truth.assets or "fresh toybox objects"}, seed {config.seed}.

{report.markdown_table(("figure", "measured", "95 % interval"), cells)}

False alarms and recall are shares of the objects in which the meter finds a front. The interval of views is a bootstrap
over objects.
"""
        self.write_sheet(rows)
        report.write_report(self.task, "meter", figures, text, text)

    def write_sheet(self, known: Sequence[KnownObject]) -> None:
        strips = []
        for prompt, truth, reading, result in known:
            wrong = min(result.fronts, 2) != truth
            label = f"{prompt}: {truth} front{'s' * (truth != 1)}, found {result.fronts}{' WRONG' * wrong}"
            strips.append((not wrong, f"{label} ({', '.join(view_labels(reading.sides))})", reading.views))
        strips = sorted(strips, key=lambda strip: strip[0])[:SHEET_OBJECTS]
        report.write_strips(self.folder / "sheet.png", [strip[2] for strip in strips], [strip[1] for strip in strips])


run = evaluation_task(MeterErrors, result="meter.md", files=("sheet.png",))
