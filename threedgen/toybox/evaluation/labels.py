"""Labels of toybox images for training and testing the probe: noun, colours, visible parts, azimuth of the camera."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from threedgen.evaluation.corruption import rough, two_fronted
from threedgen.evaluation.metrics.figures import Json
from threedgen.run.arrays import Array
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, sample_size
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.toybox import Toybox, View, toybox_mesh

UNKNOWN_LABEL = (
    -1
)  # value of labels that losses and metrics leave out, such as an ambiguous colour or a hardly visible part
MIN_VISIBLE = 1e-3  # minimum share of the pixels of an image that show a visible part: 4 pixels of 64 x 64


@dataclass(frozen=True)
class Labels:
    """Class names of the probe, which classifies toybox images. The index of a name is its class index.

    Attributes:
        nouns, colours: names of the object classes and of the colours.
        words: names of all parts and accessories.
    """

    nouns: tuple[str, ...]
    colours: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of_toybox(cls) -> "Labels":
        words = {word for noun in NOUNS.values() for word in (*noun.parts, *noun.wears)}
        return cls(tuple(NOUNS), tuple(COLOURS), tuple(sorted(words)))

    @classmethod
    def from_plain(cls, tree: Json) -> "Labels":
        return cls(*(tuple(str(word) for word in tree[name]) for name in ("nouns", "colours", "words")))

    def plain(self) -> dict[str, list[str]]:
        return {name: list(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Truth:
    """Ground-truth labels of B images, with W words for parts and accessories.

    `UNKNOWN_LABEL` (-1) marks an unknown label, which losses and metrics leave out.

    Attributes:
        noun, colour: class indices (B,); the colour may be `UNKNOWN_LABEL`.
        seen: (B, W), 1 for a visible part, 0 for an absent one, `UNKNOWN_LABEL` for one that is hardly visible.
        part_colour: (B, W), colour index of each visible part, else `UNKNOWN_LABEL`.
        azimuth: (B,), azimuth of the camera, radians, 0 at the front of the object.
        front: (B,), bool, whether losses and metrics use the azimuth. False if the object has no front, or if it has
            two and the camera is far from both.
    """

    noun: Tensor
    colour: Tensor
    seen: Tensor
    part_colour: Tensor
    azimuth: Tensor
    front: Tensor

    def __getitem__(self, views: slice) -> "Truth":
        return Truth(*(value[views] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> "Truth":
        return Truth(**{name: value.to(device) for name, value in vars(self).items()})

    @classmethod
    def cat(cls, parts: "Sequence[Truth]") -> "Truth":
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def nearest_colour(value: np.ndarray) -> int:
    """Return the index in COLOURS of the colour nearest to an sRGB value (3,) in [0, 1].

    If the second nearest colour is almost as near, the result is `UNKNOWN_LABEL` (-1).
    """
    distance = np.linalg.norm(np.array(list(COLOURS.values())) - value, axis=1)
    first, second = np.sort(distance)[:2]
    return int(distance.argmin()) if first <= 0.6 * second else UNKNOWN_LABEL


def word_colours(asset: Asset, labels: Labels) -> dict[str, int]:
    """Return a dict from each part or accessory of an object to the index of its colour in ``labels.colours``.

    The index is -1 if the colour is ambiguous, that is, almost equally near to two of the colours.

    The dict has all parts and accessories of the object whose names are in ``labels.words``, not only the one that the
    caption names. The others are needed to train the probe (image classifier): they mostly have their usual colours,
    and the named part has a random one. From named parts alone, the probe could learn to answer the most unusual colour
    of the image without looking at the part.
    """
    found = {asset.part: labels.colours.index(asset.part_colour)} if asset.part and asset.part_colour else {}
    for solid in asset.primitives:  # also words of other nouns, such as a dog's mouth
        if solid.label in labels.words and solid.label not in found:
            found[solid.label] = nearest_colour(solid.colour)
    return found


def image_truth(assets: Sequence[Asset], label: np.ndarray, azimuth: np.ndarray, labels: Labels) -> Truth:
    """Return the true noun, colours, visible parts and azimuth of each of N * V images: V adjacent views per asset.

    Args:
        label: (N * V, H, W), part of each pixel from the ray caster: k + 1 for asset.labels[k], 0 for the background.
        azimuth: (N * V,), azimuths of the cameras, radians, 0 at the front.
        labels: class names of the probe.
    """
    count, n_view = len(label), len(label) // len(assets)
    seen = np.zeros((count, len(labels.words)), np.int64)
    part_colour = np.full((count, len(labels.words)), UNKNOWN_LABEL, np.int64)
    column = {word: k for k, word in enumerate(labels.words)}
    for n, asset in enumerate(assets):
        words = word_colours(asset, labels)
        for view in range(n * n_view, (n + 1) * n_view):
            pixels = np.bincount(label[view].ravel(), minlength=len(asset.labels) + 1)
            for word, colour in words.items():
                visible = pixels[asset.labels.index(word) + 1] / label[view].size if word in asset.labels else 0
                seen[view, column[word]] = 1 if visible >= MIN_VISIBLE else UNKNOWN_LABEL if visible > 0 else 0
                part_colour[view, column[word]] = colour if visible >= MIN_VISIBLE else UNKNOWN_LABEL
    nouns = [labels.nouns.index(asset.noun) for asset in assets]
    colours = [labels.colours.index(asset.colour) if asset.colour else UNKNOWN_LABEL for asset in assets]
    return Truth(
        noun=torch.tensor(nouns).repeat_interleave(n_view),
        colour=torch.tensor(colours).repeat_interleave(n_view),
        seen=torch.from_numpy(seen),
        part_colour=torch.from_numpy(part_colour),
        azimuth=torch.from_numpy(np.asarray(azimuth, np.float32)),
        front=torch.tensor([asset.front for asset in assets]).repeat_interleave(n_view),
    )


def labelled(
    box: Toybox, indices: Sequence[int], size: int, n_view: int, labels: Labels
) -> tuple[list[Asset], np.ndarray, Truth]:
    """Render V = ``n_view`` views of each of the N objects ``indices`` of ``box``, with ground-truth labels.

    ``labels`` holds the class names of the probe, whose indices are the labels.

    Return the N objects, images (N * V, size, size, 3) in [0, 1], and the true noun, colours, visible parts and
    azimuth of each image. The V views of an object are consecutive. Their azimuths are evenly spaced, from a random
    first one.
    """
    assets = [box.asset(i) for i in indices]
    image, _, azimuth = box.render(assets, indices, size, n_view, with_gbuffer=True)
    return assets, image.rgb, image_truth(assets, image.label, azimuth, labels)


WIDE = View(fov=(33.0, 47.0), elevation=(-5.0, 35.0), relative_distance=(0.88, 1.05), grey=(0.3, 0.7))
"""Ranges of the probe's training cameras (degrees) and grey backgrounds, which are wider than in the evaluations."""


