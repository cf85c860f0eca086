"""Task "train-probe", and the base class of the trainings of networks that measure toybox images.

The probe is a classifier of toybox images.

RUN/probe/toybox-probe.*    weights of the probe in float16; vocabulary, options and accuracy as JSON
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config import ConfigError, Scheduled
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.images import to_uint8
from threedgen.run.dtypes import autocast_bf16
from threedgen.toybox.world.grammar import ACCESSORIES
from threedgen.toybox.world.toybox import Split, Toybox, View
from threedgen.train.status import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from .judging import calibrate, judge_ground_truth
from .labels import UNKNOWN_LABEL, Labels, ProbeToybox, Truth, corrupt, labelled
from .options import PROBE, TrainIdentityConfig, TrainProbeConfig
from .probe import Logits, Probe
from .report import verdict_figures

logger = logging.getLogger(__name__)

TEST_SEED = 1_000_003  # offset of the seed of test data, so that it differs from training data
BLOCKS_PER_RANK = 10_000_000  # offset of the block numbers of each device, so that devices train on different samples
ACCESSORY_WEIGHT = 4.0
"""Loss weight of accessories relative to other parts. Accessories are rare and small."""
N_VIEW = 2
CALIBRATION_OBJECTS, TEST_OBJECTS = 500, 1000
OBJECTS_PER_BLOCK, BLOCKS, WINDOW = 8, 4, 256
"""Objects per block (of images rendered in one step), blocks per batch (a new one and earlier ones), and number of
steps for which a block is kept."""


class ClassifierSystem(System):
    """Base class of LightningModules that train a small network ``net`` on augmented toybox images.

    A subclass defines `loss(step)`, which returns the loss and metrics of a step, and `finish`, which measures and
    writes the trained network. It may override `start`, which loads initial weights. The data of a step depends only on
    the seed, the process and the number of the step. ``rate`` is the learning rate: one number, or a dict {progress:
    rate} such as {"0%": 0.001, "100%": 0}, where progress is that of the training.

    Attributes:
        result: weights file of the trained network, relative to the run folder.
        shown: names of the metrics on the progress line.
    """

    result: str
    shown: tuple[str, ...]
    weight_decay = 0.02

    def __init__(self, config: TrainProbeConfig | TrainIdentityConfig, net: nn.Module, rate: Scheduled) -> None:
        super().__init__(config)
        self.config, self.options, self.net, self.rate = config, None, net, rate

    def start(self) -> None:
        """Load the initial weights that the config names. A checkpoint replaces them. The base class loads nothing.

        Raises ConfigError if the weights are missing, or do not fit the network.
        """

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Return the scalar loss of the training step with the number ``step``, and a dict from metric names to values.

        The dict contains at least the metrics that the class attribute ``shown`` names for the progress line.
        """
        raise NotImplementedError

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        """Measure the trained network, and write it to ``path`` with its measurements and the facts ``about``.

        ``about`` is a dict with the number of training steps and the seed. Return the measurements as JSON for the
        summary of the run, and as a line of text for the log.
        """
        raise NotImplementedError

    def training_step(self, batch: int, index: int) -> Tensor:
        loss, metrics = self.loss(int(batch))
        self.metrics = {**metrics}
        return loss

    def augmented(self, x: Tensor, step: int) -> Tensor:
        return augment(x, self.rng(step, "augment")).to(self.device)


def train(kind: Callable[[Any], ClassifierSystem], task: Task) -> Status:
    torch.manual_seed(task.config.seed)
    system = kind(task.config)
    system.start()  # also on resume: a run may have been stopped before its first checkpoint

    def finish() -> Json:
        about = {"steps": system.trainer.global_step, "seed": system.seed}
        figures, text = system.finish(task.folder / system.result, about)
        if not task.quiet:
            logger.info("%s", text)
        return figures

    return task.train(system, metrics=system.shown, finish=finish, partial=False)


# --- the probe ---------------------------------------------------------------------------------------------------


