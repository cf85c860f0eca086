"""Toybox objects that are held out of training, by combination of noun, colour and part: prompts, scenes and meshes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.data.coloured_mesh import ColouredMesh
from threedgen.evaluation.consistency.scenes import Scene
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.run.seeding import numpy_generator
from threedgen.toybox.world.grammar import COLOURS, NOUNS, Spec, caption, held_out, parse_prompt
from threedgen.toybox.world.primitives import Asset
from threedgen.toybox.world.raycast import RenderResult, render
from threedgen.toybox.world.toybox import Toybox, build, render_orbit, toybox_mesh

if TYPE_CHECKING:
    from threedgen.config.sections import OrbitCameraConfig

    from .options import ToyboxScenesConfig


@dataclass(frozen=True)
class Case:
    """Test prompt: the specification of an object (`spec`: noun, colour, part), which is usually held out of training.

    `caption` is the specification as a text. ``index`` is a random seed. Together with the seed of the evaluation, it
    determines the shape of the case's ground-truth objects (`build_truth`) and, if a prior is evaluated, the noise of
    its samples. `held_out_cases` takes the index of the `Toybox` sample from which the specification comes; other cases
    can have any number.
    """

    index: int
    spec: Spec

    @property
    def caption(self) -> str:
        return caption(self.spec)

    def build_truth(self, seed: int, number: int = 0) -> Asset:
        """Build a ground-truth object of this specification, with random shape and pose of its parts.

        No training uses these objects. ``seed``, ``index`` (attribute) and ``number`` together seed the variation.
        """
        return build(self.spec, numpy_generator(seed, self.index, f"truth {number}"), index=self.index)

    def render_truth(
        self, seed: int, count: int, turntable: OrbitCameraConfig, azimuth: np.ndarray, size: int
    ) -> list[RenderResult]:
        """Render ``count`` ground-truth objects of this case from a turntable's cameras, on grey, with normals.

        The objects are those of `build_truth` with ``seed`` and the numbers 0 to ``count`` - 1. ``azimuth`` (V,) has
        the azimuths of the cameras in radians, and ``size`` is the side of an image in pixels. Elevation, field of view
        and distance are those of ``turntable``. Return one result with V views per object.
        """
        elevation, fov = np.deg2rad([turntable.elevation, turntable.fov])
        camera = (azimuth, elevation, size, True, fov, turntable.distance * np.tan(fov / 2))
        return [render_orbit(self.build_truth(seed, number), *camera) for number in range(count)]


def held_out_cases(count: int, seed: int, spread: bool = False, nouns: Collection[str] | None = None) -> list[Case]:
    """Sample ``count`` different specifications (noun, colours, size, part) that are held out of training.

    Args:
        seed: seed of the toybox data set. The samples of its held-out split are taken in the order of their indices.
        spread: use each noun once before a noun is repeated.
        nouns: allowed nouns; None: all.

    Raises:
        ConfigError: ``count`` is more than half of the held-out specifications that the allowed nouns have. Beyond
            that, it would take long to find new ones at random. Specifications that differ only in size count once.
            With ``spread``, which uses all nouns equally often, each noun counts with the smallest number that one of
            them has. Nouns without any are never used.
    """
    pairs = {word: count for word, count in held_out_pairs().items() if nouns is None or word in nouns}
    most = len(COLOURS) * (len(pairs) * min(pairs.values(), default=0) if spread else sum(pairs.values())) // 2
    if count > most:
        raise ConfigError(f"The toybox has too few held-out captions: {count} requested. Use at most {most}.")
    box, index = Toybox(seed, "held-out"), 0
    cases: list[Case] = []
    used: set[Spec] = set()
    turns = dict.fromkeys(pairs, 0)
    while len(cases) < count:
        spec, _ = box.spec(index)
        allowed = spec.noun in pairs and (not spread or turns[spec.noun] <= len(cases) // len(pairs))
        if spec not in used and allowed:
            used.add(spec)
            turns[spec.noun] += 1
            cases.append(Case(index, spec))
        index += 1
    return cases


@cache
def held_out_pairs() -> dict[str, int]:
    """Return a dict from noun to the number of its pairs (main colour, part or accessory) held out of training.

    For example, no prior trains on a blue dog with a scarf. Nouns without such pairs are left out.
    """
    pairs = {
        word: sum(held_out(Spec(word, colour, "", part)) for colour in COLOURS for part in noun.parts + noun.wears)
        for word, noun in NOUNS.items()
    }
    return {word: count for word, count in pairs.items() if count}


CLEAR_FAMILIES = ("animals", "people", "vehicles")
"""Families of nouns with a clear front. Furniture is left out: a bed of two front halves still looks like a bed."""
ROUND_NOUNS = ("rocket",)  # nouns of `CLEAR_FAMILIES` that look the same from every side


def clear_nouns() -> tuple[str, ...]:
    """Return the toybox nouns that have a clear front and at least one combination that is held out of training.

    Animals, people and vehicles have a clear front, unless all their sides look the same. A combination is a noun with
    a main colour and a part or accessory.
    """
    return tuple(
        word
        for word, noun in NOUNS.items()
        if noun.front and noun.family in CLEAR_FAMILIES and word not in ROUND_NOUNS and word in held_out_pairs()
    )


class FrontObjects:
    """Toybox prompts and meshes of objects with a clear front, to measure the Janus problem (several fronts).

    Nouns with a clear front are animals, people and vehicles whose sides differ (`clear_nouns`). Implements the
    protocol `threedgen.evaluation.janus.options.FrontObjects`.
    """

    def prompts(self, count: int, seed: int) -> list[str]:
        """Return ``count`` captions that are held out of training, whose nouns have a clear front (`clear_nouns`).

        Each noun is used once before one is repeated. Raises ConfigError if ``count`` is too large (`held_out_cases`).
        """
        return [case.caption for case in held_out_cases(count, seed, spread=True, nouns=clear_nouns())]

    def without_front(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return the prompts whose toybox noun has no front, as a dict from prompt to noun.

        The Janus benchmark leaves these prompts out.
        """
        nouns = {prompt: spec.noun for prompt in prompts if (spec := parse_prompt(prompt))}
        return {prompt: noun for prompt, noun in nouns.items() if not NOUNS[noun].front}

    def meshes(self, seed: int, first: int, count: int, front: bool = True) -> Iterator[tuple[str, ColouredMesh]]:
        """Yield pairs (caption, mesh) of ``count`` objects. The nouns take turns, and each has a single caption.

        The nouns are those with a clear front (`clear_nouns`) or, if ``front`` is False, those without a front.
        ``seed`` selects the caption of a noun among captions that are held out of training. The objects of a noun are
        numbered ``first``, ``first`` + 1, ...; ``seed``, caption and number determine the shape. Meshes have z up and
        the front at +x.
        """
        nouns = clear_nouns() if front else tuple(word for word in held_out_pairs() if not NOUNS[word].front)
        cases = held_out_cases(len(nouns), seed, spread=True, nouns=nouns)
        for k in range(count):
            case, number = cases[k % len(cases)], first + k // len(cases)
            yield case.caption, toybox_mesh(case.build_truth(seed, number))


