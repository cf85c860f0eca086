"""Tells whether two pictures show one subject: they become unit vectors, whose cosine says how alike they are.

For toybox subjects a small network, trained on ground truth to know a subject from any side and to tell it from others
of its kind. For photos any image encoder of the Hugging Face hub, such as DINOv2 or CLIP, as DreamBooth does it
(DINO and CLIP-I scores, arXiv 2208.12242 section 4.1). Both are called alike:

    embed = registry.build("identity", config.identity)
    vectors = embed(pictures)           (V, H, W, 3) in [0, 1] -> (V, D) of length 1
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config.errors import ConfigError
from threedgen.evaluation.tables import write_json
from threedgen.guidance.weights.loading import reachable
from threedgen.run.folder import write_atomic

from .options import HubIdentityConfig, IdentityNetworkConfig, ToyboxIdentityConfig
from .probe import Residual, convolution, pooled, prepare

NAME = "toybox-identity"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of the photos that every CLIP was trained on."""
TRAIN = "train one with `launch.py --config train-toybox-identity`, which leaves it in RUN/identity"


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
        """(B, 3, S, S) in [0, 1] -> (B, D) of length 1, float32."""
        return F.normalize(self.out(pooled(self.levels((x - 0.5) * 4))).float(), dim=1)

    def save(self, path: Path, about: dict[str, Any] | None = None) -> None:
        """PATH.safetensors, and beside it a .json with the sizes and ``about``. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}))
        write_json(path.with_suffix(".json"), {"network": self.options.model_dump(mode="json"), **(about or {})})


class ToyboxIdentity:
    """The network of a train-toybox-identity run, frozen. Raises ConfigError, one sentence, for what is none."""

    def __init__(self, config: ToyboxIdentityConfig) -> None:
        path = config.file()
        try:
            self.card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            net = IdentityNet(IdentityNetworkConfig(**self.card["network"]))
            net.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0][:120]
            raise ConfigError(f"{path} is damaged or of another kind ({reason}); {TRAIN}", "identity.weights") from None
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, chunk: int = 64) -> Tensor:
        size = self.net.options.image_size
        return torch.cat([self.net(prepare(part, size)) for part in pictures.split(chunk)])


class HubIdentity:
    """An image encoder of the hub or in a folder (DINOv2, DINO, CLIP's image half). Raises ConfigError."""

    def __init__(self, config: HubIdentityConfig) -> None:
        from transformers import AutoModel

        self.config = config
        try:
            net = AutoModel.from_pretrained(config.weights, trust_remote_code=False, local_files_only=not reachable())
            self.net = net.eval().requires_grad_(False)
        except Exception as error:  # a dozen kinds: no such id, no network, damaged, no network that is known
            raise ConfigError(
                f"{config.weights!r} cannot be loaded as an image encoder ({type(error).__name__}); "
                "give a folder or an id of the hub such as facebook/dinov2-small",
                "identity.weights",
            ) from None

    @torch.no_grad()
    def __call__(self, pictures: Tensor, chunk: int = 16) -> Tensor:
        return torch.cat([F.normalize(self._features(part).float(), dim=1) for part in pictures.split(chunk)])

    def _features(self, pictures: Tensor) -> Tensor:
        """(V, H, W, 3) in [0, 1] -> (V, D): of CLIP and its kin their image features, else the class token."""
        x = encoder_input(pictures, self.config.size, self.config.mean, self.config.std)
        if hasattr(self.net, "get_image_features"):
            answer = self.net.get_image_features(pixel_values=x)
            return answer if isinstance(answer, Tensor) else answer.pooler_output
        return self.net(pixel_values=x).last_hidden_state[:, 0]


def encoder_input(pictures: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Brings square pictures (V, H, W, 3) in [0, 1] to what an image encoder takes: (V, 3, size, size), bicubic with
    antialiasing, colours less ``mean`` over ``std``."""
    x = pictures.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, [size] * 2, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    middle, spread = (torch.tensor(value)[:, None, None] for value in (mean, std))
    return (x - middle) / spread


# --- figures -----------------------------------------------------------------------------------------------------


def similarity(ours: Tensor, theirs: Tensor) -> float:
    """Averages the cosine of all pairs of the vectors (V, D) and (W, D), in [-1, 1]: DINO or CLIP-I of one subject."""
    return float((ours @ theirs.T).mean())


@dataclass(frozen=True)
class ROC:
    """How well a figure tells "same" from "different". ``area`` in [0, 1]: the share of pairs in order, ties half;
    ``threshold``: where most answers are right, ``hits`` of the same and ``alarms`` of the others from there on."""

    area: float
    threshold: float
    hits: float
    alarms: float


def roc(same: NDArray[np.floating], different: NDArray[np.floating]) -> ROC:
    """Rates the figures of pairs that are the same and of pairs that are not. Raises ValueError if one is empty."""
    if not len(same) or not len(different):
        raise ValueError("a ROC needs figures of both kinds")
    low = np.sort(different)
    below, up_to = (np.searchsorted(low, same, side) for side in ("left", "right"))
    every = np.unique(np.concatenate([same, different]))
    hits = 1 - np.searchsorted(np.sort(same), every) / len(same)
    alarms = 1 - np.searchsorted(low, every) / len(low)
    best = int((hits - alarms).argmax())
    area = float((below + up_to).mean() / 2 / len(low))
    return ROC(area, float(every[best]), float(hits[best]), float(alarms[best]))


def pairs(vectors: Tensor, subject: NDArray[np.integer], kind: NDArray[np.integer]) -> tuple[Any, Any]:
    """Collects the cosines of all pairs of pictures (V, D) of one subject, and of different ones of the same kind."""
    cosine = (vectors @ vectors.T).numpy()
    once = np.triu(np.ones_like(cosine, bool), 1)
    same = subject[:, None] == subject
    return cosine[once & same], cosine[once & ~same & (kind[:, None] == kind)]
