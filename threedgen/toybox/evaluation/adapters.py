"""Adapters that use the toybox probe as view classifier and as feature network of other evaluations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from threedgen.evaluation.features import FeatureNetwork, NetworkOutput
from threedgen.geometry.views import resize
from threedgen.toybox.world.grammar import parse_prompt

from .options import ProbeFeaturesConfig, ProbeSidesConfig
from .probe import Probe


class ProbeSides:
    """Classifier of the side in views of toybox objects (`janus.meter.ViewClassifier`). Raises ConfigError."""

    def __init__(self, config: ProbeSidesConfig) -> None:
        self.probe = Probe.load(config.weights, "meter.classifier.weights", config.embedded)

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        return self.probe.classify(images).side.exp()

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Return scores (V, N) of N prompts: log-probability of the noun, plus that of the colour if it is named.

        Returns None if a prompt is not a toybox prompt.
        """
        specs, labels = [parse_prompt(prompt) for prompt in prompts], self.probe.labels
        answers, columns = self.probe.classify(images), []
        for spec in specs:
            if spec is None:
                return None
            column = answers.noun[:, labels.nouns.index(spec.noun)]
            columns.append(column + answers.colour[:, labels.colours.index(spec.colour)] if spec.colour else column)
        return torch.stack(columns, 1)


class ProbeFeatures(FeatureNetwork):
    """Feature network by the probe: features of its last layer, logits of its nouns. Raises ConfigError."""

    description = (
        "the toybox probe, its last layer and its nouns as classes. It was trained on single objects, not "
        "on rooms: FID and KID of rooms grow as they should with blur, noise, parts in disorder and repeated views, "
        "but hardly with a tint, and the Inception score says little, as rooms are none of its classes"
    )

    def __init__(self, config: ProbeFeaturesConfig) -> None:
        self.probe = Probe.load(config.weights, "features.weights")

    def __call__(self, images: Tensor) -> NetworkOutput:
        square = resize(images.float() / 255, *[self.probe.options.image_size] * 2)
        return NetworkOutput(self.probe.features(square).numpy(), self.probe.classify(square).noun.numpy())
