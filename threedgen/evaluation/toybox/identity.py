"""Tells whether two pictures show one subject: they become unit vectors, whose cosine says how alike they are.

For toybox subjects a small network, trained on ground truth to know a subject from any side and to tell it from others
of its kind. For photos any image encoder of the Hugging Face hub, as DreamBooth does it (DINO and CLIP-I scores, arXiv
2208.12242 section 4.1). Both are called alike: pictures (V, H, W, 3) in [0, 1] -> vectors (V, D) of length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config.errors import ConfigError
from threedgen.data.toybox import subjects
from threedgen.guidance.matte import convolution
from threedgen.guidance.weights.loading import reachable

from .options import TRAIN_IDENTITY, HubIdentityConfig, IdentityNetworkConfig, ToyboxIdentityConfig
from .probe import Residual, pooled, prepare, read_network, write_network

PICTURES = 5
"""Of each fresh subject that the identity network is measured on."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of the photos that every CLIP was trained on."""


class IdentityNet(nn.Module):
    """Four levels, each half the size; what is found anywhere, and how much of it, becomes one unit vector."""

    def __init__(self, options: IdentityNetworkConfig | None = None) -> None:
        super().__init__()
        self.options = options or IdentityNetworkConfig()
        a, b, c, d = self.options.channels
        self.levels = nn.Sequential(
            convolution(3, a, 2),
            convolution(a, b, 2),
            Residual(b),
            convolution(b, c, 2),
            Residual(c),
            convolution(c, d, 2),
            Residual(d),
        )
        self.out = nn.Linear(2 * d, self.options.width)

    def forward(self, x: Tensor) -> Tensor:
        """Turns pictures (B, 3, S, S) in [0, 1] into vectors (B, D) of length 1, float32."""
        return F.normalize(self.out(pooled(self.levels((x - 0.5) * 4))).float(), dim=1)

    def save(self, path: Path, about: dict[str, Any] | None = None) -> None:
        """Writes PATH.safetensors, and beside it a .json with the sizes and ``about``. Raises OSError."""
        write_network(path, self, {"network": self.options.model_dump(mode="json"), **(about or {})})


class ToyboxIdentity:
    """The network of a train-toybox-identity run, frozen. Raises ConfigError, one sentence, for what is none."""

    def __init__(self, config: ToyboxIdentityConfig) -> None:
        self.net, self.card = read_network(
            config.file(),
            lambda card: IdentityNet(IdentityNetworkConfig(**card["network"])),
            "identity.weights",
            TRAIN_IDENTITY,
        )

    @torch.no_grad()
    def __call__(self, pictures: Tensor, chunk: int = 64) -> Tensor:
        size = self.net.options.image_size
        return torch.cat([self.net(prepare(part, size)) for part in pictures.split(chunk)])


class HubIdentity:
    """An image encoder of the hub or in a folder (DINOv2, DINO, CLIP's image half). Raises ConfigError."""

    def __init__(self, config: HubIdentityConfig) -> None:
        from transformers import AutoModel

        self.config = config
        self.net, _ = load_hub(
            config.weights, "an image encoder", "facebook/dinov2-small", "identity.weights", AutoModel
        )

    @torch.no_grad()
    def __call__(self, pictures: Tensor, chunk: int = 16) -> Tensor:
        parts = []
        for part in pictures.split(chunk):
            x = encoder_input(part, self.config.size, self.config.mean, self.config.std)
            if hasattr(self.net, "get_image_features"):  # CLIP and its kin
                parts.append(features(self.net.get_image_features(pixel_values=x)))
            else:  # the class token
                parts.append(features(self.net(pixel_values=x).last_hidden_state[:, 0]))
        return torch.cat(parts)


def load_hub(weights: str, what: str, example: str, key: str, *kinds: Any) -> tuple[Any, Any]:
    """Loads a network of the hub or of a folder, frozen, and its tokenizer (or None), by the classes ``kinds`` of
    transformers. Raises ConfigError for ``key``, one sentence."""
    options: dict[str, Any] = {"local_files_only": not reachable(), "trust_remote_code": False}
    try:
        net, *more = [kind.from_pretrained(weights, **options) for kind in kinds]
    except Exception as error:  # a dozen kinds: no such id, no network, damaged, no network that is known
        raise ConfigError(
            f"{weights!r} cannot be loaded as {what} ({type(error).__name__}); "
            f"give a folder or an id of the hub such as {example}",
            key,
        ) from None
    return net.eval().requires_grad_(False), more[0] if more else None