BACKGROUND = 0.5  # grey value of the background of toybox objects, equal to that of samples of the prior


def toybox_scenes(config: ToyboxScenesConfig, _sampler: object, seed: int) -> list[Scene]:
    """Return one scene per held-out caption, to compare views sampled from the caption with original views.

    A scene has a prompt (the caption), a ring of cameras around the origin, and original views from these cameras. They
    show a ground-truth object of the caption, which no training uses. ``_sampler`` is ignored here; it is an
    argument because scenes of other kinds come from the sampler.
    """
    fov, elevation = float(np.deg2rad(config.fov)), float(np.deg2rad(config.elevation))
    distance = config.relative_distance / float(np.tan(fov / 2))
    cameras = orbit(config.views, elevation, distance, fov, config.size, config.size)

    def original(case: Case, indices: Sequence[int]) -> Views:
        chosen = cameras.select(list(indices))
        asset, fovs = np.zeros(len(chosen), np.int64), np.full(len(chosen), fov)
        image = render([case.build_truth(seed)], asset, chosen.c2w.numpy(), fovs, config.size, BACKGROUND, 3)
        return Views(torch.from_numpy(image.rgb), chosen)

    numbers = tuple(range(len(cameras)))
    return [
        Scene(f"{k:03d}-{case.caption.replace(' ', '-')}", cameras, numbers, (), case.caption, partial(original, case))
        for k, case in enumerate(held_out_cases(config.count, seed, spread=True))
    ]
