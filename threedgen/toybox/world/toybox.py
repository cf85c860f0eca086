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
        asset = build(spec, self.rng(index, 1), grammar.caption(spec, wording), index, self.variation)
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
    text = grammar.caption(spec) if text is None else text
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


def render_azimuths(asset: Asset, azimuths: Sequence[float], size: int, with_gbuffer: bool = False) -> RenderResult:
    """Render V views of an object from ``azimuths`` (V,) in degrees, and the elevation 15 degrees.

    Azimuth 0 shows the front. The background is grey (0.5). The cameras have a field of view of 40 degrees and the
    distance 0.95 / tan(20 degrees) from the origin. ``size`` is the side of an image in pixels. ``with_gbuffer`` adds
    mask, depth, normals and labels.
    """
    return render_orbit(asset, np.deg2rad(np.asarray(azimuths, float)), np.deg2rad(15.0), size, with_gbuffer)


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
