"""Image networks of evaluations: features for FID, KID and Inception score, CLIP score, encoders of the hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.multimodal import CLIPScore

from threedgen.config import ConfigError
from threedgen.guidance.weights.hub import reachable

from .metrics.distributions import fid
from .options import HubIdentityConfig, InceptionFeaturesConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the colours of CLIP's training images."""


class NetworkOutput(NamedTuple):
    """Features (V, D) and class logits (V, K) of V images."""

    features: np.ndarray
    logits: np.ndarray


class FeatureNetwork(Protocol):
    """Network for images (V, H, W, 3), uint8; registered as "features".

    Attributes:
        description: text for a report.
    """

    description: str

    @abstractmethod
    def __call__(self, images: Tensor) -> NetworkOutput: ...

    def fid(self, images: Tensor, truth: Tensor) -> float:
        """Return the FID of two sets of images; see ``metrics.distributions.fid``."""
        return fid(self(images).features, self(truth).features)


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 with the weights of the original FID, by torchmetrics. Raises ConfigError without them."""

    description = (
        "torchmetrics' Inception-v3 (2048 features; unbiased logits), views resized to 299 x 299 with antialiasing"
    )

    def __init__(self, config: InceptionFeaturesConfig) -> None:
        config.check()
        try:
            self.nets: list[nn.Module] = [FrechetInceptionDistance(2048).inception, InceptionScore().inception]
        except Exception as error:  # network, disk or damaged file
            reason = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"Inception's weights, which torch-fidelity fetches from github.com, cannot be loaded ({reason})",
                "features",
            ) from None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NetworkOutput:
        return NetworkOutput(*(net(images.permute(0, 3, 1, 2)).double().numpy() for net in self.nets))


class CaptionScore:
    """torchmetrics' CLIP score, 100 cos, of views and their captions. Raises ConfigError."""

    def __init__(self, weights: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        net, processor = load_hub(weights, "CLIP", "openai/clip-vit-large-patch14", "clip", CLIPModel, AutoProcessor)
        self.metric = CLIPScore(lambda: (_Towers(net), processor))  # type: ignore[arg-type, return-value]

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> float:
        """Return the mean over images (V, H, W, 3), uint8."""
        self.metric.reset()
        self.metric.update(list(images.permute(0, 3, 1, 2)), list(captions))
        return float(self.metric.compute())


class _Towers(nn.Module):
    """CLIP that returns tensors, which torchmetrics needs; transformers returns objects since 5.0."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.config = net, net.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return unit_vectors(self.net.get_image_features(pixel_values=pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return unit_vectors(self.net.get_text_features(input_ids=ids, attention_mask=mask))


class HubIdentity:
    """Image encoder of the hub or of a folder (DINOv2, DINO, CLIP) as identity network. Raises ConfigError."""

    def __init__(self, config: HubIdentityConfig) -> None:
        from transformers import AutoModel

        self.config = config
        self.net, _ = load_hub(
            config.weights, "an image encoder", "facebook/dinov2-small", "identity.weights", AutoModel
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, chunk: int = 16) -> Tensor:
        """Encode images (V, H, W, 3) in [0, 1] as unit vectors (V, D)."""
        vectors = []
        for part in images.split(chunk):
            x = encoder_input(part, self.config.size, self.config.mean, self.config.std)
            if hasattr(self.net, "get_image_features"):  # CLIP and similar models
                vectors.append(unit_vectors(self.net.get_image_features(pixel_values=x)))
            else:  # class token
                vectors.append(unit_vectors(self.net(pixel_values=x).last_hidden_state[:, 0]))
        return torch.cat(vectors)


def load_hub(weights: str, description: str, example: str, key: str, *classes: Any) -> tuple[Any, Any]:
    """Load a network of the hub or of a folder, frozen, and its tokenizer or processor, if a class of one is given.

    Args:
        weights: folder or hub id.
        description, example: of a valid network, for the message.
        key: config key of ``weights``.
        classes: of transformers: that of the network, and optionally that of the tokenizer.

    Raises:
        ConfigError: if it cannot be loaded.
    """
    try:
        net, *rest = [
            kind.from_pretrained(weights, local_files_only=not reachable(), trust_remote_code=False) for kind in classes
        ]
    except Exception as error:  # transformers raises many classes
        raise ConfigError(
            f"cannot be loaded as {description} ({type(error).__name__}): {weights!r}. Give a folder or a hub id such "
            f"as {example}.",
            key,
        ) from None
    return net.eval().requires_grad_(False), rest[0] if rest else None


def unit_vectors(output: Any) -> Tensor:
    """Return the vectors (N, D) of CLIP's output, in any version of transformers, as float32 of length 1."""
    return F.normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=1)


def encoder_input(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize square images (V, H, W, 3) in [0, 1] and normalise their colours: (V, 3, size, size)."""
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    offset, scale = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (x - offset) / scale
