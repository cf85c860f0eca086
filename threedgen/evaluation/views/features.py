"""What networks see in views: features and class scores for FID, KID and the Inception score, and the CLIP score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.multimodal import CLIPScore

from threedgen.config import ConfigError
from threedgen.evaluation.metrics.distributions import fid
from threedgen.evaluation.toybox.identity import features, load_hub
from threedgen.evaluation.toybox.probe import Probe
from threedgen.geometry.views import resize

from .options import InceptionFeaturesConfig, ProbeFeaturesConfig


class Seen(NamedTuple):
    """What a network sees in V pictures: features (V,D) and logits of classes (V,K)."""

    features: np.ndarray
    logits: np.ndarray


class Features(Protocol):
    """Looks at pictures (V,H,W,3), uint8. ``about``: what these features are, in words for a report."""

    about: str

    def __call__(self, pictures: Tensor) -> Seen: ...

    def fid(self, pictures: Tensor, truth: Tensor) -> float:
        """Measures the Frechet distance of the features of two sets of pictures, see ``metrics.distributions.fid``."""
        return fid(self(pictures)[0], self(truth)[0])


class ProbeFeatures(Features):
    """The probe's, of views brought to the square that it looks at. Raises ConfigError if it is missing."""

    about = (
        "the toybox probe, its last layer and its nouns as classes. It learnt from single things, not "
        "from rooms: FID and KID of rooms grow as they should with blur, noise, parts in disorder and repeated views, "
        "but hardly with a tint, and the Inception score says little, as rooms are none of its classes"
    )

    def __init__(self, config: ProbeFeaturesConfig) -> None:
        self.probe = Probe.load(config.weights, "features.weights")

    def __call__(self, pictures: Tensor) -> Seen:
        square = resize(pictures.float() / 255, *[self.probe.options.image_size] * 2)
        return Seen(self.probe.features(square).numpy(), self.probe.classify(square).noun.numpy())


class InceptionFeatures(Features):
    """Inception-v3 with the weights of the original FID, by torchmetrics. Raises ConfigError if they cannot be had."""

    about = "torchmetrics' Inception-v3 (2048 features; unbiased logits), views brought to 299 x 299 with antialiasing"

    def __init__(self, config: InceptionFeaturesConfig) -> None:
        config.check()
        try:
            self.nets: list[nn.Module] = [FrechetInceptionDistance(2048).inception, InceptionScore().inception]
        except Exception as error:  # no network, no disk, a damaged file
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"the weights of Inception cannot be had, which torch-fidelity fetches once from github.com ({reason})",
                "features",
            ) from None

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Seen:
        return Seen(*(net(pictures.permute(0, 3, 1, 2)).double().numpy() for net in self.nets))


class Caption:
    """torchmetrics' CLIP score, 100 cos, of views with their own captions. Raises ConfigError for what is no CLIP."""

    def __init__(self, weights: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        net, processor = load_hub(weights, "CLIP", "openai/clip-vit-large-patch14", "clip", CLIPModel, AutoProcessor)
        self.metric = CLIPScore(lambda: (_Towers(net), processor))  # type: ignore[arg-type, return-value]

    @torch.no_grad()
    def __call__(self, pictures: Tensor, captions: Sequence[str]) -> float:
        """Averages over pictures (V,H,W,3), uint8."""
        self.metric.reset()
        self.metric.update(list(pictures.permute(0, 3, 1, 2)), list(captions))
        return float(self.metric.compute())


class _Towers(nn.Module):
    """A CLIP that answers with tensors, as torchmetrics expects it; transformers has had other answers since 5.0."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.config = net, net.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return features(self.net.get_image_features(pixel_values=pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return features(self.net.get_text_features(input_ids=ids, attention_mask=mask))
