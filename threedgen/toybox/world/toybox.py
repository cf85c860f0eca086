"""Toybox data set of captioned objects. Sample ``index`` of a split depends only on the seed and the options.

A sample is generated when it is needed. World axes: z up, the front of an object at +x, azimuth 0 at the front.

box = Toybox(seed=0, split="train")
asset = box.asset(17)                                   # caption, noun and solids
assets, rgb, c2w, azimuth = box.batch([17], size=128)   # four images at steps of 90 degrees, with their cameras
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from threedgen.data.coloured_mesh import ColouredMesh, Part
from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.poses import orbit_array

from . import (
    grammar,
    nouns,  # noqa: F401  (registers the recipes)
)
from .builder import Builder, ReducedVariation
from .grammar import caption
from .primitives import BOX, DOME, TORUS, Asset, Primitive
from .raycast import RenderResult, render

Split = Literal["train", "held-out"]
Style = Literal["plain", "blocks"]


@dataclass(frozen=True)
class View:
    """Ranges (minimum, maximum) from which the camera and the background of an object are sampled uniformly.

    Attributes:
        fov: vertical field of view, degrees.
        elevation: elevation of the camera above the horizontal plane, degrees.
        relative_distance: distance of the camera from the origin, in units of 1 / tan(fov / 2).
        grey: grey value of the background, in [0, 1].
    """

    fov: tuple[float, float] = (35.0, 45.0)
    elevation: tuple[float, float] = (0.0, 30.0)
    relative_distance: tuple[float, float] = (0.90, 1.00)
    grey: tuple[float, float] = (0.40, 0.60)


TYPICAL_VIEW = View(fov=(40.0, 40.0), relative_distance=(0.95, 0.95), grey=(0.5, 0.5))


class Toybox:
    """Infinite data set of procedural 3D objects with captions, cameras and renders.

    A sample is addressed by its number ``index`` (0, 1, 2, ...). Captions of the split "held-out" contain combinations
    of noun, colour and part that the split "train" never has.

    Args:
        seed: seed of all samples.
        split: "train" or "held-out".
        view: ranges of the cameras; None: ``View()``, or ``TYPICAL_VIEW`` with fixed values if ``variation`` is 0.
        variation: factor on the random variation of shapes and shades, in [0, 1]. At 0, a caption with all colours
            determines the object.
        style: "plain", or "blocks" to replace each solid of an object by a box.
    """

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        view: View | None = None,
        variation: float = 1.0,
        style: Style = "plain",
    ) -> None:
        self.seed, self.split, self.variation, self.style = seed, split, variation, style
        self.view = view or (View() if variation else TYPICAL_VIEW)

    def describe(self) -> str:
        """Return one line of text with all settings that determine the objects and their images.

        Disk caches of the images compare it with the text they were made with, and are remade if it differs.
        """
        variation = "" if self.variation == 1 else f"luck {self.variation:g}, "
        style = "" if self.style == "plain" else f"{self.style}, "
        return f"{variation}{style}seed {self.seed}, {self.split}, {self.view}"

    def rng(self, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index, purpose])

    def spec(self, index: int) -> tuple[grammar.Spec, int]:
        """Return the specification (noun, colours, size, parts) of sample ``index``, and its sentence pattern.

        The pattern is a number from 0 to 5, which selects the wording of the caption (``wording`` of
        `grammar.caption`).
        """
        rng = self.rng(index, 0)
        while True:
            spec = grammar.sample_spec(rng)
            if grammar.held_out(spec) == (self.split == "held-out"):
                return spec, int(rng.integers(grammar.WORDINGS))

    def asset(self, index: int) -> Asset:
        spec, wording = self.spec(index)
        asset = build(spec, self.rng(index, 1), caption(spec, wording), index, self.variation)
        return blocks(asset) if self.style == "blocks" else asset

    def cameras(self, index: int, n_view: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Sample V = ``n_view`` cameras around sample ``index``, at evenly spaced azimuths from a random first one.

        Returns:
            c2w (V, 4, 4), camera-to-world, OpenGL axes; vertical fov (V,) and azimuth (V,) in radians, azimuth 0 at the
            front; and the grey value of the background, in [0, 1].
        """
        rng, v = self.rng(index, 2), self.view
        fov = np.deg2rad(rng.uniform(*v.fov))
        elevation = np.deg2rad(rng.uniform(*v.elevation))
        distance = rng.uniform(*v.relative_distance) / np.tan(fov / 2)
        azimuth = (rng.uniform(0, 2 * np.pi) + 2 * np.pi / n_view * np.arange(n_view)) % (2 * np.pi)
        c2w = orbit_array(elevation, azimuth, distance)
        return c2w, np.full(n_view, fov, np.float32), azimuth.astype(np.float32), float(rng.uniform(*v.grey))

    def batch(
        self, indices: Sequence[int], size: int, n_view: int = 4, solids_share: float = 0.0
    ) -> tuple[list[Asset], np.ndarray, np.ndarray, np.ndarray]:
        """Render V = ``n_view`` views of each of the N samples with the numbers ``indices``, from their `cameras`.

        Args:
            size: height and width of the images in pixels.
            solids_share: probability, in [0, 1], that a sample is replaced by a heap of random solids without
                caption. It is for models that should not depend on known nouns.

        Returns:
            N assets (captioned objects), rgb (N * V, size, size, 3) in [0, 1], c2w (N * V, 4, 4), camera-to-world,
            OpenGL axes, and azimuth (N * V,) in radians, 0 at the front. The V views of a sample are consecutive.
        """
        assets = [
            random_solids(r, i) if (r := self.rng(i, 3)).random() < solids_share else self.asset(i) for i in indices
        ]
        image, c2w, azimuth = self.render(assets, indices, size, n_view)
        return assets, image.rgb, c2w, azimuth

    def render(
        self, assets: Sequence[Asset], indices: Sequence[int], size: int, n_view: int, with_gbuffer: bool = False
    ) -> tuple[RenderResult, np.ndarray, np.ndarray]:
        """Render V = ``n_view`` views of each of the N ``assets`` with the cameras of the samples ``indices`` (N,).

        ``size`` is the height and width of the images in pixels. ``with_gbuffer`` adds mask, depth, normals and labels
        to the images. Return the images of the N * V views, c2w (N * V, 4, 4), camera-to-world, OpenGL axes, and
        azimuths (N * V,) in radians, 0 at the front. The V views of an asset are consecutive.
        """
        cams = [self.cameras(i, n_view) for i in indices]
        c2w, fov, azimuth = (np.concatenate([c[k] for c in cams]) for k in range(3))
        grey = np.repeat([c[3] for c in cams], n_view)
        index = np.repeat(np.arange(len(assets)), n_view)
        return render(assets, index, c2w, fov, size, grey, with_gbuffer=with_gbuffer), c2w, azimuth


