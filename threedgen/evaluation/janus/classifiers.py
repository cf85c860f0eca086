"""Who says which side a single view shows: the toybox probe, or CLIP with four sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from threedgen.data.toybox.grammar import parse_prompt
from threedgen.evaluation.toybox.identity import CLIP_MEAN, CLIP_STD, encoder_input, features, load_hub
from threedgen.evaluation.toybox.probe import Probe

from .options import CLIP, WITHOUT_CLIP, CLIPSidesConfig, ProbeSidesConfig

CLASSIFIER = "meter.classifier.weights"


class ViewClassifier(Protocol):
    """Looks at pictures (V, S, S, 3) in [0, 1], each for itself."""

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        """Gives probabilities (V, 4) of ``figures.SIDES``, of an object that is what the prompt says."""
        ...

    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Rates how well each picture fits each prompt, (V, N), the more the better; None if it cannot tell."""
        ...


class ProbeSides:
    """A probe of the toybox, which needs no prompt for the sides. Raises ConfigError if it is missing."""

    def __init__(self, config: ProbeSidesConfig) -> None:
        self.probe = Probe.load(config.weights, CLASSIFIER, config.embedded)

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        return self.probe.classify(pictures).side.exp()

    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Rates by the log-probability of the prompt's noun, and of its colour if it says one."""
        specs, labels = [parse_prompt(prompt) for prompt in prompts], self.probe.labels
        seen, columns = self.probe.classify(pictures), []
        for spec in specs:
            if spec is None:
                return None
            column = seen.noun[:, labels.nouns.index(spec.noun)]
            columns.append(column + seen.colour[:, labels.colours.index(spec.colour)] if spec.colour else column)
        return torch.stack(columns, 1)


class CLIPSides:
    """Softmax over the similarities with four sentences, at CLIP's own temperature. Raises ConfigError."""

    def __init__(self, config: CLIPSidesConfig) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.config, example = config, f"{CLIP}; {WITHOUT_CLIP}"
        self.net, self.tokenizer = load_hub(config.weights, "CLIP", example, CLASSIFIER, CLIPModel, AutoTokenizer)
        self.size = int(self.net.config.vision_config.image_size)
        self.longest = int(self.net.config.text_config.max_position_embeddings)

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        sentences = [sentence.replace("{prompt}", prompt) for sentence in self.config.sentences]
        return (self.net.logit_scale.exp() * self.likeness(pictures, sentences)).softmax(1)

    @torch.no_grad()
    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rates by cosines in [-1, 1]."""
        config, views = self.config, []
        for part in pictures.split(config.batch):
            x = encoder_input(part, self.size, CLIP_MEAN, CLIP_STD)
            views.append(features(self.net.get_image_features(pixel_values=x)))
        words = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        ids, mask = words.input_ids, words.attention_mask
        return torch.cat(views) @ features(self.net.get_text_features(input_ids=ids, attention_mask=mask)).T
