"""Carries out the tasks "train-probe" and "train-identity": trains the small networks that measure toybox pictures.

RUN/probe/toybox-probe.*        the probe, through which all evaluations look: float16, labels, sizes, accuracy
RUN/identity/toybox-identity.*  the network that tells subjects apart, and beside it its own ROC on fresh subjects
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config import ConfigError
from threedgen.data.toybox import subjects
from threedgen.data.toybox.grammar import ACCESSORIES
from threedgen.data.toybox.world import Toybox, View
from threedgen.geometry.images import to_uint8
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.status import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from .corruption import corrupt
from .identity import IdentityNet, contrastive, measure_roc
from .judging import calibrate, own_accuracy
from .labels import OPEN, Labels, ProbeToybox, Truth, labelled
from .options import IDENTITY, PROBE, TrainIdentityConfig, TrainProbeConfig
from .probe import Logits, Probe
from .report import figures_plain

logger = logging.getLogger(__name__)

FRESH = 1_000_003
"""Added to the seed for what a network is measured on: none of it was ever trained on."""
RANK = 10_000_000
"""Blocks between the samples of one device and the next."""
EMPHASIS = 4.0
"""Weight of the accessories among the words: each is rare, and small in the picture."""


def train(kind: Callable[[Any], ClassifierSystem], task: Task) -> Status:
    """Trains a system of this ``kind``, then measures and writes its network."""
    torch.manual_seed(task.config.seed)
    system = kind(task.config)
    if not task.resume:
        system.start()

    def finish() -> dict[str, Any]:
        about = {"steps": system.trainer.global_step, "seed": system.seed}
        figures, summary = system.finish(task.folder / system.result, about)
        if not task.quiet:
            logger.warning("%s", summary)
        return figures

    return task.train(system, metrics=system.shown, finish=finish, partial=False)


class ClassifierSystem(System):
    """Trains a small network ``net`` on augmented toybox pictures; what a step sees depends on its number only.

    ``result``: the file of the trained network; ``shown``: metrics of the progress line.
    """

    result: str
    shown: tuple[str, ...]

    def __init__(self, config: TrainProbeConfig | TrainIdentityConfig, net: nn.Module) -> None:
        super().__init__(config)
        self.config, self.options, self.net = config, config.training, net

    def start(self) -> None:
        """Changes the weights that a new run begins with. Raises ConfigError."""

    def pictures(self, step: int) -> tuple[Tensor, Any]:
        """Renders the batch of a step: (B, 3, size, size) in [0, 1] and what ``loss`` needs to know of it."""
        raise NotImplementedError

    def loss(self, answer: Any, truth: Any) -> tuple[Tensor, dict[str, float]]:
        """Computes the loss of the network's answers, and metrics."""
        raise NotImplementedError

    def finish(self, path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Measures the network and writes it with ``about``; returns figures for the summary, and words."""
        raise NotImplementedError

    def training_step(self, batch: int, index: int) -> Tensor:
        x, truth = self.pictures(int(batch))
        x = augment(x, self.rng(int(batch), "augment"), self.options.augment).to(self.device)
        with autocast_bf16(self.device, self.options.bf16):
            answer = self.net(x)
        loss, self.metrics = self.loss(answer, truth)
        return loss


# --- the probe ---------------------------------------------------------------------------------------------------


def measure_accuracy(probe: Probe, count: int, seed: int) -> dict[str, Any]:
    """Measures accuracy on ``count`` fresh objects of four views, half of them held-out combinations, for JSON."""
    verdicts = []
    for split, number in (("train", count - count // 2), ("held-out", count // 2)):
        box = Toybox(seed + FRESH, split)  # type: ignore[arg-type]
        verdicts += own_accuracy(probe, box, range(number))
    return {"objects": count, **figures_plain(verdicts)}


class ProbeSystem(ClassifierSystem):
    """Trains a Probe. Each step renders one block of toybox samples and sees some of the last ``window`` ones again:
    rendering costs as much as learning."""

    stage, shown, result = "probe", ("noun", "colour", "side"), f"probe/{PROBE}.safetensors"
    config: TrainProbeConfig
    emphasis: Tensor
    net: Probe

    def __init__(self, config: TrainProbeConfig) -> None:
        super().__init__(config, Probe(Labels.of_toybox(), config.network))
        self.box = ProbeToybox(config.seed)
        weights = [EMPHASIS if word in ACCESSORIES else 1.0 for word in self.net.labels.words]
        self.register_buffer("emphasis", torch.tensor(weights), persistent=False)
        self.cache: dict[int, tuple[Tensor, Truth]] = {}

    def start(self) -> None:
        """Takes the weights of the probe that the config begins with. Raises ConfigError for one of other sizes."""
        if not self.config.start:
            return
        probe = Probe.load(self.config.start, "start")
        if probe.options != self.net.options or probe.labels != self.net.labels:
            raise ConfigError(f"should be a probe of these sizes and words (it has {probe.options})", "start")
        self.net.load_state_dict(probe.state_dict())

    def pictures(self, step: int) -> tuple[Tensor, Truth]:
        """Renders the batch of a step and its truth. Devices share no samples."""
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
            assets, rgb, truth = labelled(self.box, indices, self.net.options.image_size, o.n_view, self.net.labels)
            corrupt(self.box, indices, assets, rgb, truth, o.spoiled, self.numpy_rng(number, "spoiled"))
            self.cache[number] = torch.from_numpy(to_uint8(rgb)), truth
        return self.cache[number]

    def loss(self, answer: Logits, truth: Truth) -> tuple[Tensor, dict[str, float]]:
        return probe_loss(answer, truth.to(self.device), self.emphasis)

    def finish(self, path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], str]:
        config = self.config
        self.net.cpu().save(path)
        shipped = Probe.load(str(path))  # rounded to float16, as it will be used
        calibrate(shipped, ProbeToybox(config.seed + 2 * FRESH, View()), range(config.calibrated))
        accuracy = measure_accuracy(shipped, config.measured, config.seed)
        shipped.save(path, {"accuracy": accuracy, **about})
        noun, colour = (100 * accuracy[key]["share"] for key in ("noun", "colour"))
        return {"accuracy": accuracy}, f"probe: noun {noun:.1f} %, colour {colour:.1f} % of {config.measured} objects"


def probe_loss(raw: Logits, truth: Truth, emphasis: Tensor | float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Sums up the questions' losses, each over the pictures it can be asked of; and shares of right answers.

    ``emphasis`` (W,): weights of the part words.
    """
    front = torch.where(truth.front, torch.round(truth.azimuth / (torch.pi / 2)).long() % 4, OPEN)
    asked = truth.seen != OPEN
    guesses = F.binary_cross_entropy_with_logits(raw.seen, truth.seen.clamp(min=0).float(), reduction="none")
    heading = torch.stack([truth.azimuth.cos(), truth.azimuth.sin()], 1)
    away = (raw.heading - heading).square().sum(1) * truth.front
    loss, right = {}, {}
    for name, logits, target in (
        ("noun", raw.noun, truth.noun),
        ("colour", raw.colour, truth.colour),
        ("side", raw.side, front),
        ("part_colour", raw.part_colour.flatten(0, 1), truth.part_colour.flatten()),
    ):
        count = (target != OPEN).sum().clamp(min=1)
        loss[name] = F.cross_entropy(logits, target, ignore_index=OPEN, reduction="sum") / count
        right[name] = ((logits.argmax(1) == target) & (target != OPEN)).sum() / count
    terms = {
        "noun": loss["noun"],
        "colour": loss["colour"],
        "seen": 10 * (guesses * asked * emphasis).sum() / asked.sum().clamp(min=1),
        "part_colour": loss["part_colour"],
        "side": 0.5 * loss["side"],
        "heading": 0.5 * away.sum() / truth.front.sum().clamp(min=1),
    }
    metrics = {f"loss_{name}": value for name, value in terms.items()} | right
    return torch.stack(list(terms.values())).sum(), {name: value.item() for name, value in metrics.items()}


# --- the identity network ----------------------------------------------------------------------------------------


class IdentitySystem(ClassifierSystem):
    """Trains an IdentityNet. Each step shows two pictures each of several subjects of several kinds, from any side."""

    stage, shown, result = "identity", ("right",), f"identity/{IDENTITY}.safetensors"
    config: TrainIdentityConfig
    net: IdentityNet

    def __init__(self, config: TrainIdentityConfig) -> None:
        super().__init__(config, IdentityNet(config.network))

    def pictures(self, step: int) -> tuple[Tensor, None]:
        """Renders (2 kinds alike, 3, S, S): two sides each of subjects that no other step shows."""
        rng, every = self.numpy_rng(step, "subjects"), subjects.subject_nouns()
        chosen = rng.permutation(len(every))[: self.options.kinds]
        seed, shown = int(rng.integers(2**31)), []
        for k in chosen:
            for number in range(self.options.alike):
                azimuth, elevation = rng.uniform(0, 2 * np.pi, 2), np.deg2rad(rng.uniform(0, 30, 2))
                asset = subjects.make_subject(seed, number, every[int(k)].word)
                shown.append(subjects.render_views(asset, azimuth, elevation, self.net.options.image_size))
        return torch.from_numpy(np.concatenate(shown)).permute(0, 3, 1, 2), None

    def loss(self, answer: Tensor, truth: None) -> tuple[Tensor, dict[str, float]]:
        loss, right = contrastive(answer, self.options.temperature)
        return loss, {"right": right}

    def finish(self, path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], str]:
        net, config = self.net.cpu(), self.config
        figures = measure_roc(net, config.measured, config.training.alike, config.seed + FRESH)
        net.save(path, {"roc": figures, **about})
        return {"roc": figures}, f"area under the ROC {figures['area']:.3f}, subjects of one kind"


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


run_probe = partial(run_task, partial(train, ProbeSystem), result=ProbeSystem.result, files=(ProbeSystem.result,))
"""Trains, or goes on training, a probe."""
run_identity = partial(
    run_task, partial(train, IdentitySystem), result=IdentitySystem.result, files=(IdentitySystem.result,)
)
"""Trains, or goes on training, the network that tells subjects apart."""
