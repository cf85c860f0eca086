"""Janus meter: classifies the side of each view of a ring around an object, and counts the fronts.

Task "janus-meter" measures its errors on objects with known fronts:

    RUN/meter.json, meter.md    false alarm rate on correct objects, recall on two-fronted objects, with intervals
    RUN/sheet.png               views of the objects with the results of the meter, wrong results first

A correct object has one front: a toybox object that no training uses, or a mesh file that faces +z (y up). For a
two-fronted object, the back half of a correct object is replaced by a copy of its front half.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.evaluation.corruption import rough, two_fronted
from threedgen.evaluation.features import CLIP, CLIP_MEAN, CLIP_STD, encoder_input
from threedgen.evaluation.metrics.figures import SIDES, share
from threedgen.evaluation.metrics.fronts import ErrorRates, RingResult, classify_ring
from threedgen.evaluation.options import CLIP_WEIGHTS
from threedgen.evaluation.report import (
    format_limits,
    format_share,
    markdown_table,
    thumbnails,
    write_report,
    write_strips,
)
from threedgen.evaluation.runner import Evaluation, evaluation_task
from threedgen.geometry.poses import orbit_c2w
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator
from threedgen.train.task import Task

from .options import (
    WITHOUT_CLIP,
    CLIPSidesConfig,
    MeterConfig,
    MeteredConfig,
    asset_files,
    folder_of_assets,
    front_objects,
)

SENTENCES = ("{prompt}, front view", "{prompt}, side view facing left", "{prompt}, back view",
             "{prompt}, side view facing right")  # fmt: skip
"""Sentences that CLIP compares with a view, one for each side in the order of ``figures.SIDES``."""
ELEVATION, DISTANCE, FOV, BACKGROUND = np.deg2rad(15.0), 2.6, np.deg2rad(40.0), 0.5
"""Ring of cameras: elevation in radians, distance, vertical field of view in radians, grey value of the background."""
FIRST_OBJECT = 1_000_000
"""Number of the first object for the error rates. No other evaluation uses these objects."""
SHEET_OBJECTS = 12


class ViewClassifier(Protocol):
    """Classifier of the side of an object that an image shows, registered as kind "view-classifier". Images are square,
    (V, S, S, 3) in [0, 1], and classified one by one."""

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        """Return the probabilities (V, 4) that a view of the prompt's object shows its front, left, back or right."""

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Return the similarity (V, N) of each view to each of N prompts; None if it does not support a prompt."""


class CLIPSides:
    """Zero-shot classifier with CLIP. It compares an image with one sentence per side, such as "a dog, back view":
    softmax over the similarities, at CLIP's temperature."""

    def __init__(self, config: CLIPSidesConfig) -> None:
        self.clip = CLIP(config.weights, "meter.classifier.weights", f"{CLIP_WEIGHTS}; {WITHOUT_CLIP}")

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        sentences = [sentence.replace("{prompt}", prompt) for sentence in SENTENCES]
        return (self.clip.net.logit_scale.exp() * self.likeness(images, sentences)).softmax(1)

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        pixels = encoder_input(images, self.clip.image_size, CLIP_MEAN, CLIP_STD)
        return self.clip.embed_images(pixels) @ self.clip.embed_texts(prompts).T


class Reading(NamedTuple):
    """Views (V, S, S, 3) of an object, and probabilities (V, 4) that a view shows the front, left, back or right."""

    views: Array
    sides: Array


def view_labels(sides: Array) -> list[str]:
    """Return a label such as "front 0.93" for each view: its most probable side. ``sides`` are probabilities (V, 4)."""
    return [f"{SIDES[int(view.argmax())]} {view.max():.2f}" for view in np.asarray(sides)]


class Meter:
    """Janus meter: renders an object from a ring of cameras, and classifies the side that each view shows. Raises
    ConfigError if the classifier cannot be loaded."""

    def __init__(self, config: MeterConfig) -> None:
        self.config = config
        self.classifier: ViewClassifier = registry.build("view-classifier", config.classifier)
        self.azimuth = 2 * np.pi * np.arange(config.n_view) / config.n_view
        ones = torch.ones(config.n_view)
        self.c2w = orbit_c2w(ELEVATION * ones, torch.from_numpy(self.azimuth).float(), DISTANCE * ones).numpy()

    def classify(self, mesh: ColouredMesh, prompt: str, light: bool | None = None) -> Reading:
        """Render the views of an object, which fits into the unit sphere, and classify their sides.

        ``light``: shade the mesh like a toybox object; None: only if it has neither vertex colours nor a texture.
        """
        views = mesh.render(self.c2w, FOV, self.config.size, BACKGROUND, mesh.flat if light is None else light)
        return Reading(views, self.classifier.sides(torch.from_numpy(views), prompt).double().numpy())

    def evaluate(self, sides: Array, free: bool = False) -> RingResult:
        """Count fronts from the side probabilities (V, 4) of the views. ``free``: the orientation is unknown."""
        return classify_ring(sides, self.azimuth, self.config.threshold, free)

    def likeness(self, views: Array, prompts: Sequence[str]) -> list[float] | None:
        """Return the similarity to each prompt, averaged over views (V, S, S, 3); None if a prompt is not supported."""
        scores = self.classifier.likeness(torch.from_numpy(views), prompts)
        return None if scores is None else scores.double().mean(0).tolist()


