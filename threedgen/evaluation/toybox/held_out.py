"""Held-out captions of the toybox, the same for the same seed, and those of objects with one clear front."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from threedgen.config import ConfigError
from threedgen.data.toybox.grammar import COLOURS, NOUNS, Spec, caption, held_out, parse_prompt
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.world import Toybox, build
from threedgen.run.seeding import numpy_generator

if TYPE_CHECKING:
    from threedgen.data.coloured_mesh import ColouredMesh


@dataclass(frozen=True)
class Case:
    """Held-out combination of noun, colour and part. ``index``: its number in the held-out toybox."""

    index: int
    spec: Spec

    @property
    def caption(self) -> str:
        """The plain caption."""
        return caption(self.spec)

    def truth(self, seed: int, number: int = 0) -> Asset:
        """Build object ``number`` of this caption; no training uses it."""
        return build(self.spec, numpy_generator(seed, self.index, f"truth {number}"), index=self.index)


def held_out_cases(count: int, seed: int, spread: bool = False, nouns: Collection[str] | None = None) -> list[Case]:
    """Sample ``count`` different combinations.

    Args:
        spread: use each noun once before one is repeated.
        nouns: only combinations of these.

    Raises:
        ConfigError: if there are too few combinations.
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
    """Return the number of held-out pairs of colour and part for each noun that has any."""
    pairs = {
        word: sum(held_out(Spec(word, colour, "", part)) for colour in COLOURS for part in noun.parts + noun.wears)
        for word, noun in NOUNS.items()
    }
    return {word: count for word, count in pairs.items() if count}


CLEAR_FAMILIES = ("animals", "people", "vehicles")
"""Furniture has a front too, but two front halves of a bed are a bed."""
ROUND_NOUNS = ("rocket",)
"""Nouns of these families that look the same from every side."""


def clear_nouns() -> tuple[str, ...]:
    """Return the nouns with a clear front and held-out combinations."""
    return tuple(
        word
        for word, noun in NOUNS.items()
        if noun.front and noun.family in CLEAR_FAMILIES and word not in ROUND_NOUNS and word in held_out_pairs()
    )


class FrontObjects:
    """Toybox objects with one clear front, as `threedgen.evaluation.janus.plan.FrontObjects`."""

    def prompts(self, count: int, seed: int) -> list[str]:
        """Return held-out captions that use every noun in turn. Raises ConfigError."""
        return [case.caption for case in held_out_cases(count, seed, spread=True, nouns=clear_nouns())]

    def without_front(self, prompts: Sequence[str]) -> dict[str, str]:
        """Map the prompts whose noun has no front to that noun; nothing is known of nouns beyond the toybox."""
        nouns = {prompt: spec.noun for prompt in prompts if (spec := parse_prompt(prompt))}
        return {prompt: noun for prompt, noun in nouns.items() if not NOUNS[noun].front}

    def meshes(self, seed: int, first: int, count: int) -> Iterator[tuple[str, ColouredMesh]]:
        """Yield captions and meshes of different objects, every noun in turn."""
        from threedgen.data.coloured_mesh import toybox_mesh  # torch

        nouns = clear_nouns()
        cases = held_out_cases(len(nouns), seed, spread=True, nouns=nouns)
        for k in range(count):
            case, number = cases[k % len(cases)], first + k // len(cases)
            yield case.caption, toybox_mesh(case.truth(seed, number))
