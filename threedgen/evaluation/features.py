"""Networks whose features evaluations compare, such as Inception-v3 for FID, KID and Inception score."""

from abc import abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from threedgen.config import ConfigError

from .metrics.distributions import fid
from .options import InceptionFeaturesConfig


class NetworkOutput(NamedTuple):
    """Output of a feature network for V images: features (V, D) of a hidden layer, logits (V, K) of K classes."""

    features: np.ndarray
    logits: np.ndarray


class FeatureNetwork(Protocol):
    """Network whose features FID and KID use, and whose class logits the Inception score uses.

    A subclass implements `__call__`, which maps images (V, H, W, 3), uint8, to a `NetworkOutput`: features (V, D) and
    class logits (V, K). It sets ``description``, the name of the network in reports. A config selects a subclass by
    name (component of the kind "features").
    """

    description: str

    @abstractmethod
    def __call__(self, images: Tensor) -> NetworkOutput: ...

    def fid(self, images: Tensor, truth: Tensor) -> float:
        """Return the FID between two sets of images, (N, H, W, 3) and (M, H, W, 3), uint8, with this network."""
        return fid(self(images).features, self(truth).features)


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 of torchmetrics with the weights of the original FID, for FID, KID and Inception score.

    A call maps images (V, H, W, 3), uint8, to features (V, 2048) and logits (V, K) of K classes. The constructor raises
    ConfigError if the weights cannot be downloaded or loaded.
    """

    description = (
        "torchmetrics' Inception-v3 (2048 features; unbiased logits), views resized to 299 x 299 with antialiasing"
    )

    def __init__(self, config: InceptionFeaturesConfig) -> None:
        try:
            self.nets: list[nn.Module] = [FrechetInceptionDistance(2048).inception, InceptionScore().inception]
        except Exception as error:  # network, disk or damaged file
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(f"Inception's weights of github.com cannot be loaded ({reason})", "features") from None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(*(net(images.permute(0, 3, 1, 2)).double().numpy() for net in self.nets))
