"""Toybox objects with captions like the prompts of users. A caption names up to two parts or accessories.

Every object has definite colours, and its caption states all, some or none of them. Colours that it does not state are
random, and depend only on the seed and the index.
"""

from dataclasses import replace

import numpy as np

from threedgen.geometry.poses import orbit_array

from .grammar import ACCESSORIES, HEADWEAR, NOUNS, SIZES, Spec, article, detail_phrase, held_out, sample_colour
from .primitives import Asset
from .toybox import Split, Toybox, View, build

DETAIL_COUNT = (0.40, 0.42, 0.18)
"""Probabilities that a caption names zero, one or two parts or accessories."""
COLOURS_OPEN, COLOURS_STATED = 0.3, 0.3
"""Share of captions that state no colour, and share that state all. Other captions state each with probability 0.5."""
EXCLUSIVE_GROUPS = (HEADWEAR, ("backpack", "cape"), ("scarf", "bow"))
"""Groups of accessories that sit at the same place of the body. An object has at most one of each group."""
WORN_IN = ("hat", "crown", "helmet", "headphones", "scarf", "glasses", "cape")
"""Accessories that some captions introduce by "in", as in "a dog in a hat"."""
SCATTERED_ELEVATION = (-30.0, 60.0)
"""Elevation range of cameras that are sampled independently for each view, degrees."""


class OpenToybox(Toybox):
    """Toybox whose captions can leave colours unspecified.

    A share ``scattered`` of the objects, in [0, 1], has cameras that are sampled independently for each view. An object
    is held out because of its actual colours, even if its caption does not state them.
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
        spec = sample_detailed_spec(rng)
        while held_out(spec) != (self.split == "held-out"):
            spec = sample_detailed_spec(rng)
        caption = phrase(drop_colours(spec, rng), rng)
        return build(spec, self.rng(index, 1), caption, index, self.variation)

    def cameras(self, index: int, n_view: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        c2w, fov, azimuth, grey = super().cameras(index, n_view)
        rng = self.rng(index, 7)
        if rng.random() < self.scattered:
            azimuth = rng.uniform(0, 2 * np.pi, n_view).astype(np.float32)
            elevation = np.deg2rad(rng.uniform(*SCATTERED_ELEVATION, n_view))
            distance = rng.uniform(*self.view.relative_distance, n_view) / np.tan(fov / 2)
            c2w = orbit_array(elevation, azimuth, distance)
        return c2w, fov, azimuth, grey


def sample_detailed_spec(rng: np.random.Generator) -> Spec:
    """Sample an object description with up to two parts or accessories, in which all colours are stated."""
    entry = NOUNS[list(NOUNS)[int(rng.integers(len(NOUNS)))]]
    size = list(SIZES)[1 + int(rng.integers(len(SIZES) - 1))] if rng.random() < 0.25 else ""
    words = list[str]()
    for _ in range(int(rng.choice(len(DETAIL_COUNT), p=DETAIL_COUNT))):
        free = [word for word in entry.parts + entry.wears if not any(conflicts(word, other) for other in words)]
        if free:
            words.append(free[int(rng.integers(len(free)))])
    details = [(word, sample_colour(rng)) for word in words] + [("", "")] * 2
    return Spec(entry.word, sample_colour(rng), size, *details[0], *details[1])


def conflicts(a: str, b: str) -> bool:
    """Return whether two parts or accessories exclude each other: they are the same, or sit at the same place."""
    return a == b or any(a in group and b in group for group in EXCLUSIVE_GROUPS)


def drop_colours(spec: Spec, rng: np.random.Generator) -> Spec:
    """Return a copy of the spec in which random colours are removed: those that the caption will not state."""
    mode = rng.random()
    if mode < COLOURS_STATED:
        return spec
    keep = np.zeros(3, bool) if mode < COLOURS_STATED + COLOURS_OPEN else rng.random(3) < 0.5
    names = ("colour", "part_colour", "second_colour")
    return replace(spec, **{name: getattr(spec, name) if kept else "" for name, kept in zip(names, keep, strict=True)})


def phrase(spec: Spec, rng: np.random.Generator) -> str:
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
    body = f"{'the' if u < 0.16 else article(lead)} {body}"
    prefix = ("", "a toy of ", "a 3d model of ", "of ")[int(rng.choice(4, p=(0.78, 0.09, 0.09, 0.04)))]
    return prefix + body


def _clauses(spec: Spec, rng: np.random.Generator) -> str:
    """Write the clauses for the parts and accessories, such as "wearing a red hat and glasses", or "" without any."""
    details = list(spec.details)
    if rng.random() < 0.5:
        details.reverse()
    clauses = list[str]()
    verb = ""
    for word, colour in details:
        choices = ["with"]
        if word in ACCESSORIES:
            choices = ["wearing", "wearing", "with", *(["in"] if word in WORN_IN else [])]
        new_verb = choices[int(rng.integers(len(choices)))]
        detail = detail_phrase(word, colour)
        if not clauses:
            clauses.append(f"{new_verb} {detail}")
        elif verb in choices and rng.random() < 0.7:
            clauses.append(f"and {detail}")
        else:
            clauses.append(f"{'and ' if rng.random() < 0.5 else ''}{new_verb} {detail}")
        verb = new_verb
    return " ".join(clauses)