class ProbeToybox(Toybox):
    """Toybox (data set of objects) for the training of the probe, a classifier of toybox images.

    It includes combinations of noun, colour and part that are held out of the training of priors (image generators).
    Many of its objects have an accessory, because accessories are hard to detect. ``view`` has the ranges of cameras
    and grey backgrounds.
    """

    def __init__(self, seed: int = 0, view: View = WIDE) -> None:
        super().__init__(seed, "train", view)

    def spec(self, index: int) -> tuple[Spec, int]:
        """Return the specification of object ``index``, and 0, the number of the sentence pattern of its caption.

        With the probability 1/2 the noun is sampled from those that can wear accessories, else from all nouns. Half of
        the objects whose noun can wear accessories have one.
        """
        rng = self.rng(index, 10)
        nouns = list(NOUNS.values())
        if rng.random() < 0.5:
            nouns = [noun for noun in nouns if noun.wears]
        noun = nouns[int(rng.integers(len(nouns)))]
        colours, draw = list(COLOURS), rng.random()
        words = noun.wears if noun.wears and draw < 0.5 else noun.parts if draw < 0.85 else ()
        part = words[int(rng.integers(len(words)))] if words else ""
        colour, part_colour = (colours[int(rng.integers(len(colours)))] for _ in range(2))
        return Spec(noun.word, colour, sample_size(rng), part, part_colour if part else ""), 0


# --- corrupted samples ---------------------------------------------------------------------------------------------


MAX_STRENGTH = 2.0
SEGMENTS = 16  # number of segments of a round solid in the meshes of corrupted objects; low for speed
CLEAR_ANGLE = np.deg2rad(60)
"""Maximum angle (radians) from the nearer of two fronts at which a two-fronted object shows one clear side."""


def corrupt(
    box: Toybox,
    indices: Sequence[int],
    assets: Sequence[Asset],
    rgb: Array,
    truth: Truth,
    share: float,
    rng: np.random.Generator,
) -> None:
    """Replace the images of a random ``share`` of the objects by renders of noisy meshes, like those of bad results.

    The noise is in vertex positions and colours. The probe is then trained on such images too. About half of the chosen
    objects that have a front get a second front on the back.

    Args:
        indices: (N,), numbers of the objects in ``box``.
        assets: the N objects.
        rgb: images (N * V, size, size, 3) in [0, 1], V adjacent views of each object; changed in place.
        truth: labels of the images; changed in place for objects that get a second front.
        share: probability, in [0, 1], that an object is chosen.
    """
    n_view, size = len(rgb) // len(assets), rgb.shape[1]
    for k, (index, asset) in enumerate(zip(indices, assets, strict=True)):
        if rng.random() >= share:
            continue
        views, two = slice(k * n_view, (k + 1) * n_view), asset.front and rng.random() < 0.5
        mesh = toybox_mesh(asset, SEGMENTS)
        mesh = rough(two_fronted(mesh) if two else mesh, rng, rng.uniform(0, MAX_STRENGTH))
        c2w, fov, azimuth, grey = box.cameras(index, n_view)
        rgb[views] = mesh.render(c2w, float(fov[0]), size, grey, light=True)
        if two:
            truth.seen[views], truth.part_colour[views] = UNKNOWN_LABEL, UNKNOWN_LABEL
            relative, clear = nearer_front(azimuth)
            truth.azimuth[views], truth.front[views] = torch.from_numpy(relative), torch.from_numpy(clear)


def nearer_front(azimuth: Array) -> tuple[Array, Array]:
    """Return azimuths (V,) of cameras relative to the nearer front of a two-fronted object, and a mask (V,), bool.

    ``azimuth`` (V,) is in radians, and the fronts are at 0 and pi. The returned azimuths are in [0, 2 pi). The mask is
    True where the camera is at most 60 degrees (`CLEAR_ANGLE`) from the nearer front.
    """
    relative = np.where(np.cos(azimuth) < 0, azimuth + np.pi, azimuth) % (2 * np.pi)
    return relative.astype(np.float32), np.cos(relative) >= np.cos(CLEAR_ANGLE)
