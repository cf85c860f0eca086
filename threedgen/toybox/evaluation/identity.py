"""Identity networks: they map images (V, H, W, 3) in [0, 1] to unit vectors (V, D). The cosine of two vectors is the
similarity of the subjects in the images.

For toybox subjects, this module has a small network that is trained to recognise a subject from any side among other
subjects of the same noun. For photos, `features.HubIdentity` uses an image encoder of the Hugging Face hub, as in the
DINO and CLIP-I scores of DreamBooth (arXiv 2208.12242, section 4.1).
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.evaluation.metrics.figures import Floats, Json
from threedgen.guidance.matte import convolution
from threedgen.toybox.data import subjects

from .options import TRAIN_IDENTITY, IdentityNetworkConfig, ToyboxIdentityConfig
from .probe import Residual, pooled, prepare, read_network, write_network

ROC_IMAGES = 5
"""Number of images of each subject in `measure_roc`."""


class IdentityNet(nn.Module):
    """Convolutional identity network. It has four levels, each at half the resolution of the level before."""

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
        """Encode images (B, 3, S, S) in [0, 1] as unit vectors (B, D), float32."""
        return F.normalize(self.out(pooled(self.levels((x - 0.5) * 4))).float(), dim=1)

    def save(self, path: Path, about: Json | None = None) -> None:
        """Write the weights to a .safetensors file, and the network options and ``about`` to a .json file beside it."""
        write_network(path, self, {"network": self.options.model_dump(mode="json"), **(about or {})})


class ToyboxIdentity:
    """Frozen `IdentityNet` of a train-toybox-identity run. Raises ConfigError if its file is damaged."""

    def __init__(self, config: ToyboxIdentityConfig) -> None:
        def make(card: Json) -> IdentityNet:
            return IdentityNet(IdentityNetworkConfig(**card["network"]))

        self.net, self.card = read_network(config.file(), make, "identity.weights", TRAIN_IDENTITY)

    @torch.no_grad()
    def __call__(self, images: Tensor, chunk: int = 64) -> Tensor:
        """Encode square images (V, H, W, 3) in [0, 1], ``chunk`` at a time, as unit vectors (V, D)."""
        size = self.net.options.image_size
        return torch.cat([self.net(prepare(part, size)) for part in images.split(chunk)])


def similarity(ours: Tensor, theirs: Tensor) -> float:
    """Return the mean cosine over all pairs of a unit vector of ``ours`` (V, D) and one of ``theirs`` (W, D)."""
    return float((ours @ theirs.T).mean())


def roc(same: Floats, different: Floats) -> dict[str, float]:
    """Compute the ROC of similarities. Raises ValueError if an argument is empty.

    Args:
        same: similarities (N,) of pairs of images of the same subject.
        different: similarities (M,) of pairs of images of different subjects.

    Returns:
        area: area under the ROC curve; threshold: the similarity that maximises hits - alarms; hits, alarms: shares of
        the pairs in ``same`` and in ``different`` that are at or above the threshold.
    """
    if not len(same) or not len(different):
        raise ValueError(f"one kind of pairs is empty: same={len(same)}, different={len(different)}")
    low = np.sort(different)
    below, up_to = (np.searchsorted(low, same, side) for side in ("left", "right"))
    thresholds = np.unique(np.concatenate([same, different]))
    hits = 1 - np.searchsorted(np.sort(same), thresholds) / len(same)
    alarms = 1 - np.searchsorted(low, thresholds) / len(low)
    best = int((hits - alarms).argmax())
    area = float((below + up_to).mean() / 2 / len(low))
    found = {"threshold": thresholds[best], "hits": hits[best], "alarms": alarms[best]}
    return {"area": area} | {name: float(value) for name, value in found.items()}


def pairs(vectors: Tensor, subject: NDArray[np.integer], kind: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Return cosines of all pairs of images of the same subject, and of different subjects of the same kind.

    Args:
        vectors: unit vectors (V, D) of the images.
        subject, kind: index (V,) of the subject and of the kind (noun) of each image.
    """
    cosine = (vectors @ vectors.T).numpy()
    once = np.triu(np.ones_like(cosine, bool), 1)
    same = subject[:, None] == subject
    return cosine[once & same], cosine[once & ~same & (kind[:, None] == kind)]


@torch.no_grad()
def measure_roc(net: IdentityNet, count: int, alike: int, seed: int) -> dict[str, float]:
    """Measure the `roc` of a network on new subjects: ``alike`` subjects of each of ``count`` kinds (nouns)."""
    rng, nouns = np.random.default_rng([seed, *b"measure"]), subjects.subject_nouns()
    vectors, subject, kind = [], [], []
    for k in range(count):
        for number in range(alike):
            asset = subjects.make_subject(seed, k * alike + number, nouns[k % len(nouns)].word)
            azimuth, elevation = rng.uniform(0, 2 * np.pi, ROC_IMAGES), np.deg2rad(rng.uniform(0, 30, ROC_IMAGES))
            rgb = subjects.render_views(asset, azimuth, elevation, net.options.image_size)
            vectors.append(net(torch.from_numpy(rgb).permute(0, 3, 1, 2)))
            subject += [k * alike + number] * ROC_IMAGES
            kind += [k] * ROC_IMAGES
    return roc(*pairs(torch.cat(vectors), np.array(subject), np.array(kind)))


def contrastive(vectors: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Return the contrastive loss of unit vectors (2 N, D), and the share of vectors nearest to their partner.

    Vectors 2 k and 2 k + 1 are partners: they belong to the same subject. With the partner p(i) of vector e_i, the loss
    is - mean_i log( exp(e_i e_p(i) / T) / sum_{j != i} exp(e_i e_j / T) ) (Khosla et al. 2020, "Supervised contrastive
    learning").
    """
    logits = vectors @ vectors.T / temperature
    logits = logits.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(logits, partner), float((logits.argmax(1) == partner).float().mean())
