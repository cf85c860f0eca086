"""Carries out the task "train-probe": trains the small network that all evaluations look through.

RUN/checkpoints/
RUN/validation.jsonl          accuracy on fresh objects as it goes on
RUN/probe/toybox-probe.*      the probe in float16, and its labels, sizes and accuracy
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import ConfigError
from threedgen.data.toybox.grammar import ACCESSORIES
from threedgen.data.toybox.world import Toybox, View
from threedgen.evaluation.janus.rough import corrupt
from threedgen.evaluation.toybox.judging import calibrate, own_accuracy
from threedgen.evaluation.toybox.labels import OPEN, Labels, ProbeToybox, Truth, labelled
from threedgen.evaluation.toybox.options import TrainProbeConfig
from threedgen.evaluation.toybox.probe import NAME, Probe, Raw
from threedgen.evaluation.toybox.report import figures_plain
from threedgen.geometry.images import to_uint8
from threedgen.run.dtypes import mixed
from threedgen.train.loop import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

logger = logging.getLogger(__name__)

FRESH = 1_000_003
"""Added to the seed for the objects that the probe is measured on: none of them was ever trained on."""
RANK = 10_000_000
"""Blocks between the samples of one device and the next."""
EMPHASIS = 4.0
"""Weight of the accessories among the words: each is rare, and small in the picture."""


RESULT = f"probe/{NAME}.safetensors"


def run(config: TrainProbeConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Train, or go on training, a probe; returns the exit code."""
    return run_task(train, config, resume, quiet, result=RESULT, files=(RESULT,))


def train(task: Task) -> Status:
    config: TrainProbeConfig = task.config
    torch.manual_seed(config.seed)
    system = ProbeSystem(config)
    if config.start and not task.resume:
        system.go_on_from(Probe.load(config.start))

    def finish() -> dict[str, Any]:
        path, steps = task.folder / RESULT, system.trainer.global_step
        system.probe.cpu().save(path)
        shipped = Probe.load(str(path))  # rounded to float16, as it will be used
        calibrate(shipped, ProbeToybox(config.seed + 2 * FRESH, View()), range(config.calibrated))
        accuracy = measure(shipped, config.measured, config.seed)
        shipped.save(path, {"accuracy": accuracy, "steps": steps, "seed": config.seed})
        if not task.quiet:
            noun, colour = (100 * accuracy[key]["share"] for key in ("noun", "colour"))
            logger.warning("probe: noun %.1f %%, colour %.1f %% of %d objects", noun, colour, config.measured)
        return {"accuracy": accuracy}

    return task.train(system, metrics=("noun", "colour", "side"), finish=finish, partial=False)


