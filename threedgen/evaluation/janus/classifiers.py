"""Who says which side a single view shows: the toybox probe, or CLIP with four sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config.errors import ConfigError
from threedgen.data.toybox.grammar import mentioned
from threedgen.evaluation.toybox.identity import CLIP_MEAN, CLIP_STD, encoder_input
from threedgen.evaluation.toybox.probe import Probe
from threedgen.guidance.weights.loading import reachable

from .options import CLIPSidesConfig, ProbeSidesConfig


class ViewClassifier(Protocol):
    """Looks at pictures (V, S, S, 3) in [0, 1], each for itself."""

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        """Probabilities (V, 4) of ``figures.SIDES``, of an object that is what the prompt says."""
        ...

    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """How well each picture fits each prompt, (V, N), the more the better; None if it cannot tell."""
        ...


EMBEDDED = "toybox-sides"
"""The toybox probe, trained on with rough and with two-faced objects (``probe_data.py``)."""


class ProbeSides:
    """A probe of the toybox, which needs no prompt for the sides. Raises ConfigError if it is missing."""

    def __init__(self, config: ProbeSidesConfig) -> None:
        self.probe = Probe.load(config.weights, EMBEDDED)

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        return self.probe.classify(pictures).side.exp()

    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Log-probability of the prompt's noun, and of its colour if it says one."""
        specs, labels = [mentioned(prompt) for prompt in prompts], self.probe.labels
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

        self.config, offline = config, not reachable()
        try:
            net = CLIPModel.from_pretrained(config.weights, local_files_only=offline)
            self.net = net.eval().requires_grad_(False)
            self.tokenizer = AutoTokenizer.from_pretrained(config.weights, local_files_only=offline)
        except Exception as error:  # a dozen kinds: no such id, no network, damaged, no CLIP
            raise ConfigError(
                f"{config.weights!r} cannot be loaded as CLIP ({type(error).__name__}); "
                "give a folder or an id of the hub such as openai/clip-vit-large-patch14",
                "meter.classifier.weights",
            ) from None
        self.size = int(self.net.config.vision_config.image_size)
        self.longest = int(self.net.config.text_config.max_position_embeddings)

    def sides(self, pictures: Tensor, prompt: str) -> Tensor:
        sentences = [sentence.replace("{prompt}", prompt) for sentence in self.config.sentences]
        return (self.net.logit_scale.exp() * self.likeness(pictures, sentences)).softmax(1)

    @torch.no_grad()
    def likeness(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines in [-1, 1]."""
        seen = [self._features(self.net.get_image_features, pixel_values=x) for x in self._batches(pictures)]
        words = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        sentences = self._features(
            self.net.get_text_features, input_ids=words.input_ids, attention_mask=words.attention_mask
        )
        return torch.cat(seen) @ sentences.T

    def _batches(self, pictures: Tensor) -> list[Tensor]:
        return [encoder_input(part, self.size, CLIP_MEAN, CLIP_STD) for part in pictures.split(self.config.batch)]

    @staticmethod
    def _features(encode, **inputs: Tensor) -> Tensor:
        answer = encode(**inputs)
        return F.normalize((answer if isinstance(answer, Tensor) else answer.pooler_output).float(), dim=1)