def build(
    spec: grammar.Spec, rng: np.random.Generator, text: str | None = None, index: int = -1, variation: float = 1.0
) -> Asset:
    """Build the object of a specification, facing +x. Shape and unspecified colours are sampled from ``rng``.

    Args:
        text: caption of the object; None: the plain caption of ``spec``.
        index: number of the object in its data set, which is only stored in the result; -1: none.
        variation: factor on all random variation except the choice of unspecified colours, in [0, 1].
    """
    entry, source = grammar.NOUNS[spec.noun], rng if variation == 1 else ReducedVariation(rng, variation)
    main = grammar.colour_value(spec.colour or grammar.sample_colour(rng), source)
    named_parts = {
        word: grammar.colour_value(colour or grammar.sample_colour(rng), source) for word, colour in spec.details
    }
    builder = Builder(source, main, named_parts)
    entry.recipe(builder)
    for word in named_parts:
        if word in grammar.ACCESSORIES and word in entry.wears:
            grammar.ACCESSORIES[word](builder, named_parts[word])
    radius, stretch = grammar.SIZES[spec.size]
    radius *= source.uniform(0.85, 1.0) if spec.size == "" else source.uniform(0.95, 1.0)
    wobble = np.exp(np.clip(source.normal(0, 0.05, 3), -0.1, 0.1))
    solids = builder.finish(radius, list(np.asarray(stretch) * wobble))
    text = caption(spec) if text is None else text
    return Asset(solids, text, family=entry.family, front=entry.front, index=index, **vars(spec))


