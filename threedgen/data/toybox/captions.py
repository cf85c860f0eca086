"""Objects with captions as people type them: colours stated or left open, up to two parts or accessories.

The object always has definite colours; the caption mentions all, some or none of them.  What a caption leaves open
therefore varies over the whole range of the world, and the seed decides it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from threedgen.geometry.poses import orbit_array

from .grammar import ACCESSORIES, HEADWEAR, NOUNS, SIZES, Spec, article, detail_phrase, draw_colour, held_out
from .primitives import Asset
from .world import Split, Toybox, View, build

DETAIL_COUNT = (0.40, 0.42, 0.18)
"""Probabilities of naming none, one or two parts or accessories."""
COLOURS_OPEN, COLOURS_STATED = 0.3, 0.3
"""Shares of captions that state no colour and all colours; in the others each colour is stated with probability 0.5."""
SAME_PLACE = (HEADWEAR, ("backpack", "cape"), ("scarf", "bow"))
"""Accessories that sit in one place, so at most one of each group is worn."""
WORN_IN = ("hat", "crown", "helmet", "headphones", "scarf", "glasses", "cape")
"""Accessories of which people also say "in a ..."."""
SCATTERED_ELEVATION = (-30.0, 60.0)
"""Degrees; range of independent cameras."""


class OpenToybox(Toybox):
    """The toybox with open captions; a share ``scattered`` of the objects is seen by independent cameras.

    The other objects have cameras in a ring, as in ``Toybox``.  The held-out split is decided by the colours that an
    object has, not by those that its caption states.
    """

    def __init__(
        self, seed: int = 0, split: Split = "train", view: View | None = None, luck: float = 1.0, scattered: float = 0.0
    ) -> None:
        super().__init__(seed, split, view, luck)
        self.scattered = scattered

    def describe(self) -> str:
        return f"open captions, scattered {self.scattered:g}, {super().describe()}"

    def asset(self, index: int) -> Asset:
        rng = self.rng(index, 6)
        spec = random_spec(rng)
        while held_out(spec) != (self.split == "held-out"):
            spec = random_spec(rng)
        caption = written(mentioned_part(spec, rng), rng)
        return build(spec, self.rng(index, 1), caption, index, self.luck)

    def cameras(self, index: int, n_view: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        c2w, fov, azimuth, grey = super().cameras(index, n_view)
        rng = self.rng(index, 7)
        if rng.random() < self.scattered:
            azimuth = rng.uniform(0, 2 * np.pi, n_view).astype(np.float32)
            elevation = np.deg2rad(rng.uniform(*SCATTERED_ELEVATION, n_view))
            distance = rng.uniform(*self.view.relative_distance, n_view) / np.tan(fov / 2)
            c2w = orbit_array(elevation, azimuth, distance)
        return c2w, fov, azimuth, grey


def random_spec(rng: np.random.Generator) -> Spec:
    """A random object with all its colours."""
    entry = NOUNS[list(NOUNS)[int(rng.integers(len(NOUNS)))]]
    size = list(SIZES)[1 + int(rng.integers(len(SIZES) - 1))] if rng.random() < 0.25 else ""
    words = list[str]()
    for _ in range(int(rng.choice(len(DETAIL_COUNT), p=DETAIL_COUNT))):
        free = [word for word in entry.parts + entry.wears if not any(conflict(word, other) for other in words)]
        if free:
            words.append(free[int(rng.integers(len(free)))])
    details = [(word, draw_colour(rng)) for word in words] + [("", "")] * 2
    return Spec(entry.word, draw_colour(rng), size, *details[0], *details[1])


def conflict(a: str, b: str) -> bool:
    """Whether two parts or accessories of an object are the same or sit in the same place."""
    return a == b or any(a in group and b in group for group in SAME_PLACE)


def mentioned_part(spec: Spec, rng: np.random.Generator) -> Spec:
    """The spec without the colours that its caption leaves open."""
    mode = rng.random()
    if mode < COLOURS_STATED:
        return spec
    keep = np.zeros(3, bool) if mode < COLOURS_STATED + COLOURS_OPEN else rng.random(3) < 0.5
    names = ("colour", "part_colour", "second_colour")
    return replace(spec, **{name: getattr(spec, name) if kept else "" for name, kept in zip(names, keep, strict=True)})


def written(spec: Spec, rng: np.random.Generator) -> str:
    """One of many wordings of a spec."""
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
    draw = rng.random()
    if draw < 0.12:
        return body
    body = f"{'the' if draw < 0.16 else article(lead)} {body}"
    prefix = ("", "a toy of ", "a 3d model of ", "of ")[int(rng.choice(4, p=(0.78, 0.09, 0.09, 0.04)))]
    return prefix + body


def _clauses(spec: Spec, rng: np.random.Generator) -> str:
    """Wording of the parts and accessories, such as "wearing a red hat and glasses"; "" if none is named."""
    details = list(spec.details)
    if rng.random() < 0.5:
        details.reverse()
    told = list[str]()
    verb = ""
    for word, colour in details:
        choices = ["with"]
        if word in ACCESSORIES:
            choices = ["wearing", "wearing", "with", *(["in"] if word in WORN_IN else [])]
        own = choices[int(rng.integers(len(choices)))]
        phrase = detail_phrase(word, colour)
        if not told:
            told.append(f"{own} {phrase}")
        elif verb in choices and rng.random() < 0.7:
            told.append(f"and {phrase}")
        else:
            told.append(f"{'and ' if rng.random() < 0.5 else ''}{own} {phrase}")
        verb = own
    return " ".join(told)
