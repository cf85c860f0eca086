"""Labels toybox pictures with what the probe should say of them: noun, colours, visible parts, viewing side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threedgen.data.toybox.grammar import COLOURS, NOUNS, SIZES, Spec
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.raycast import render
from threedgen.data.toybox.world import Toybox, View

OPEN = -1
"""Where there is no answer: the caption leaves a colour open, a part is hidden, two colours are as near."""
VISIBLE = 1e-3
"""A part counts as visible from this share of the picture on: 4 pixels of 64 x 64."""


@dataclass(frozen=True)
class Labels:
    """The answers there are. ``words``: every part and accessory of the toybox."""

    nouns: tuple[str, ...]
    colours: tuple[str, ...]
    words: tuple[str, ...]

    @classmethod
    def of_toybox(cls) -> Labels:
        words = {word for noun in NOUNS.values() for word in (*noun.parts, *noun.wears)}
        return cls(tuple(NOUNS), tuple(COLOURS), tuple(sorted(words)))

    @classmethod
    def from_plain(cls, tree: dict[str, Any]) -> Labels:
        """From JSON. Raises KeyError or TypeError for anything else."""
        return cls(*(tuple(str(word) for word in tree[name]) for name in ("nouns", "colours", "words")))

    def plain(self) -> dict[str, list[str]]:
        return {name: list(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Truth:
    """Answers for B pictures: noun (B,), colour (B,), seen (B, W) 1, 0 or OPEN, part_colour (B, W), azimuth (B,)
    radians, front (B,) bool: whether the object has a front at all."""

    noun: Tensor
    colour: Tensor
    seen: Tensor
    part_colour: Tensor
    azimuth: Tensor
    front: Tensor

    def __getitem__(self, views: slice) -> Truth:
        return Truth(*(value[views] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> Truth:
        return Truth(**{name: value.to(device) for name, value in vars(self).items()})

    @classmethod
    def cat(cls, parts: Sequence[Truth]) -> Truth:
        return cls(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def nearest_colour(value: np.ndarray) -> int:
    """Finds the index of the named colour next to ``value`` (3,) sRGB; OPEN if another is nearly as near."""
    distance = np.linalg.norm(np.array(list(COLOURS.values())) - value, axis=1)
    first, second = np.sort(distance)[:2]
    return int(distance.argmin()) if first <= 0.6 * second else OPEN


def word_colours(asset: Asset, labels: Labels) -> dict[str, int]:
    """Finds the part words that an asset shows, each with its colour.

    Parts in their default colours count too: so the probe has to look where a part is, and cannot take the
    one odd colour of a picture for the answer.
    """
    found = {asset.part: labels.colours.index(asset.part_colour)} if asset.part and asset.part_colour else {}
    for solid in asset.primitives:  # words of other nouns too: a dog's mouth, say
        if solid.label in labels.words and solid.label not in found:
            found[solid.label] = nearest_colour(solid.colour)
    return found


def picture_truth(assets: Sequence[Asset], label: np.ndarray, azimuth: np.ndarray, labels: Labels) -> Truth:
    """Labels the renders of ``assets``, views fastest: ``label`` (N n, H, W) of the ray caster, ``azimuth``."""
    count, n_view = len(label), len(label) // len(assets)
    seen = np.zeros((count, len(labels.words)), np.int64)
    painted = np.full((count, len(labels.words)), OPEN, np.int64)
    column = {word: k for k, word in enumerate(labels.words)}
    for n, asset in enumerate(assets):
        words = word_colours(asset, labels)
        for view in range(n * n_view, (n + 1) * n_view):
            pixels = np.bincount(label[view].ravel(), minlength=len(asset.labels) + 1)
            for word, colour in words.items():
                visible = pixels[asset.labels.index(word) + 1] / label[view].size if word in asset.labels else 0
                seen[view, column[word]] = 1 if visible >= VISIBLE else OPEN if visible > 0 else 0
                painted[view, column[word]] = colour if visible >= VISIBLE else OPEN
    nouns = [labels.nouns.index(asset.noun) for asset in assets]
    colours = [labels.colours.index(asset.colour) if asset.colour else OPEN for asset in assets]
    return Truth(
        noun=torch.tensor(nouns).repeat_interleave(n_view),
        colour=torch.tensor(colours).repeat_interleave(n_view),
        seen=torch.from_numpy(seen),
        part_colour=torch.from_numpy(painted),
        azimuth=torch.from_numpy(np.asarray(azimuth, np.float32)),
        front=torch.tensor([asset.front for asset in assets]).repeat_interleave(n_view),
    )


def labelled(
    box: Toybox, indices: Sequence[int], size: int, n_view: int, labels: Labels
) -> tuple[list[Asset], np.ndarray, Truth]:
    """Renders samples of a toybox: the assets, their pictures (N n, size, size, 3), each from its own cameras, and the
    truth of these."""
    assets = [box.asset(i) for i in indices]
    cameras = [box.cameras(i, n_view) for i in indices]
    c2w, fov, azimuth = (np.concatenate([camera[k] for camera in cameras]) for k in range(3))
    grey = np.repeat([camera[3] for camera in cameras], n_view)
    picture = render(assets, np.repeat(np.arange(len(assets)), n_view), c2w, fov, size, grey, with_gbuffer=True)
    return assets, picture.rgb, picture_truth(assets, picture.label, azimuth, labels)


WIDE = View(fov=(33.0, 47.0), elevation=(-5.0, 35.0), relative_distance=(0.88, 1.05), grey=(0.3, 0.7))
"""Cameras and backgrounds that the probe learns from: somewhat more than it will be shown."""


class ProbeToybox(Toybox):
    """Draws the toybox as the probe learns it: every combination, those that the prior never sees included, and far
    more accessories than captions mention, for they are rare and hard to see."""

    def __init__(self, seed: int = 0, view: View = WIDE) -> None:
        super().__init__(seed, "train", view)

    def spec(self, index: int) -> tuple[Spec, int]:
        """Draws a sample; half of them can wear something, and half of those do."""
        rng = self.rng(index, 10)
        nouns = list(NOUNS.values())
        if rng.random() < 0.5:
            nouns = [noun for noun in nouns if noun.wears]
        noun = nouns[int(rng.integers(len(nouns)))]
        colours, draw = list(COLOURS), rng.random()
        words = noun.wears if noun.wears and draw < 0.5 else noun.parts if draw < 0.85 else ()
        part = words[int(rng.integers(len(words)))] if words else ""
        main, painted = (colours[int(rng.integers(len(colours)))] for _ in range(2))
        size = list(SIZES)[1 + int(rng.integers(len(SIZES) - 1))] if rng.random() < 0.25 else ""
        return Spec(noun.word, main, size, part, painted if part else ""), 0