def random_solids(rng: np.random.Generator, index: int = -1) -> Asset:
    """Build an object of 4 to 24 random solids in random colours, without noun and caption.

    `index` is the number of the object, which is only stored in the asset; -1: none.
    """
    builder = Builder(rng, (0.5, 0.5, 0.5))
    for _ in range(int(rng.integers(4, 25))):
        colour = grammar.colour_value(grammar.sample_colour(rng), rng)
        size = np.exp(rng.uniform(np.log(0.05), np.log(0.5), 3))
        kind, param = int(rng.integers(6)), float(rng.uniform(0.1, 0.5))
        builder.add(kind, rng.normal(0, 0.4, 3), size, colour, rotate=rng.uniform(0, 360, 3), param=param)
    return Asset(builder.finish(rng.uniform(0.6, 1.0)), index=index)


def render_azimuths(
    asset: Asset, azimuths: Sequence[float], size: int, elevation: float = 15.0, with_gbuffer: bool = False
) -> RenderResult:
    """Render V views of an object from ``azimuths`` (V,) and one ``elevation``, both in degrees.

    Azimuth 0 shows the front. The background is grey (0.5). The cameras have a field of view of 40 degrees and the
    distance 0.95 / tan(20 degrees) from the origin. ``size`` is the side of an image in pixels. ``with_gbuffer`` adds
    mask, depth, normals and labels.
    """
    return render_orbit(asset, np.deg2rad(np.asarray(azimuths, float)), np.deg2rad(elevation), size, with_gbuffer)


def render_orbit(
    asset: Asset,
    azimuth: np.ndarray,
    elevation: ArrayLike,
    size: int,
    with_gbuffer: bool = False,
    fov: float = np.deg2rad(40.0),
    relative_distance: float = 0.95,
) -> RenderResult:
    """Render V views of an object on a grey background (0.5), with cameras that look at the origin.

    Args:
        azimuth: (V,), radians; 0 shows the front, pi / 2 the object's left side.
        elevation: scalar or (V,), radians; positive is above the object.
        size: height and width of the images in pixels.
        with_gbuffer: also compute mask, depth, normals and labels. Otherwise these arrays are empty.
        fov: vertical field of view, radians.
        relative_distance: distance of the cameras from the origin, in units of 1 / tan(fov / 2).
    """
    c2w = orbit_array(elevation, azimuth, relative_distance / np.tan(fov / 2))
    count = len(azimuth)
    return render([asset], np.zeros(count, np.int64), c2w, np.full(count, fov), size, with_gbuffer=with_gbuffer)


def toybox_mesh(asset: Asset, segments: int = 32) -> ColouredMesh:
    """Return the mesh of an object (z up, front +x), with one colour per solid.

    Circles around the local z axis of a solid have `segments` sides.
    """
    vertices, faces, colours, _ = asset.mesh(segments)
    return ColouredMesh((Part(vertices[faces], np.repeat(colours[:, None], 3, axis=1)),))


def blocks(asset: Asset) -> Asset:
    """Return a copy of an object in which each solid is replaced by its bounding box along its local axes.

    If the boxes exceed the ball of radius ``OBJECT_RADIUS`` (0.85) around the origin, the copy is shrunk to fit into
    it.
    """
    boxes = replace(asset, primitives=tuple(block(solid) for solid in asset.primitives))
    reach = max(float(np.linalg.norm(boxes.mesh()[0], axis=1).max()), 1e-6)
    return boxes.move_and_scale(0.0, min(1.0, OBJECT_RADIUS / reach))


