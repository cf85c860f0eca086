"""The toybox as a data set: sample ``index`` of a split, always the same for the same seed, never stored.

box = Toybox(seed=0, split="train")
asset = box.asset(17)                                   # what it is, its caption and its solids
assets, rgb, c2w, azimuth = box.batch([17], size=128)   # four pictures at 90 degrees, with the cameras
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from threedgen.geometry.poses import orbit_array

from . import nouns  # noqa: F401  (registers the recipes)
from .builder import Builder, Tempered
from .grammar import ACCESSORIES, NOUNS, SIZES, WORDINGS, Spec, caption, colour_value, draw_colour, draw_spec, held_out
from .primitives import Asset
from .raycast import Picture, render
from .styles import STYLES, Style

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class View:
    """How the toybox is photographed: degrees; ``relative_distance`` x 1 / tan(fov / 2) is the distance."""

    fov: tuple[float, float] = (35.0, 45.0)
    elevation: tuple[float, float] = (0.0, 30.0)
    relative_distance: tuple[float, float] = (0.90, 1.00)
    grey: tuple[float, float] = (0.40, 0.60)


TYPICAL_VIEW = View(fov=(40.0, 40.0), relative_distance=(0.95, 0.95), grey=(0.5, 0.5))


class Toybox:
    """Endless captioned assets.  ``split="train"`` names no held-out combination, "held-out" nothing else.

    ``luck``: the share of what the caption leaves open, but for colours, that is drawn; with 0 a caption is always the
    same shape, seen from the same distance on the same grey.
    """

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        view: View | None = None,
        luck: float = 1.0,
        style: Style = "plain",
    ) -> None:
        self.seed, self.split, self.luck, self.style = seed, split, luck, style
        self.view = view or (View() if luck else TYPICAL_VIEW)

    def describe(self) -> str:
        """What decides the objects and their pictures, in a line."""
        luck = "" if self.luck == 1 else f"luck {self.luck:g}, "
        style = "" if self.style == "plain" else f"{self.style}, "
        return f"{luck}{style}seed {self.seed}, {self.split}, {self.view}"

    def rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index, purpose])

    def spec(self, index: int) -> tuple[Spec, int]:
        """What sample ``index`` is, and which wording its caption has."""
        rng = self.rng(index, 0)
        while True:
            spec = draw_spec(rng)
            if held_out(spec) == (self.split == "held-out"):
                return spec, int(rng.integers(WORDINGS))

    def asset(self, index: int) -> Asset:
        spec, wording = self.spec(index)
        return STYLES[self.style](build(spec, self.rng(index, 1), caption(spec, wording), index, self.luck))

    def cameras(self, index: int, n_view: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Cameras of sample ``index``: c2w (n, 4, 4), fov (n,), azimuth (n,) radians in [0, 2 pi), background grey."""
        rng, v = self.rng(index, 2), self.view
        fov = np.deg2rad(rng.uniform(*v.fov))
        elevation = np.deg2rad(rng.uniform(*v.elevation))
        distance = rng.uniform(*v.relative_distance) / np.tan(fov / 2)
        azimuth = (rng.uniform(0, 2 * np.pi) + 2 * np.pi / n_view * np.arange(n_view)) % (2 * np.pi)
        c2w = orbit_array(elevation, azimuth, distance)
        return c2w, np.full(n_view, fov, np.float32), azimuth.astype(np.float32), float(rng.uniform(*v.grey))

    def batch(
        self, indices: Sequence[int], size: int, n_view: int = 4, jumbles: float = 0.0
    ) -> tuple[list[Asset], np.ndarray, np.ndarray, np.ndarray]:
        """Samples ``indices``: assets, rgb (N * n, H, W, 3), c2w (N * n, 4, 4), azimuth (N * n,), views fastest.

        A share ``jumbles`` of the samples is a heap of random solids instead, for what must not depend on nouns.
        """
        assets = [jumble(r, i) if (r := self.rng(i, 3)).random() < jumbles else self.asset(i) for i in indices]
        cams = [self.cameras(i, n_view) for i in indices]
        c2w, fov, azimuth = (np.concatenate([c[k] for c in cams]) for k in range(3))
        grey = np.repeat([c[3] for c in cams], n_view)
        picture = render(assets, np.repeat(np.arange(len(assets)), n_view), c2w, fov, size, grey)
        return assets, picture.rgb, c2w, azimuth


def build(spec: Spec, rng: np.random.Generator, text: str | None = None, index: int = -1, luck: float = 1.0) -> Asset:
    """An asset of a spec; what the spec leaves open (colours, proportions) is drawn from ``rng``, with less ``luck``
    than 1 nearer to the middle, but for words for colours."""
    entry, drawn = NOUNS[spec.noun], rng if luck == 1 else Tempered(rng, luck)
    main = colour_value(spec.colour or draw_colour(rng), drawn)
    bound = {word: colour_value(colour or draw_colour(rng), drawn) for word, colour in spec.details}
    builder = Builder(drawn, main, bound)
    entry.recipe(builder)
    for word in bound:
        if word in ACCESSORIES and word in entry.wears:
            ACCESSORIES[word](builder, bound[word])
    radius, stretch = SIZES[spec.size]
    radius *= drawn.uniform(0.85, 1.0) if spec.size == "" else drawn.uniform(0.95, 1.0)
    wobble = np.exp(np.clip(drawn.normal(0, 0.05, 3), -0.1, 0.1))
    solids = builder.finish(radius, list(np.asarray(stretch) * wobble))
    text = caption(spec) if text is None else text
    return Asset(solids, text, family=entry.family, front=entry.front, index=index, **vars(spec))


def jumble(rng: np.random.Generator, index: int = -1) -> Asset:
    """A heap of 4 to 24 random solids in random colours, without a name."""
    builder = Builder(rng, (0.5, 0.5, 0.5))
    for _ in range(int(rng.integers(4, 25))):
        colour = colour_value(draw_colour(rng), rng)
        size = np.exp(rng.uniform(np.log(0.05), np.log(0.5), 3))
        kind, param = int(rng.integers(6)), float(rng.uniform(0.1, 0.5))
        builder.add(kind, rng.normal(0, 0.4, 3), size, colour, rotate=rng.uniform(0, 360, 3), param=param)
    return Asset(builder.finish(rng.uniform(0.6, 1.0)), index=index)


def photograph(
    asset: Asset, azimuths: Sequence[float], size: int, elevation: float = 15.0, truth: bool = False
) -> Picture:
    """``portraits`` with ``azimuths`` and ``elevation`` in degrees."""
    return portraits(asset, np.deg2rad(np.asarray(azimuths, float)), np.deg2rad(elevation), size, truth)


def portraits(
    asset: Asset,
    azimuth: np.ndarray,
    elevation: ArrayLike,
    size: int,
    truth: bool = False,
    fov: float = np.deg2rad(40.0),
    relative_distance: float = 0.95,
) -> Picture:
    """Plain pictures of one asset from ``azimuth`` (V,) and ``elevation`` (radians, ``fov`` too), on grey 0.5."""
    c2w = orbit_array(elevation, azimuth, relative_distance / np.tan(fov / 2))
    return render([asset], np.zeros(len(azimuth), np.int64), c2w, np.full(len(azimuth), fov), size, truth=truth)
