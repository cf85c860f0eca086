"""Probe: a small classifier of toybox images, used only for measuring. It receives pixels, but no caption.

It classifies single views. The answers for all views of an object are then combined: noun and colour are those with the
highest mean log-probability, and a part is present if its probability is above a threshold in any view. The
log-probabilities of a part's colour are means over the views, weighted by the probability that the part is visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config.errors import ConfigError
from threedgen.evaluation.features import FeatureNetwork, NetworkOutput
from threedgen.evaluation.metrics.figures import Json
from threedgen.geometry.views import resize
from threedgen.guidance.matte import convolution
from threedgen.toybox.world.grammar import NOUNS, parse_prompt

from .labels import Labels
from .networks import Residual, pooled, prepare, read_network, write_network
from .options import PROBE, TRAIN_PROBE, ProbeFeaturesConfig, ProbeNetworkConfig, ProbeSidesConfig, probe_file


class Logits(NamedTuple):
    """Outputs of the probe for B images, with N nouns, C colours and W words for parts and accessories.

    Attributes:
        noun: logits (B, N).
        colour: logits (B, C) of the colour of the object.
        seen: logits (B, W) of independent probabilities that each part is visible.
        part_colour: logits (B, W, C) of the colour of each part.
        side: logits (B, 4) of the visible side: front, left, back, right.
        heading: (B, 2), estimate of (cos, sin) of the camera azimuth, which is 0 at the front and pi / 2 at the left.
    """

    noun: Tensor
    colour: Tensor
    seen: Tensor
    part_colour: Tensor
    side: Tensor
    heading: Tensor


@dataclass(frozen=True)
class Answers:
    """Predictions of the probe for V views, on the CPU, with N nouns, C colours and W words for parts and accessories.

    Attributes:
        noun, colour: log-probabilities (V, N) and (V, C).
        part: probability (V, W) that each part is visible.
        part_colour: log-probabilities (V, W, C) of the colour of each part.
        side: log-probabilities (V, 4) of the visible side: front, left, back, right.
        azimuth: camera azimuth (V,), radians, in [-pi, pi]; 0 at the front, pi / 2 at the object's left side.
    """

    noun: Tensor
    colour: Tensor
    part: Tensor
    part_colour: Tensor
    side: Tensor
    azimuth: Tensor

    def __getitem__(self, views: slice) -> "Answers":
        return Answers(*(value[views] for value in vars(self).values()))


def combine_views(views: Answers) -> Answers:
    """Combine the answers for V views of one object. Return answers without the axis V, except for side and azimuth.

    ``noun`` and ``colour`` are means of log-probabilities, ``part`` is the maximum probability, and ``part_colour`` is
    the mean of log-probabilities, weighted by the part's probability in each view. ``side`` and ``azimuth`` are not
    combined.
    """
    weight = views.part / views.part.sum(0).clamp(min=1e-6)
    part_colour = (weight[..., None] * views.part_colour).sum(0)
    noun, colour = views.noun.mean(0), views.colour.mean(0)
    return replace(views, noun=noun, colour=colour, part=views.part.amax(0), part_colour=part_colour)


class Probe(nn.Module):
    """Convolutional classifier of toybox images: noun, colour, parts with their colours, and viewing side.

    `forward` maps images (B, 3, S, S) in [0, 1] to `Logits`; `classify` maps images of any size to probabilities. The
    network has four levels, each at half the resolution of the level before. For the object and for each part, it
    predicts an attention map (softmax over pixels). The mean of the features, weighted by this map, gives the colour.

    Attributes:
        labels: names of the classes: nouns, colours, and parts and accessories.
        threshold: probability above which a part counts as present; calibrated after training.
        accuracy: shares of correct answers on new objects as JSON, measured after training; None: not measured.
    """

    def __init__(self, labels: Labels, options: ProbeNetworkConfig | None = None) -> None:
        super().__init__()
        self.labels, self.options = labels, options or ProbeNetworkConfig()
        self.threshold = 0.5
        self.accuracy: Json | None = None
        a, b, c, d = self.options.channels
        words, colours = len(labels.words), len(labels.colours)
        self.stem = convolution(3, a, 2)
        self.fine = nn.Sequential(convolution(a, b, 2), Residual(b))
        self.middle = nn.Sequential(convolution(b, c, 2), Residual(c), Residual(c))
        self.coarse = nn.Sequential(convolution(c, d, 2), Residual(d))
        self.laterals = nn.ModuleList([nn.Conv2d(width, b, 1) for width in (b, c, d)])
        self.place = nn.Conv2d(b, words + 1, 1)
        self.paint = nn.Sequential(nn.Linear(b, b), nn.ReLU(), nn.Linear(b, colours))
        self.there = nn.Parameter(0.1 * torch.randn(words, b))
        self.whole = nn.Linear(2 * d, len(labels.nouns) + 4 + 2 + words)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # twice as fast on a CPU
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Logits:
        """Classify B images (B, 3, S, S) in [0, 1], where S is ``options.image_size``. The outputs are float32.

        With N nouns, C colours and W words for parts and accessories, they are logits of the noun (B, N) and the colour
        (B, C) of the object, of whether each part is visible (B, W) and of its colour (B, W, C), and of the visible
        side (B, 4: front, left, back, right); and (cos, sin) of the camera azimuth, (B, 2).
        """
        fine, middle, coarse = self._levels(x)
        levels = [lateral(y) for lateral, y in zip(self.laterals, (fine, middle, coarse), strict=True)]
        features = F.relu(torch.stack([F.interpolate(y, size=fine.shape[-2:]) for y in levels]).sum(0))
        places = self.place(features).flatten(2).float().softmax(-1)
        selected = torch.einsum("bwp,bcp->bwc", places.to(features.dtype), features.flatten(2))
        colours = self.paint(selected).float()
        outputs = self.whole(pooled(coarse)).float()
        noun, side, heading, seen = outputs.split([len(self.labels.nouns), 4, 2, len(self.labels.words)], dim=1)
        seen = seen + (selected[:, 1:].float() * self.there.float()).sum(-1)
        return Logits(noun, colours[:, 0], seen, colours[:, 1:], side, heading)

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = ((x - 0.5) * 4).contiguous(memory_format=torch.channels_last)
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        return fine, middle, self.coarse(middle)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return features (V, D), float32, of images (V, S, S, 3) in [0, 1] of any size S.

        They are the means, then the maxima, over the pixels of the D / 2 channels of the last (coarsest) of the four
        levels. The network must be in eval mode, because it has batch norms.
        """
        *_, coarse = self._levels(prepare(images, self.options.image_size))
        return pooled(coarse).float()

    @torch.no_grad()
    def classify(self, images: Tensor, chunk: int = 64) -> Answers:
        """Classify square images (V, S, S, 3) in [0, 1] of any size S.

        The result has the log-probabilities of noun, colours and side, the probability that each part is visible, and
        the camera azimuth of each image. ``chunk`` is the number of images per batch. The network is in eval mode
        meanwhile, and in its earlier mode afterwards.
        """
        device, training = next(self.parameters()).device, self.training
        self.eval()
        try:
            logits = [self(prepare(part.to(device), self.options.image_size)) for part in images.split(chunk)]
        finally:
            self.train(training)
        noun, colour, seen, part_colour, side, heading = (
            torch.cat(parts).float().cpu() for parts in zip(*logits, strict=True)
        )
        return Answers(
            noun.log_softmax(-1),
            colour.log_softmax(-1),
            seen.sigmoid(),
            part_colour.log_softmax(-1),
            side.log_softmax(-1),
            torch.atan2(heading[:, 1], heading[:, 0]),
        )

    def save(self, path: Path, about: Json | None = None) -> None:
        card = {"labels": self.labels.plain(), "network": self.options.model_dump(mode="json")}
        write_network(path, self, card | {"threshold": self.threshold, **(about or {})})

    @classmethod
    def load(
        cls, weights: str = "embedded", key: str = "probe.weights", embedded: str = PROBE, all_words: bool = True
    ) -> "Probe":
        """Load a probe in eval mode on the CPU.

        Args:
            weights: .safetensors file, folder with toybox-probe.safetensors, or "embedded" for a file that is installed
                with threedgen. The .json file of the same name is read too.
            key: config key of ``weights``, for error messages.
            embedded: name of the installed file that "embedded" stands for, without suffix.
            all_words: whether the probe must know all words of the toybox. Its features do not need them.

        Raises:
            ConfigError: the file is missing or damaged, or the probe lacks words, for example of a newer toybox.
        """

        def make(card: Json) -> Probe:
            probe = cls(Labels.from_plain(card["labels"]), ProbeNetworkConfig(**card["network"]))
            probe.threshold = float(card.get("threshold", 0.5))
            return probe

        path = probe_file(weights, key, embedded)
        probe, card = read_network(path, make, key, TRAIN_PROBE)
        probe.accuracy = card.get("accuracy")
        known, needed = probe.labels.plain(), Labels.of_toybox().plain()
        unknown = [word for kind in needed for word in needed[kind] if word not in known[kind]]
        if unknown and all_words:
            words = ", ".join(unknown[:5])
            raise ConfigError(f"{path} was trained on an older toybox without {words}. {TRAIN_PROBE}", key)
        return probe