def block(solid: Primitive) -> Primitive:
    """Return the bounding box of a solid along its local axes, as a solid of the kind BOX with its colour and label."""
    low, high = {DOME: (0.0, 1.0), TORUS: (-solid.param, solid.param)}.get(solid.kind, (-1.0, 1.0))
    middle, half = np.array([0, 0, (low + high) / 2]), np.array([1, 1, (high - low) / 2])
    return replace(solid, kind=BOX, matrix=solid.matrix * half, centre=solid.centre + solid.matrix @ middle)


DETAIL_COUNT = (0.40, 0.42, 0.18)  # probabilities that a caption names zero, one or two parts or accessories
COLOURS_OPEN, COLOURS_STATED = 0.3, 0.3
"""Share of captions that state no colour, and share that state all. The others state each with probability 0.5."""
EXCLUSIVE_GROUPS = (grammar.HEADWEAR, ("backpack", "cape"), ("scarf", "bow"))
"""Tuples of accessories that sit at the same place of the body. An object wears at most one of each tuple."""
WORN_IN = ("hat", "crown", "helmet", "headphones", "scarf", "glasses", "cape")
"""Accessories that some captions introduce by "in", as in "a dog in a hat"."""
SCATTERED_ELEVATION = (-30.0, 60.0)
"""Elevation range in degrees of cameras that are sampled independently of each other."""