def features(found: Any) -> Tensor:
    """Takes the vectors (N, D) out of what CLIP and its kin answer, whatever the version, as float32 of length 1."""
    return F.normalize((found if isinstance(found, Tensor) else found.pooler_output).float(), dim=1)


def encoder_input(pictures: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Brings square pictures (V, H, W, 3) in [0, 1] to what an image encoder takes: (V, 3, size, size), bicubic with
    antialiasing, colours less ``mean`` over ``std``."""
    x = pictures.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    middle, spread = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (x - middle) / spread


def similarity(ours: Tensor, theirs: Tensor) -> float:
    """Averages the cosine of all pairs of the vectors (V, D) and (W, D), in [-1, 1]: DINO or CLIP-I of one subject."""
    return float((ours @ theirs.T).mean())


def roc(same: NDArray[np.floating], different: NDArray[np.floating]) -> dict[str, float]:
    """Rates the figures of pairs that are the same and of pairs that are not. Raises ValueError if one is empty.

    ``area`` in [0, 1]: the share of pairs in order, ties half; ``threshold``: where most answers are right, ``hits`` of
    the same and ``alarms`` of the others from there on.
    """
    if not len(same) or not len(different):
        raise ValueError("a ROC needs figures of both kinds")
    low = np.sort(different)
    below, up_to = (np.searchsorted(low, same, side) for side in ("left", "right"))
    every = np.unique(np.concatenate([same, different]))
    hits = 1 - np.searchsorted(np.sort(same), every) / len(same)
    alarms = 1 - np.searchsorted(low, every) / len(low)
    best = int((hits - alarms).argmax())
    area = float((below + up_to).mean() / 2 / len(low))
    found = {"threshold": every[best], "hits": hits[best], "alarms": alarms[best]}
    return {"area": area} | {name: float(value) for name, value in found.items()}


def pairs(vectors: Tensor, subject: NDArray[np.integer], kind: NDArray[np.integer]) -> tuple[Any, Any]:
    """Collects the cosines of all pairs of pictures (V, D) of one subject, and of different ones of the same kind."""
    cosine = (vectors @ vectors.T).numpy()
    once = np.triu(np.ones_like(cosine, bool), 1)
    same = subject[:, None] == subject
    return cosine[once & same], cosine[once & ~same & (kind[:, None] == kind)]


@torch.no_grad()
def measure_roc(net: IdentityNet, count: int, alike: int, seed: int) -> dict[str, float]:
    """Measures its ROC on fresh subjects, ``alike`` of each of ``count`` kinds: same subject or another of its kind."""
    rng, every = np.random.default_rng([seed, *b"measure"]), subjects.subject_nouns()
    vectors, subject, kind = [], [], []
    for k in range(count):
        for number in range(alike):
            asset = subjects.make_subject(seed, k * alike + number, every[k % len(every)].word)
            azimuth, elevation = rng.uniform(0, 2 * np.pi, PICTURES), np.deg2rad(rng.uniform(0, 30, PICTURES))
            rgb = subjects.render_views(asset, azimuth, elevation, net.options.image_size)
            vectors.append(net(torch.from_numpy(rgb).permute(0, 3, 1, 2)))
            subject += [k * alike + number] * PICTURES
            kind += [k] * PICTURES
    return roc(*pairs(torch.cat(vectors), np.array(subject), np.array(kind)))


def contrastive(vectors: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Computes the loss of unit vectors (2 N, D), pictures 2 k and 2 k + 1 of one subject, and the share right.

    It asks of every picture which of the others is of its subject (Khosla et al. 2020, "Supervised contrastive
    learning", with one positive): - mean_i log( exp(e_i e_p(i) / T) / sum_{j != i} exp(e_i e_j / T) ).
    """
    alike = vectors @ vectors.T / temperature
    alike = alike.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(alike, partner), float((alike.argmax(1) == partner).float().mean())