class KnownObject(NamedTuple):
    """Results of the meter for one object whose number of fronts is known.

    Attributes:
        prompt: name of the object, which the classifier compares with the views.
        correct: the meter's reading of the mesh, which has one front.
        two_fronted: its reading of the same mesh after a second front was put on its back.
    """

    prompt: str
    correct: Reading
    two_fronted: Reading


class MeterErrors(Evaluation[MeteredConfig, tuple[str, ColouredMesh], KnownObject]):
    """Task "janus-meter": error rates of the Janus meter on objects with a known number of fronts.

    The other Janus tasks use it too. An item is (prompt, mesh) of an object with one front. Smooth noise of the
    strength ``truth.rough`` is added to the mesh (`rough`).
    """

    stage = "ground truth"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.truth, self.meter = self.config.truth, Meter(self.config.meter)
        self.items, self.total = self.objects(), self.truth.objects

    def objects(self) -> Iterator[tuple[str, ColouredMesh]]:
        pairs: Iterable[tuple[str, ColouredMesh]]
        if self.truth.assets is None:
            pairs = front_objects().meshes(self.config.seed, FIRST_OBJECT, self.truth.objects)
        else:
            files = asset_files(folder_of_assets(self.truth.assets, "truth.assets"))[: self.truth.objects]
            pairs = ((path.stem.replace("_", " "), fit_to_ball(read_mesh(path, warn=True))) for path in files)
        for number, (prompt, mesh) in enumerate(pairs, FIRST_OBJECT):
            yield prompt, rough(mesh, numpy_generator(self.config.seed, number, "rough"), self.truth.rough)

    def measure(self, item: tuple[str, ColouredMesh]) -> KnownObject:
        prompt, mesh = item
        light = True if self.truth.assets is None else None
        readings = [self.meter.classify(each, prompt, light) for each in (mesh, two_fronted(mesh))]
        return KnownObject(prompt, *(Reading(thumbnails(views), sides) for views, sides in readings))

    def rates(self, known: Sequence[KnownObject]) -> ErrorRates:
        correct = share([self.meter.evaluate(one.correct.sides).failed for one in known])
        two = share([self.meter.evaluate(one.two_fronted.sides).failed for one in known])
        return ErrorRates(correct, two)

    def report(self, rows: list[KnownObject]) -> None:
        config, rates = self.config, self.rates(rows)
        rings = [self.meter.evaluate(one.correct.sides) for one in rows]
        right = share([view for ring in rings for view in ring.right])
        figures = rates.plain() | {
            "direction_accuracy": right.plain(),
            "meter": config.meter.model_dump(mode="json"),
            "truth": config.truth.model_dump(mode="json"),
            "seed": config.seed,
        }
        shares = {
            "false alarms, correct objects": rates.alarms,
            "recall, two fronts": rates.hits,
            "views with the right side, correct objects": right,
        }
        cells = [(name, format_share(value), format_limits(value)) for name, value in shares.items()]
        text = f"""# Errors of the Janus meter

Classifier {config.meter.classifier.name}, {config.meter.n_view} views, threshold {config.meter.threshold:.3g}.
Truth: {config.truth.assets or "fresh toybox objects"}, seed {config.seed}.

{markdown_table(("figure", "measured", "95 % interval"), cells)}
"""
        self.write_sheet(rows)
        write_report(self.task, "meter", figures, text, text)

    def write_sheet(self, known: Sequence[KnownObject]) -> None:
        strips = []
        for one in known:
            for truth, reading in ((1, one.correct), (2, one.two_fronted)):
                result = self.meter.evaluate(reading.sides)
                wrong = result.failed != (truth == 2)
                label = f"{one.prompt}: {truth} front{'s' * (truth > 1)}, found {result.fronts}{' WRONG' * wrong}"
                strips.append((not wrong, f"{label} ({', '.join(view_labels(reading.sides))})", reading.views))
        strips = sorted(strips, key=lambda strip: strip[0])[:SHEET_OBJECTS]
        write_strips(self.folder / "sheet.png", [strip[2] for strip in strips], [strip[1] for strip in strips])


run = evaluation_task(MeterErrors, result="meter.md", files=("sheet.png",))
