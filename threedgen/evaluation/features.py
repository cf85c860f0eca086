"""Pretrained networks of the evaluations: Inception-v3 for FID, KID and Inception score; CLIP; image encoders."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from threedgen.config import ConfigError
from threedgen.guidance.weights.hub import reachable

from .metrics.distributions import fid
from .options import CLIP_WEIGHTS, InceptionFeaturesConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per RGB channel that CLIP inputs in [0, 1] are normalised with."""
ENCODER_BATCH = 16


class NetworkOutput(NamedTuple):
    """Float features (V, D) of a hidden layer and class logits (V, K), for V images, on the CPU."""

    features: np.ndarray
    logits: np.ndarray


class FeatureNetwork(Protocol):
    """Network whose features FID and KID use, and whose class logits the Inception score uses.

    A call maps images (V, H, W, 3), uint8, to a `NetworkOutput`. ``description`` is the name of the network in reports.
    The registry builds implementations from a config of the kind "features".
    """

    description: str

    @abstractmethod
    def __call__(self, images: Tensor) -> NetworkOutput: ...

    def fid(self, images: Tensor, truth: Tensor) -> float:
        """Return the FID between two sets of images, (N, H, W, 3) and (M, H, W, 3), uint8, with this network."""
        return fid(self(images).features, self(truth).features)


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 of torchmetrics with the weights of the original FID.

    The constructor raises ConfigError if the weights cannot be downloaded or loaded.
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


class CLIP:
    """Frozen CLIP that embeds images and texts as unit vectors.

    Args:
        weights: folder or hub id of the model. The constructor raises ConfigError if the model cannot be loaded.
        key: config key of ``weights``, for the error message.
        example: valid value of ``weights``, for the error message.
    """

    def __init__(self, weights: str, key: str, example: str = CLIP_WEIGHTS) -> None:
        from transformers import AutoProcessor, CLIPModel

        self.net, self.processor = load_hub(weights, "CLIP", example, key, CLIPModel, AutoProcessor)
        self.image_size = int(self.net.config.vision_config.image_size)

    @torch.no_grad()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Embed N images (N, 3, S, S), preprocessed for CLIP, with S = ``image_size``. Return unit vectors (N, D)."""
        parts = pixels.split(ENCODER_BATCH)
        return torch.cat([unit_vectors(self.net.get_image_features(pixel_values=part)) for part in parts])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed N texts, truncated to the maximum length of CLIP. Return unit vectors (N, D)."""
        longest = int(self.net.config.text_config.max_position_embeddings)
        tokens = self.processor.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        return unit_vectors(
            self.net.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        )


def load_hub(weights: str, description: str, example: str, key: str, *classes: Any) -> list[Any]:
    """Load a network and its processor with transformers. The network is frozen and in eval mode.

    Args:
        weights: folder or hub id of the model. ConfigError is raised if the model cannot be loaded.
        description: name of the expected model, such as "CLIP", for the error message.
        example: valid value of ``weights``, for the error message.
        key: config key of ``weights``, for the error message.
        classes: two transformers classes, of the network and of the processor.

    Returns:
        [network, processor].
    """
    try:
        net, processor = [
            kind.from_pretrained(weights, local_files_only=not reachable(), trust_remote_code=False) for kind in classes
        ]
    except Exception as error:  # transformers raises many classes
        problem = f"cannot be loaded as {description} ({type(error).__name__}). Give a folder or hub id like {example}"
        raise ConfigError(problem, key, weights) from None
    return [net.eval().requires_grad_(False), processor]


def unit_vectors(output: Any) -> Tensor:
    # (N, D); transformers 5 returns an object with `pooler_output`
    return F.normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=1)


def encoder_input(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize square images (V, H, H, 3) in [0, 1] to (V, 3, size, size), and normalise by ``mean`` and ``std`` (3,)."""
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    offset, scale = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (x - offset) / scale