def measure_accuracy(probe: Probe, count: int, seed: int) -> Json:
    """Measure the accuracy of a probe, a classifier of toybox images, on ``count`` new objects with four renders each.

    Half of the objects have specifications that are held out of the training of priors (diffusion models).

    Returns:
        JSON dict with "objects" (``count``), "azimuth_error_median" and the attributes.
        "azimuth_error_median": the error of the camera azimuth, in degrees, averaged over the renders of an object;
            median over the objects. None if no object has a front.
        "noun", "colour", "part" (found if it is there), "part_colour", "bound" (part found in its colour),
            "part_absent" (not found if it is not there), "order" and "each_side" (viewing sides): attributes with one
            answer per object, from its four renders together.
        "side", "noun_single", "colour_single": viewing side, noun and colour with one answer for each single render.
        The value of an attribute is a dict with "hits" (right answers), "total" (all answers), "share" (hits / total),
        and "low" and "high", the limits of the 95 % confidence interval of the share.
    """
    verdicts = []
    splits: dict[Split, int] = {"train": count - count // 2, "held-out": count // 2}
    for split, number in splits.items():
        verdicts += judge_ground_truth(probe, Toybox(seed + TEST_SEED, split), range(number))
    return {"objects": count, **verdict_figures(verdicts)}


class ProbeSystem(ClassifierSystem):
    """LightningModule that trains a `Probe`, the classifier of toybox images.

    To save time, the batch of a step has one newly rendered block of images and up to three random blocks of earlier
    steps. A block has two views of each of eight objects.
    """

    stage, shown, result = "probe", ("noun", "colour", "side"), f"probe/{PROBE}.safetensors"
    config: TrainProbeConfig
    part_weights: Tensor
    net: Probe

    def __init__(self, config: TrainProbeConfig) -> None:
        super().__init__(config, Probe(Labels.of_toybox(), config.network), config.training.learning_rate)
        self.box = ProbeToybox(config.seed)
        weights = [ACCESSORY_WEIGHT if word in ACCESSORIES else 1.0 for word in self.net.labels.words]
        self.register_buffer("part_weights", torch.tensor(weights), persistent=False)
        self.cache: dict[int, tuple[Tensor, Truth]] = {}

    def start(self) -> None:
        if not self.config.start:
            return
        probe = Probe.load(self.config.start, "start")
        if probe.options != self.net.options or probe.labels != self.net.labels:
            raise ConfigError(f"should be a probe of the configured sizes and words (got {probe.options})", "start")
        self.net.load_state_dict(probe.state_dict())

    def batch(self, step: int) -> tuple[Tensor, Truth]:
        self.cache.pop(step - WINDOW, None)
        earlier = self.numpy_rng(step, "blocks").permutation(min(step, WINDOW - 1))[: BLOCKS - 1]
        blocks = [self.block(step - int(back)) for back in (0, *(earlier + 1))]
        rgb = torch.cat([rgb for rgb, _ in blocks]).permute(0, 3, 1, 2).float() / 255
        return rgb, Truth.cat([truth for _, truth in blocks])

    def block(self, number: int) -> tuple[Tensor, Truth]:
        """Return images (B, S, S, 3), uint8, and labels of block ``number``, which is rendered in step ``number``.

        A block has `N_VIEW` (2) views of each of `OBJECTS_PER_BLOCK` (8) objects, so B is 16. It is kept in memory for
        the next 255 steps.
        """
        if number not in self.cache:
            first = (number + self.global_rank * BLOCKS_PER_RANK) * OBJECTS_PER_BLOCK  # devices share no samples
            indices, spoiled = range(first, first + OBJECTS_PER_BLOCK), self.config.training.spoiled
            assets, rgb, truth = labelled(self.box, indices, self.net.options.image_size, N_VIEW, self.net.labels)
            corrupt(self.box, indices, assets, rgb, truth, spoiled, self.numpy_rng(number, "spoiled"))
            self.cache[number] = torch.from_numpy(to_uint8(rgb)), truth
        return self.cache[number]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x, truth = self.batch(step)
        x = self.augmented(x, step)
        with autocast_bf16(self.device):
            logits = self.net(x)
        return probe_loss(logits, truth.to(self.device), self.part_weights)

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        self.net.cpu().save(path)
        probe = Probe.load(str(path))  # rounded to float16, as it will be used
        calibrate(probe, ProbeToybox(self.seed + 2 * TEST_SEED, View()), range(CALIBRATION_OBJECTS))
        accuracy = measure_accuracy(probe, TEST_OBJECTS, self.seed)
        probe.save(path, {"accuracy": accuracy, **about})
        noun, colour = (100 * accuracy[key]["share"] for key in ("noun", "colour"))
        return {"accuracy": accuracy}, f"probe: noun {noun:.1f} %, colour {colour:.1f} % of {TEST_OBJECTS} objects"


def probe_loss(raw: Logits, truth: Truth, part_weights: Tensor | float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of a probe, a classifier of toybox images.

    Its six outputs are "noun", "colour" (of the object), "seen" (whether each part or accessory is visible),
    "part_colour" (colour of each part), "side" (visible side: front, left, back or right) and "heading" (cosine and
    sine of the camera azimuth).

    Args:
        raw: the outputs for B images, as logits except for "heading".
        truth: true noun, colour, visible parts, part colours and camera azimuth of the images. Labels equal to
            `UNKNOWN_LABEL` (-1) do not count. Azimuths count only where ``truth.front`` is True.
        part_weights: weights (W,) of the W parts and accessories in the loss of "seen", or one weight for all.

    Returns:
        Scalar loss, the sum of the losses of the six outputs, each with a fixed weight; and a dict of numbers: the six
        weighted losses ("loss_noun", ...), and the accuracies, in [0, 1], of "noun", "colour", "side" and
        "part_colour".
    """
    front = torch.where(truth.front, torch.round(truth.azimuth / (torch.pi / 2)).long() % 4, UNKNOWN_LABEL)
    applicable = truth.seen != UNKNOWN_LABEL
    part_loss = F.binary_cross_entropy_with_logits(raw.seen, truth.seen.clamp(min=0).float(), reduction="none")
    heading = torch.stack([truth.azimuth.cos(), truth.azimuth.sin()], 1)
    heading_error = (raw.heading - heading).square().sum(1) * truth.front
    loss, right = {}, {}
    for name, logits, target in (
        ("noun", raw.noun, truth.noun),
        ("colour", raw.colour, truth.colour),
        ("side", raw.side, front),
        ("part_colour", raw.part_colour.flatten(0, 1), truth.part_colour.flatten()),
    ):
        count = (target != UNKNOWN_LABEL).sum().clamp(min=1)
        loss[name] = F.cross_entropy(logits, target, ignore_index=UNKNOWN_LABEL, reduction="sum") / count
        right[name] = ((logits.argmax(1) == target) & (target != UNKNOWN_LABEL)).sum() / count
    terms = {
        "noun": loss["noun"],
        "colour": loss["colour"],
        "seen": 10 * (part_loss * applicable * part_weights).sum() / applicable.sum().clamp(min=1),
        "part_colour": loss["part_colour"],
        "side": 0.5 * loss["side"],
        "heading": 0.5 * heading_error.sum() / truth.front.sum().clamp(min=1),
    }
    metrics = {f"loss_{name}": value for name, value in terms.items()} | right
    return torch.stack(list(terms.values())).sum(), {name: value.item() for name, value in metrics.items()}


# --- augmentation ------------------------------------------------------------------------------------------------


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Augment images (B, 3, S, S) in [0, 1] by random shift, scale, blur, saturation, brightness, tint and noise.

    The result has the same shape and range. It resembles volume renders and samples of priors (diffusion models).
    Images are never mirrored, because that would swap the left and right sides of objects. ``rng`` is a generator on
    the CPU.
    """
    count, size = len(x), x.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=rng)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=rng)

    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.exp(uniform(-0.1, 0.12)).flatten()
    theta[:, :, 2] = uniform(-0.08, 0.08, 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    for _ in range(2):
        soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = x + uniform(-0.6, 1.0).clamp(min=0) * (soft - x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + uniform(-0.15, 0.2))
    x = x * torch.exp(0.04 * gaussian(1, 1, 1)) + 0.015 * gaussian(3, 1, 1)
    coarse = F.interpolate(gaussian(3, max(1, size // 8), max(1, size // 8)), size=(size, size), mode="bilinear")
    x = x + (uniform(0, 0.03) * gaussian(3, size, size) + uniform(0, 0.04) * coarse)
    return x.clamp(0, 1)


run_probe = partial(run_task, partial(train, ProbeSystem), result=ProbeSystem.result, files=(ProbeSystem.result,))
