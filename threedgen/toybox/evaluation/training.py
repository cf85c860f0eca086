"""Tasks "train-probe" and "train-identity": training of the small networks that measure toybox images.

RUN/probe/toybox-probe.*        weights of the probe in float16; vocabulary, options and accuracy as JSON
RUN/identity/toybox-identity.*  weights of the identity network; options and ROC on new subjects as JSON
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config import ConfigError
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.images import to_uint8
from threedgen.run.dtypes import autocast_bf16
from threedgen.toybox.data import subjects
from threedgen.toybox.world.grammar import ACCESSORIES
from threedgen.toybox.world.toybox import Split, Toybox, View
from threedgen.train.status import Status
from threedgen.train.system import System
from threedgen.train.task import Task, run_task

from .identity import IdentityNet, contrastive, measure_roc
from .judging import calibrate, own_accuracy
from .labels import OPEN, Labels, ProbeToybox, Truth, corrupt, labelled
from .options import IDENTITY, PROBE, TrainIdentityConfig, TrainProbeConfig
from .probe import Logits, Probe
from .report import verdict_figures

logger = logging.getLogger(__name__)

TEST_SEED = 1_000_003
"""Offset of the seed of test data, so that it differs from training data."""
BLOCKS_PER_RANK = 10_000_000
"""Offset of the block numbers of each device, so that devices train on different samples."""
ACCESSORY_WEIGHT = 4.0
"""Loss weight of accessories relative to other parts. Accessories are rare and small."""
N_VIEW = 2
"""Number of views per training object of the probe."""
CALIBRATION_OBJECTS, TEST_OBJECTS, TEST_KINDS = 500, 1000, 40
TEMPERATURE = 0.1
"""Temperature of the contrastive loss."""
Output = TypeVar("Output")
Target = TypeVar("Target")


class ClassifierSystem(System, Generic[Output, Target]):
    """Base class for training a small network ``net`` on augmented toybox images.

    The data of a step depends only on the seed and the number of the step.

    Attributes:
        result: file of the trained network, relative to the run folder.
        shown: names of the metrics on the progress line.
    """

    result: str
    shown: tuple[str, ...]

    def __init__(self, config: TrainProbeConfig | TrainIdentityConfig, net: nn.Module) -> None:
        super().__init__(config)
        self.config, self.options, self.net = config, config.training, net

    def start(self) -> None:
        """Load the initial weights of a new run. Raises ConfigError if they are missing or do not fit."""

    def batch(self, step: int) -> tuple[Tensor, Target]:
        """Return images (B, 3, S, S) in [0, 1] of a step, and the target for `loss`."""
        raise NotImplementedError

    def loss(self, output: Output, target: Target) -> tuple[Tensor, dict[str, float]]:
        """Return the loss () of the network output, and metrics by name."""
        raise NotImplementedError

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        """Measure the network and write it with ``about``. Return the measurements as JSON and as a sentence."""
        raise NotImplementedError

    def training_step(self, batch: int, index: int) -> Tensor:
        x, target = self.batch(int(batch))
        x = augment(x, self.rng(int(batch), "augment")).to(self.device)
        with autocast_bf16(self.device, self.options.bf16):
            output = self.net(x)
        loss, self.metrics = self.loss(output, target)
        return loss


def train(kind: Callable[[Any], ClassifierSystem[Output, Target]], task: Task) -> Status:
    """Train the network of a system class, then measure and write the network."""
    torch.manual_seed(task.config.seed)
    system = kind(task.config)
    if not task.resume:
        system.start()

    def finish() -> Json:
        about = {"steps": system.trainer.global_step, "seed": system.seed}
        figures, text = system.finish(task.folder / system.result, about)
        if not task.quiet:
            logger.info("%s", text)
        return figures

    return task.train(system, metrics=system.shown, finish=finish, partial=False)


# --- the probe ---------------------------------------------------------------------------------------------------


def measure_accuracy(probe: Probe, count: int, seed: int) -> Json:
    """Measure the accuracy on four views of ``count`` new objects, half of which are held-out combinations."""
    verdicts = []
    splits: dict[Split, int] = {"train": count - count // 2, "held-out": count // 2}
    for split, number in splits.items():
        verdicts += own_accuracy(probe, Toybox(seed + TEST_SEED, split), range(number))
    return {"objects": count, **verdict_figures(verdicts)}


class ProbeSystem(ClassifierSystem[Logits, Truth]):
    """Training of a `Probe`. Each step renders one new block of samples and reuses random earlier blocks, because
    rendering a block takes as long as a training step."""

    stage, shown, result = "probe", ("noun", "colour", "side"), f"probe/{PROBE}.safetensors"
    config: TrainProbeConfig
    emphasis: Tensor
    net: Probe

    def __init__(self, config: TrainProbeConfig) -> None:
        super().__init__(config, Probe(Labels.of_toybox(), config.network))
        self.box = ProbeToybox(config.seed)
        weights = [ACCESSORY_WEIGHT if word in ACCESSORIES else 1.0 for word in self.net.labels.words]
        self.register_buffer("emphasis", torch.tensor(weights), persistent=False)
        self.cache: dict[int, tuple[Tensor, Truth]] = {}

    def start(self) -> None:
        if not self.config.start:
            return
        probe = Probe.load(self.config.start, "start")
        if probe.options != self.net.options or probe.labels != self.net.labels:
            raise ConfigError(f"should be a probe of the configured sizes and words (got {probe.options})", "start")
        self.net.load_state_dict(probe.state_dict())

    def batch(self, step: int) -> tuple[Tensor, Truth]:
        o = self.config.training
        self.cache.pop(step - o.window, None)
        rng = self.numpy_rng(step, "blocks")
        earlier = rng.permutation(min(step, o.window - 1))[: o.blocks - 1]
        blocks = [self.block(step - int(back)) for back in (0, *(earlier + 1))]
        rgb = torch.cat([rgb for rgb, _ in blocks]).permute(0, 3, 1, 2).float() / 255
        return rgb, Truth.cat([truth for _, truth in blocks])

    def block(self, number: int) -> tuple[Tensor, Truth]:
        """Return images (B, S, S, 3), uint8, and labels of block ``number``. Render them unless they are cached."""
        if number not in self.cache:
            o = self.config.training
            first = (number + self.global_rank * BLOCKS_PER_RANK) * o.block  # devices share no samples
            indices = range(first, first + o.block)
            assets, rgb, truth = labelled(self.box, indices, self.net.options.image_size, N_VIEW, self.net.labels)
            corrupt(self.box, indices, assets, rgb, truth, o.spoiled, self.numpy_rng(number, "spoiled"))
            self.cache[number] = torch.from_numpy(to_uint8(rgb)), truth
        return self.cache[number]

    def loss(self, output: Logits, target: Truth) -> tuple[Tensor, dict[str, float]]:
        return probe_loss(output, target.to(self.device), self.emphasis)

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        self.net.cpu().save(path)
        probe = Probe.load(str(path))  # rounded to float16, as it will be used
        calibrate(probe, ProbeToybox(self.seed + 2 * TEST_SEED, View()), range(CALIBRATION_OBJECTS))
        accuracy = measure_accuracy(probe, TEST_OBJECTS, self.seed)
        probe.save(path, {"accuracy": accuracy, **about})
        noun, colour = (100 * accuracy[key]["share"] for key in ("noun", "colour"))
        return {"accuracy": accuracy}, f"probe: noun {noun:.1f} %, colour {colour:.1f} % of {TEST_OBJECTS} objects"


def probe_loss(raw: Logits, truth: Truth, emphasis: Tensor | float = 1.0) -> tuple[Tensor, dict[str, float]]:
    """Return the sum of the losses of all outputs of the probe, and each loss and accuracy by name.

    Args:
        truth: labels; OPEN labels do not count.
        emphasis: loss weights (W,) of the part words.
    """
    front = torch.where(truth.front, torch.round(truth.azimuth / (torch.pi / 2)).long() % 4, OPEN)
    applicable = truth.seen != OPEN
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
        count = (target != OPEN).sum().clamp(min=1)
        loss[name] = F.cross_entropy(logits, target, ignore_index=OPEN, reduction="sum") / count
        right[name] = ((logits.argmax(1) == target) & (target != OPEN)).sum() / count
    terms = {
        "noun": loss["noun"],
        "colour": loss["colour"],
        "seen": 10 * (part_loss * applicable * emphasis).sum() / applicable.sum().clamp(min=1),
        "part_colour": loss["part_colour"],
        "side": 0.5 * loss["side"],
        "heading": 0.5 * heading_error.sum() / truth.front.sum().clamp(min=1),
    }
    metrics = {f"loss_{name}": value for name, value in terms.items()} | right
    return torch.stack(list(terms.values())).sum(), {name: value.item() for name, value in metrics.items()}


# --- the identity network ----------------------------------------------------------------------------------------


class IdentitySystem(ClassifierSystem[Tensor, None]):
    """Training of an `IdentityNet`. A step has two views each of ``alike`` subjects of each of ``kinds`` nouns."""

    stage, shown, result = "identity", ("right",), f"identity/{IDENTITY}.safetensors"
    config: TrainIdentityConfig
    net: IdentityNet

    def __init__(self, config: TrainIdentityConfig) -> None:
        super().__init__(config, IdentityNet(config.network))

    def batch(self, step: int) -> tuple[Tensor, None]:
        """Render images (2 * kinds * alike, 3, S, S) in [0, 1]. Images 2 k and 2 k + 1 show the same subject."""
        o, rng, nouns = self.config.training, self.numpy_rng(step, "subjects"), subjects.subject_nouns()
        chosen = rng.permutation(len(nouns))[: o.kinds]
        seed, images = int(rng.integers(2**31)), []
        for k in chosen:
            for number in range(o.alike):
                azimuth, elevation = rng.uniform(0, 2 * np.pi, 2), np.deg2rad(rng.uniform(0, 30, 2))
                asset = subjects.make_subject(seed, number, nouns[int(k)].word)
                images.append(subjects.render_views(asset, azimuth, elevation, self.net.options.image_size))
        return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2), None

    def loss(self, output: Tensor, target: None) -> tuple[Tensor, dict[str, float]]:
        loss, right = contrastive(output, TEMPERATURE)
        return loss, {"right": right}

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        net = self.net.cpu()
        figures = measure_roc(net, TEST_KINDS, self.config.training.alike, self.seed + TEST_SEED)
        net.save(path, {"roc": figures, **about})
        return {"roc": figures}, f"area under the ROC {figures['area']:.3f}, subjects of one kind"


# --- augmentation ------------------------------------------------------------------------------------------------


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Augment images (B, 3, S, S) in [0, 1] by random shift, scale, blur, saturation, tint and noise.

    The augmented images resemble samples and volume renders. They are never mirrored, which would swap left and right.
    ``rng`` is a generator on the CPU.
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
run_identity = partial(
    run_task, partial(train, IdentitySystem), result=IdentitySystem.result, files=(IdentitySystem.result,)
)