def measure(probe: Probe, count: int, seed: int) -> dict:
    """Measures accuracy on ``count`` fresh objects of four views, half of them held-out combinations, for JSON."""
    verdicts = []
    for split, number in (("train", count - count // 2), ("held-out", count // 2)):
        box = Toybox(seed + FRESH, split)  # type: ignore[arg-type]
        verdicts += own_accuracy(probe, box, range(number))
    return {"objects": count, **figures_plain(verdicts)}


class ProbeSystem(System):
    """Trains a Probe. Each step renders one block of toybox samples and sees some of the last ``window`` ones again:
    rendering costs as much as learning. What a step sees depends on its number only, whatever happened before."""

    stage = "probe"
    emphasis: Tensor

    def __init__(self, config: TrainProbeConfig, labels: Labels | None = None) -> None:
        super().__init__(config)
        self.options = config.training
        self.size = config.network.image_size
        self.probe = Probe(labels or Labels.of_toybox(), config.network)
        self.box = ProbeToybox(config.seed)
        weights = [EMPHASIS if word in ACCESSORIES else 1.0 for word in self.probe.labels.words]
        self.register_buffer("emphasis", torch.tensor(weights), persistent=False)
        self.cache: dict[int, tuple[Tensor, Truth]] = {}

    def go_on_from(self, probe: Probe) -> None:
        """Takes the weights of another probe. Raises ConfigError for one of other sizes."""
        if probe.options != self.probe.options or probe.labels != self.probe.labels:
            raise ConfigError(f"should be a probe of these sizes and words (it has {probe.options})", "start")
        self.probe.load_state_dict(probe.state_dict())

    def pictures(self, step: int) -> tuple[Tensor, Truth]:
        """Renders the batch of a step: (B, 3, size, size) in [0, 1] and its truth. Devices share no samples."""
        o = self.options
        self.cache.pop(step - o.window, None)
        rng = self.numpy_rng(step, "blocks")
        earlier = rng.permutation(min(step, o.window - 1))[: o.blocks - 1]
        blocks = [self.block(step - int(back)) for back in (0, *(earlier + 1))]
        rgb = torch.cat([rgb for rgb, _ in blocks]).permute(0, 3, 1, 2).float() / 255
        return rgb, Truth.cat([truth for _, truth in blocks])

    def block(self, number: int) -> tuple[Tensor, Truth]:
        """Renders block ``number``, uint8 (B, size, size, 3), unless it is still there."""
        if number not in self.cache:
            o = self.options
            first = (number + self.global_rank * RANK) * o.block
            indices = range(first, first + o.block)
            assets, rgb, truth = labelled(self.box, indices, self.size, o.n_view, self.probe.labels)
            rng = self.numpy_rng(number, "spoiled")
            corrupt(self.box, indices, assets, rgb, truth, o.spoiled, rng)
            self.cache[number] = torch.from_numpy(to_uint8(rgb)), truth
        return self.cache[number]

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        x, truth = self.pictures(step)
        x = augment(x, self.rng(step, "augment"), self.options.augment).to(self.device)
        with mixed(self.device, self.options.bf16):
            raw = self.probe(x)
        loss, self.metrics = probe_loss(raw, truth.to(self.device), self.emphasis)
        return loss

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.probe.parameters(), o.learning_rate, weight_decay=o.weight_decay)

    def validate(self, step: int, folder: Path) -> None:
        """Writes a line of validation.jsonl: shares on fresh objects."""
        figures = measure(self.probe, 128, self.seed + 1)
        shares = {key: value["share"] for key, value in figures.items() if isinstance(value, dict)}
        with open(folder / "validation.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **shares}) + "\n")


# --- loss --------------------------------------------------------------------------------------------------------


def probe_loss(raw: Raw, truth: Truth, emphasis: Tensor | float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Sums up the questions' losses, each over the pictures it can be asked of; and shares of right answers.

    ``emphasis`` (W,): weights of the part words.
    """
    front = torch.where(truth.front, torch.round(truth.azimuth / (torch.pi / 2)).long() % 4, OPEN)
    asked = truth.seen != OPEN
    guesses = F.binary_cross_entropy_with_logits(raw.seen, truth.seen.clamp(min=0).float(), reduction="none")
    terms = {
        "noun": entropy(raw.noun, truth.noun),
        "colour": entropy(raw.colour, truth.colour),
        "seen": 10 * (guesses * asked * emphasis).sum() / asked.sum().clamp(min=1),
        "part_colour": entropy(raw.part_colour.flatten(0, 1), truth.part_colour.flatten()),
        "side": 0.5 * entropy(raw.side, front),
        "heading": 0.5 * heading_loss(raw.heading, truth.azimuth, truth.front),
    }
    right = {
        "noun": (raw.noun.argmax(1) == truth.noun).float().mean(),
        "colour": _accuracy(raw.colour, truth.colour),
        "side": _accuracy(raw.side, front),
        "part_colour": _accuracy(raw.part_colour.flatten(0, 1), truth.part_colour.flatten()),
    }
    metrics = {f"loss_{name}": value.item() for name, value in terms.items()}
    return torch.stack(list(terms.values())).sum(), metrics | {name: value.item() for name, value in right.items()}


def entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Averages cross-entropy over the rows whose target is not OPEN; 0 if there is none."""
    total = F.cross_entropy(logits, target, ignore_index=OPEN, reduction="sum")
    return total / (target != OPEN).sum().clamp(min=1)


def heading_loss(heading: Tensor, azimuth: Tensor, front: Tensor) -> Tensor:
    """Averages |heading - (cos, sin)|^2 over the pictures of things with a front; 0 if there is none."""
    expected = torch.stack([azimuth.cos(), azimuth.sin()], 1)
    return ((heading - expected).square().sum(1) * front).sum() / front.sum().clamp(min=1)


def _accuracy(logits: Tensor, target: Tensor) -> Tensor:
    asked = target != OPEN
    return ((logits.argmax(1) == target) & asked).sum() / asked.sum().clamp(min=1)


# --- augmentation ------------------------------------------------------------------------------------------------


def augment(x: Tensor, rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """Makes pictures (B, 3, S, S) in [0, 1] worse as samples and volume renders are: moved, blurred, tinted, noisy.

    Never mirrored: that would swap left and right. All draws come from ``rng`` (on the CPU).
    """
    if strength == 0:
        return x
    count, size = len(x), x.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1, 1)), generator=rng)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=rng)

    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.exp(uniform(-0.1 * strength, 0.12 * strength)).flatten()
    theta[:, :, 2] = uniform(-0.08 * strength, 0.08 * strength, 2)
    place = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, place, padding_mode="border", align_corners=False)
    for _ in range(2):
        soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        x = x + uniform(-0.6, 1.0).clamp(min=0) * min(strength, 1) * (soft - x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (1 + strength * uniform(-0.15, 0.2))
    x = x * torch.exp(0.04 * strength * gaussian(1, 1, 1)) + 0.015 * strength * gaussian(3, 1, 1)
    coarse = F.interpolate(gaussian(3, max(1, size // 8), max(1, size // 8)), size=(size, size), mode="bilinear")
    x = x + strength * (uniform(0, 0.03) * gaussian(3, size, size) + uniform(0, 0.04) * coarse)
    return x.clamp(0, 1)
