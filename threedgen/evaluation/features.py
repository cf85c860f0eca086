"""Pretrained networks of the evaluations: Inception-v3 for FID, KID and Inception score, CLIP, image encoders."""

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
"""Mean and standard deviation per RGB channel that CLIP inputs in [0, 1] are normalised with."""


class NetworkOutput(NamedTuple):
    """Float features (V, D) of a hidden layer and class logits (V, K) of V images, as NumPy arrays on the CPU."""

    features: np.ndarray
    logits: np.ndarray


class FeatureNetwork(Protocol):
    """Network whose features are compared by FID and KID and whose logits give the Inception score.

    Calling it maps images (V, H, W, 3), uint8, to a `NetworkOutput`. Implementations are registered as "features".

    Attributes:
        description: name and preprocessing of the network, for a report.
    """

    description: str

    @abstractmethod
    def __call__(self, images: Tensor) -> NetworkOutput: ...

    def fid(self, images: Tensor, truth: Tensor) -> float:
        """Return the FID of two sets of images (N, H, W, 3) and (M, H, W, 3), uint8. The order does not matter."""
        return fid(self(images).features, self(truth).features)


class InceptionFeatures(FeatureNetwork):
    """Inception-v3 of torchmetrics with the weights of the original FID.

    The constructor raises ConfigError if the weights cannot be loaded.
    """

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
    """CLIP score of torchmetrics: 100 times the cosine of the CLIP embeddings of an image and of its caption.

    ``weights`` is a hub id or a folder. The constructor raises ConfigError if it cannot be loaded.
    """

    def __init__(self, weights: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        net, processor = load_hub(weights, "CLIP", "openai/clip-vit-large-patch14", "clip", CLIPModel, AutoProcessor)
        self.metric = CLIPScore(lambda: (_Towers(net), processor))  # type: ignore[arg-type, return-value]

    @torch.no_grad()
    def __call__(self, images: Tensor, captions: Sequence[str]) -> float:
        """Return the mean CLIP score of images (V, H, W, 3), uint8, with one caption each; at least 0."""
        self.metric.reset()
        self.metric.update(list(images.permute(0, 3, 1, 2)), list(captions))
        return float(self.metric.compute())


class _Towers(nn.Module):
    """Wrapper of CLIP for torchmetrics, which needs tensors. CLIP returns other objects since transformers 5.0."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.config = net, net.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return unit_vectors(self.net.get_image_features(pixel_values=pixels))

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return unit_vectors(self.net.get_text_features(input_ids=ids, attention_mask=mask))


class HubIdentity:
    """Frozen image encoder (DINOv2, DINO or CLIP) that compares the identity of subjects in photos.

    The weights are a hub id or a folder. The constructor raises ConfigError if they cannot be loaded.
    """

    def __init__(self, config: HubIdentityConfig) -> None:
        from transformers import AutoModel

        self.config = config
        self.net, _ = load_hub(
            config.weights, "an image encoder", "facebook/dinov2-small", "identity.weights", AutoModel
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, chunk: int = 16) -> Tensor:
        """Encode square images (V, H, W, 3) in [0, 1], ``chunk`` at a time, as unit vectors (V, D), float32."""
        vectors = []
        for part in images.split(chunk):
            x = encoder_input(part, self.config.size, self.config.mean, self.config.std)
            if hasattr(self.net, "get_image_features"):  # CLIP and similar models
                vectors.append(unit_vectors(self.net.get_image_features(pixel_values=x)))
            else:  # class token
                vectors.append(unit_vectors(self.net(pixel_values=x).last_hidden_state[:, 0]))
        return torch.cat(vectors)


def load_hub(weights: str, description: str, example: str, key: str, *classes: Any) -> tuple[Any, Any]:
    """Load a frozen network in eval mode, and optionally its tokenizer or processor, with transformers.

    Args:
        weights: folder or id of the Hugging Face hub.
        description: kind of network that is expected, for the error message.
        example: hub id of a valid network, for the error message.
        key: config key of ``weights``, for the error message.
        classes: transformers class of the network, then optionally the class of its tokenizer or processor.

    Returns:
        The network, and the tokenizer or processor; None if only one class is given.

    Raises:
        ConfigError: if the weights cannot be loaded.
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
    """Normalise the embeddings (N, D) of CLIP to length 1, float32.

    ``output`` is a tensor (N, D), or since transformers 5.0 an object with the attribute ``pooler_output`` (N, D).
    """
    return F.normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=1)


def encoder_input(images: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Resize square images (V, H, W, 3) in [0, 1] and normalise each channel with ``mean`` and ``std`` (3,).

    Returns:
        Input of an image encoder, (V, 3, size, size), float32.
    """
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    offset, scale = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (x - offset) / scale
