"""What the benchmark asks for: things with one clear front, and why a prompt is left out."""

from __future__ import annotations

from collections.abc import Sequence

from threedgen.data.toybox.grammar import NOUNS, mentioned
from threedgen.data.toybox.world import Toybox  # noqa: F401  (registers the nouns)
from threedgen.evaluation.toybox.held_out import held_out_cases, held_out_rooms

FAMILIES = ("animals", "people", "vehicles")
UNCLEAR = ("rocket",)
"""Of these families, what looks alike from every side."""


def clear_nouns() -> tuple[str, ...]:
    """Toybox nouns with a face or a bow, of which some combinations are held out of training. Furniture has a front
    too, but two front halves of a bed are a bed."""
    held = held_out_rooms()
    return tuple(
        word
        for word, noun in NOUNS.items()
        if noun.front and noun.family in FAMILIES and word not in UNCLEAR and word in held
    )


def toybox_prompts(count: int, seed: int) -> list[str]:
    """Held-out captions of things with one clear front, every noun once before one comes again. Raises ConfigError."""
    return [case.caption for case in held_out_cases(count, seed, spread=True, nouns=clear_nouns())]


def without_front(prompts: Sequence[str]) -> dict[str, str]:
    """Prompts whose noun is known to look alike from every side -> that noun. Of unknown nouns nothing is known."""
    nouns = {prompt: spec.noun for prompt in prompts if (spec := mentioned(prompt))}
    return {prompt: noun for prompt, noun in nouns.items() if not NOUNS[noun].front}