class ProbeSides:
    """Probe (classifier of toybox images) as classifier of the side that a view of an object shows.

    Implements the protocol `threedgen.evaluation.janus.meter.ViewClassifier`. `sides(images, prompt)` returns the
    probabilities (V, 4) that each of V views shows front, left, back or right. `likeness(images, prompts)` returns
    scores (V, N) of how well each view fits each of N prompts. A score is the log-probability that the view shows the
    prompt's noun, plus that of its colour if the prompt names one; other words do not count. The result is None if a
    prompt has no toybox noun. The constructor raises ConfigError if the weights are missing or damaged.
    """

    def __init__(self, config: ProbeSidesConfig) -> None:
        self.probe = Probe.load(config.weights, "meter.classifier.weights", config.embedded)
        self.fronted = torch.tensor([NOUNS[noun].front for noun in self.probe.labels.nouns])

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        answers = self.probe.classify(images)
        # mean over all views, because a view from the back shows little of the noun
        has_front = answers.noun[:, self.fronted].exp().sum(1).mean()
        return answers.side.exp() * has_front

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Return scores (V, N) of N prompts for images (V, S, S, 3) in [0, 1]. A higher score means a better match.

        A score is the log-probability of the prompt's noun, plus the log-probability of its colour if the prompt names
        one. The result is None if a prompt has no toybox noun, or if the probe cannot tell two prompts apart: they have
        the same noun and not two different colours.
        """
        specs = [spec for prompt in prompts if (spec := parse_prompt(prompt)) is not None]
        pairs = ((a, b) for a, b in combinations(specs, 2) if a.noun == b.noun)
        same = (a.colour == b.colour or not (a.colour and b.colour) for a, b in pairs)
        if len(specs) < len(prompts) or any(same):
            return None
        labels, answers, columns = self.probe.labels, self.probe.classify(images), []
        for spec in specs:
            column = answers.noun[:, labels.nouns.index(spec.noun)]
            columns.append(column + answers.colour[:, labels.colours.index(spec.colour)] if spec.colour else column)
        return torch.stack(columns, 1)


class ProbeFeatures(FeatureNetwork):
    """Feature network for FID, KID and Inception score: the probe, a classifier of toybox images.

    A call maps images (V, H, W, 3), uint8, which are resized to squares, to features (V, D) and logits (V, N). The
    features are the means and maxima over pixels of the D / 2 channels before the output layer (`Probe.features`). The
    logits are the log-probabilities of the N nouns. The constructor raises ConfigError if the weights are missing or
    damaged.
    """

    description = (
        "the toybox probe, its last layer and its nouns as classes. It was trained on single objects, not "
        "on rooms: FID and KID of rooms grow as they should with blur, noise, parts in disorder and repeated views, "
        "but hardly with a tint, and the Inception score says little, as rooms are none of its classes"
    )

    def __init__(self, config: ProbeFeaturesConfig) -> None:
        self.probe = Probe.load(config.weights, "features.weights", all_words=False)

    def __call__(self, images: Tensor) -> NetworkOutput:
        square = resize(images.float() / 255, *[self.probe.options.image_size] * 2)
        return NetworkOutput(self.probe.features(square).numpy(), self.probe.classify(square).noun.numpy())
