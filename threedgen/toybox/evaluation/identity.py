"""Identity network, which recognises a subject (an unusual toybox object) from any side among others of the same noun.

The network maps images to unit vectors. The cosine of two vectors is the similarity of the two objects. The task
"train-identity" writes RUN/identity/toybox-identity.safetensors (weights) and toybox-identity.json (options of the
network, and how well it recognises new subjects: figures of its ROC curve).
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.evaluation.metrics.figures import Floats, Json
from threedgen.guidance.matte import convolution
from threedgen.run.dtypes import autocast_bf16
from threedgen.toybox.data.subjects import make_subject, subject_nouns
from threedgen.toybox.world.toybox import render_orbit
from threedgen.train.task import run_task

from .networks import Residual, pooled, prepare, read_network, write_network
from .options import IDENTITY, TRAIN_IDENTITY, IdentityNetworkConfig, ToyboxIdentityConfig, TrainIdentityConfig
from .training import TEST_SEED, ClassifierSystem, train

ROC_IMAGES, ROC_KINDS = 5, 40
"""Number of images per subject, and number of kinds (groups of subjects with one noun), in the measured ROC."""
NOUNS_PER_STEP, SUBJECTS_PER_NOUN = 6, 4  # number of nouns per training step, and number of subjects per noun
RATE = {"0%": 1e-4, "5%": 2e-3, "40%": 2e-3, "100%": 1e-5}
TEMPERATURE = 0.1


class IdentityNet(nn.Module):
    """Convolutional network that maps images of objects (B, 3, S, S) in [0, 1] to unit vectors (B, D).

    After training, vectors of images of the same object are close. The network has four levels, each at half the
    resolution of the level before. ``options`` are the image size S, the channels of the levels and the length D of the
    vectors; None: the defaults of `IdentityNetworkConfig`.
    """

    def __init__(self, options: IdentityNetworkConfig | None = None) -> None:
        super().__init__()
        self.options = options or IdentityNetworkConfig()
        a, b, c, d = self.options.channels
        levels = [convolution(b, c, 2), Residual(c), convolution(c, d, 2), Residual(d)]
        self.levels = nn.Sequential(convolution(3, a, 2), convolution(a, b, 2), Residual(b), *levels)
        self.out = nn.Linear(2 * d, self.options.width)

    def forward(self, x: Tensor) -> Tensor:
        """Encode B images (B, 3, S, S) in [0, 1], S = ``options.image_size``, as unit vectors (B, D), float32."""
        return F.normalize(self.out(pooled(self.levels((x - 0.5) * 4))).float(), dim=1)

    def save(self, path: Path, about: Json | None = None) -> None:
        write_network(path, self, {"network": self.options.model_dump(mode="json"), **(about or {})})


class ToyboxIdentity:
    """Trained and frozen `IdentityNet`: maps images (V, S, S, 3) to unit vectors (V, D), similar for the same object.

    ``config`` names the weights, which a run of the config train-toybox-identity writes. The constructor raises
    ConfigError if the file is missing or damaged.
    """

    def __init__(self, config: ToyboxIdentityConfig) -> None:
        def make(card: Json) -> IdentityNet:
            return IdentityNet(IdentityNetworkConfig(**card["network"]))

        self.net, self.card = read_network(config.file(), make, "identity.weights", TRAIN_IDENTITY)

    @torch.no_grad()
    def __call__(self, images: Tensor, chunk: int = 64) -> Tensor:
        """Encode square images (V, S, S, 3) in [0, 1] of any size S as unit vectors (V, D), float32.

        ``chunk`` is the number of images per batch.
        """
        size = self.net.options.image_size
        return torch.cat([self.net(prepare(part, size)) for part in images.split(chunk)])


def similarity(ours: Tensor, theirs: Tensor) -> float:
    """Return the mean cosine similarity of each vector of ``ours`` (V, D) with each of ``theirs`` (W, D).

    All vectors must have length 1.
    """
    return float((ours @ theirs.T).mean())


def roc(same: Floats, different: Floats) -> dict[str, float]:
    """Compute the ROC of a classifier that calls two images the same object if their similarity reaches a threshold.

    Args:
        same: cosine similarities (N,) of pairs of images of the same object, N > 0.
        different: cosine similarities (M,) of pairs of images of different objects, M > 0.

    Returns:
        Dict with "area", the area under the ROC curve; "threshold", the similarity that maximises hits - alarms;
        "hits", the share of ``same`` at or above this threshold; "alarms", the share of ``different`` at or above it.
    """
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
    """Return the cosine similarities (N,) of image pairs of the same object, and (M,) of pairs of different objects.

    Different objects form pairs only if they are of the same kind (group of objects with one noun). ``vectors`` (V, D)
    are unit vectors of V images. ``subject`` (V,) has the index of the object in each image, ``kind`` (V,) the index of
    its kind.
    """
    cosine = (vectors @ vectors.T).numpy()
    once = np.triu(np.ones_like(cosine, bool), 1)
    same = subject[:, None] == subject
    return cosine[once & same], cosine[once & ~same & (kind[:, None] == kind)]


@torch.no_grad()
def measure_roc(net: IdentityNet, count: int, alike: int, seed: int) -> dict[str, float]:
    """Measure how well a network tells new subjects (unusual toybox objects) of a kind apart.

    A kind is a group of ``alike`` subjects with the same noun. There are ``count`` kinds. If ``count`` exceeds the
    number of nouns, several kinds share a noun. Each subject has 5 random views (ROC_IMAGES), and all pairs of images
    of the same kind are compared.

    Returns:
        Dict with "area", the area under the ROC curve; "threshold", the cosine similarity that separates the pairs
        best; and the shares of pairs with at least this similarity: "hits" of the same subject, "alarms" of different
        subjects.
    """
    rng, nouns = np.random.default_rng([seed, *b"measure"]), subject_nouns()
    vectors, subject, kind = [], [], []
    for k in range(count):
        for number in range(alike):
            asset = make_subject(seed, k * alike + number, nouns[k % len(nouns)].word)
            azimuth, elevation = rng.uniform(0, 2 * np.pi, ROC_IMAGES), np.deg2rad(rng.uniform(0, 30, ROC_IMAGES))
            rgb = render_orbit(asset, azimuth, elevation, net.options.image_size).rgb
            vectors.append(net(torch.from_numpy(rgb).permute(0, 3, 1, 2)))
            subject += [k * alike + number] * ROC_IMAGES
            kind += [k] * ROC_IMAGES
    return roc(*pairs(torch.cat(vectors), np.array(subject), np.array(kind)))


def contrastive(vectors: Tensor, temperature: float) -> tuple[Tensor, float]:
    """Compute a contrastive loss of unit vectors (2 N, D). Vectors 2 k and 2 k + 1 show the same object (partners).

    With the partner p(i) of vector e_i, the loss is - mean_i log( exp(e_i e_p(i) / T) / sum_{j != i} exp(e_i e_j / T) )
    (Khosla et al. 2020), where T is ``temperature``. Return the loss (scalar), and the share of vectors whose nearest
    other vector is their partner.
    """
    logits = vectors @ vectors.T / temperature
    logits = logits.masked_fill(torch.eye(len(vectors), dtype=torch.bool, device=vectors.device), -torch.inf)
    partner = torch.arange(len(vectors), device=vectors.device) ^ 1
    return F.cross_entropy(logits, partner), float((logits.argmax(1) == partner).float().mean())


class IdentitySystem(ClassifierSystem):
    """LightningModule that trains an `IdentityNet` with a contrastive loss: views of one object get similar vectors.

    A batch has 2 views of each of 24 objects: 4 objects (`SUBJECTS_PER_NOUN`) of each of 6 nouns (`NOUNS_PER_STEP`).
    """

    stage, shown, result = "identity", ("right",), f"identity/{IDENTITY}.safetensors"
    net: IdentityNet

    def __init__(self, config: TrainIdentityConfig) -> None:
        super().__init__(config, IdentityNet(config.network), RATE)

    def batch(self, step: int) -> Tensor:
        """Render the images of a training step, (48, 3, S, S) in [0, 1]. Images 2 k and 2 k + 1 show the same object.

        The batch has 6 nouns (`NOUNS_PER_STEP`), 4 objects (`SUBJECTS_PER_NOUN`) of each noun and 2 images of each
        object.
        """
        rng, nouns = self.numpy_rng(step, "subjects"), subject_nouns()
        chosen = rng.permutation(len(nouns))[:NOUNS_PER_STEP]
        seed, images = int(rng.integers(2**31)), []
        for k in chosen:
            for number in range(SUBJECTS_PER_NOUN):
                azimuth, elevation = rng.uniform(0, 2 * np.pi, 2), np.deg2rad(rng.uniform(0, 30, 2))
                asset = make_subject(seed, number, nouns[int(k)].word)
                images.append(render_orbit(asset, azimuth, elevation, self.net.options.image_size).rgb)
        return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        x = self.augmented(self.batch(step), step)
        with autocast_bf16(self.device):
            vectors = self.net(x)
        loss, right = contrastive(vectors, TEMPERATURE)
        return loss, {"right": right}

    def finish(self, path: Path, about: Json) -> tuple[Json, str]:
        net = self.net.cpu()
        figures = measure_roc(net, ROC_KINDS, SUBJECTS_PER_NOUN, self.seed + TEST_SEED)
        net.save(path, {"roc": figures, **about})
        return {"roc": figures}, f"area under the ROC {figures['area']:.3f}, subjects of one kind"


run = partial(run_task, partial(train, IdentitySystem), result=IdentitySystem.result, files=(IdentitySystem.result,))