class OpenToybox(Toybox):
    """Toybox with open captions, which leave some colours unspecified and name up to two parts or accessories.

    The share ``scattered`` of the objects, in [0, 1], has cameras that are sampled independently of each other instead
    of evenly spaced in azimuth. The split ("train" or "held-out") of an object depends on its actual colours, even if
    its caption does not state them.
    """

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        view: View | None = None,
        variation: float = 1.0,
        scattered: float = 0.0,
    ) -> None:
        super().__init__(seed, split, view, variation)
        self.scattered = scattered

    def describe(self) -> str:
        return f"open captions, scattered {self.scattered:g}, {super().describe()}"

    def asset(self, index: int) -> Asset:
        rng = self.rng(index, 6)
        spec = self.full_spec(rng)
        caption = phrase(drop_colours(spec, rng), rng)
        return build(spec, self.rng(index, 1), caption, index, self.variation)

    def full_spec(self, rng: np.random.Generator) -> grammar.Spec:
        spec = sample_detailed_spec(rng)
        while grammar.held_out(spec) != (self.split == "held-out"):
            spec = sample_detailed_spec(rng)
        return spec

    def caption(self, index: int, rng: np.random.Generator, stated: float = COLOURS_STATED) -> str:
        """Write another caption for sample ``index``, with random wording and a random subset of its colour words.

        With the probability ``stated`` it states all colours, with the probability 0.3 none, else each one with the
        probability 0.5.
        """
        return phrase(drop_colours(self.full_spec(self.rng(index, 6)), rng, stated), rng)

    def cameras(self, index: int, n_view: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        c2w, fov, azimuth, grey = super().cameras(index, n_view)
        rng = self.rng(index, 7)
        if rng.random() < self.scattered:
            azimuth = rng.uniform(0, 2 * np.pi, n_view).astype(np.float32)
            elevation = np.deg2rad(rng.uniform(*SCATTERED_ELEVATION, n_view))
            distance = rng.uniform(*self.view.relative_distance, n_view) / np.tan(fov / 2)
            c2w = orbit_array(elevation, azimuth, distance)
        return c2w, fov, azimuth, grey


def sample_detailed_spec(rng: np.random.Generator) -> grammar.Spec:
    """Sample a specification with all colours and zero to two parts or accessories. 25 % have a size word.

    The specification may be held out of training.
    """
    entry = grammar.NOUNS[list(grammar.NOUNS)[int(rng.integers(len(grammar.NOUNS)))]]
    size = list(grammar.SIZES)[1 + int(rng.integers(len(grammar.SIZES) - 1))] if rng.random() < 0.25 else ""
    words = list[str]()
    for _ in range(int(rng.choice(len(DETAIL_COUNT), p=DETAIL_COUNT))):
        free = [word for word in entry.parts + entry.wears if not any(conflicts(word, other) for other in words)]
        if free:
            words.append(free[int(rng.integers(len(free)))])
    details = [(word, grammar.sample_colour(rng)) for word in words] + [("", "")] * 2
    return grammar.Spec(entry.word, grammar.sample_colour(rng), size, *details[0], *details[1])


def conflicts(a: str, b: str) -> bool:
    """Return whether an object cannot have both of two parts or accessories ``a`` and ``b``, such as "hat" and "crown".

    The result is True if ``a`` and ``b`` are the same word, or if one tuple of `EXCLUSIVE_GROUPS`, which has
    accessories for the same place of the body, contains both words.
    """
    return a == b or any(a in group and b in group for group in EXCLUSIVE_GROUPS)


def drop_colours(spec: grammar.Spec, rng: np.random.Generator, stated: float = COLOURS_STATED) -> grammar.Spec:
    """Return a copy of a specification in which a random subset of the colour words is removed.

    All colour words stay with the probability ``stated``, and none with the probability 0.3 (`COLOURS_OPEN`). Otherwise
    each one stays with the probability 0.5.
    """
    mode = rng.random()
    if mode < stated:
        return spec
    keep = np.zeros(3, bool) if mode < stated + COLOURS_OPEN else rng.random(3) < 0.5
    names = ("colour", "part_colour", "second_colour")
    return replace(spec, **{name: getattr(spec, name) if kept else "" for name, kept in zip(names, keep, strict=True)})


def phrase(spec: grammar.Spec, rng: np.random.Generator) -> str:
    """Write a caption for a spec, such as "a small red dog wearing a hat", in a random wording."""
    adjectives = [word for word in (spec.size, spec.colour) if word]
    if rng.random() < 0.15:
        adjectives.reverse()
    clauses = _clauses(spec, rng)
    joint = ", " if clauses and rng.random() < 0.15 else " "
    if adjectives and rng.random() < 0.08:  # "a dog that is small and red with a hat"
        core, lead = f"{spec.noun} that is {' and '.join(adjectives)}", spec.noun
    else:
        core = lead = " ".join([*adjectives, spec.noun])
    body = f"{core}{joint}{clauses}".strip()
    u = rng.random()
    if u < 0.12:
        return body
    body = f"{'the' if u < 0.16 else grammar.article(lead)} {body}"
    prefix = ("", "a toy of ", "a 3d model of ", "of ")[int(rng.choice(4, p=(0.78, 0.09, 0.09, 0.04)))]
    return prefix + body


def _clauses(spec: grammar.Spec, rng: np.random.Generator) -> str:
    details = list(spec.details)
    if rng.random() < 0.5:
        details.reverse()
    clauses = list[str]()
    verb = ""
    for word, colour in details:
        choices = ["with"]
        if word in grammar.ACCESSORIES:
            choices = ["wearing", "wearing", "with", *(["in"] if word in WORN_IN else [])]
        new_verb = choices[int(rng.integers(len(choices)))]
        detail = grammar.detail_phrase(word, colour)
        if not clauses:
            clauses.append(f"{new_verb} {detail}")
        elif verb in choices and rng.random() < 0.7:
            clauses.append(f"and {detail}")
        else:
            clauses.append(f"{'and ' if rng.random() < 0.5 else ''}{new_verb} {detail}")
        verb = new_verb
    return " ".join(clauses)
