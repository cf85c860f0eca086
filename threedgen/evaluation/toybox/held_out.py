"""Chooses what the evaluations ask for: held-out combinations of the toybox, always the same for the same seed, and of
them the things with one clear front."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache

from threedgen.config import ConfigError
from threedgen.data.toybox.grammar import COLOURS, NOUNS, Spec, caption, held_out, parse_prompt
from threedgen.data.toybox.primitives import Asset
from threedgen.data.toybox.world import Toybox, build
from threedgen.run.seeding import numpy_generator


@dataclass(frozen=True)
class Case:
    """A held-out combination: noun, colour and part with its colour. ``index``: of the held-out toybox."""

    index: int
    spec: Spec

    @property
    def caption(self) -> str:
        """What is asked for, in the plain wording."""
        return caption(self.spec)

    def truth(self, seed: int, number: int = 0) -> Asset:
        """Builds a fresh asset of the same caption, which no training ever saw."""
        return build(self.spec, numpy_generator(seed, self.index, f"truth {number}"), index=self.index)


def held_out_cases(count: int, seed: int, spread: bool = False, nouns: Collection[str] | None = None) -> list[Case]:
    """Draws ``count`` different combinations; with ``spread`` each noun that has any comes
    once before one comes again; ``nouns``: only of these. Raises ConfigError for more than there are."""
    rooms = {word: count for word, count in held_out_rooms().items() if nouns is None or word in nouns}
    most = len(COLOURS) * (len(rooms) * min(rooms.values(), default=0) if spread else sum(rooms.values())) // 2
    if count > most:
        raise ConfigError(f"the toybox has not so many held-out captions: ask for at most {most} (got {count})")
    box, index = Toybox(seed, "held-out"), 0
    cases: list[Case] = []
    taken: set[Spec] = set()
    turns = dict.fromkeys(rooms, 0)
    while len(cases) < count:
        spec, _ = box.spec(index)
        allowed = spec.noun in rooms and (not spread or turns[spec.noun] <= len(cases) // len(rooms))
        if spec not in taken and allowed:
            taken.add(spec)
            turns[spec.noun] += 1
            cases.append(Case(index, spec))
        index += 1
    return cases


@cache
def held_out_rooms() -> dict[str, int]:
    """Counts how many pairs of colour and part of each noun are held out, for the nouns that have any."""
    rooms = {
        word: sum(held_out(Spec(word, colour, "", part)) for colour in COLOURS for part in noun.parts + noun.wears)
        for word, noun in NOUNS.items()
    }
    return {word: count for word, count in rooms.items() if count}


FAMILIES = ("animals", "people", "vehicles")
UNCLEAR = ("rocket",)
"""Of these families, what looks alike from every side."""


def clear_nouns() -> tuple[str, ...]:
    """Lists nouns with a face or a bow, of which some combinations are held out of training. Furniture has a front
    too, but two front halves of a bed are a bed."""
    held = held_out_rooms()
    return tuple(
        word
        for word, noun in NOUNS.items()
        if noun.front and noun.family in FAMILIES and word not in UNCLEAR and word in held
    )


def toybox_prompts(count: int, seed: int) -> list[str]:
    """Lists held-out captions of things with one clear front, every noun in turn. Raises ConfigError."""
    return [case.caption for case in held_out_cases(count, seed, spread=True, nouns=clear_nouns())]


def without_front(prompts: Sequence[str]) -> dict[str, str]:
    """Maps prompts whose noun is known to look alike from every side to that noun. Of other nouns nothing is known."""
    nouns = {prompt: spec.noun for prompt in prompts if (spec := parse_prompt(prompt))}
    return {prompt: noun for prompt, noun in nouns.items() if not NOUNS[noun].front}
