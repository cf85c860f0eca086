"""Toybox with open captions, which leave some colours unspecified, name up to two parts and have many wordings."""

from dataclasses import replace

import numpy as np

from threedgen.geometry.poses import orbit_array

from . import grammar
from .primitives import Asset
from .toybox import Split, Toybox, View, build

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
    of evenly spaced in azimuth. The share ``accessories``, in [0, 1], wears at least one accessory, such as a hat; of
    the others about one in eight does. The split ("train" or "held-out") of an object depends on its actual colours,
    even if its caption does not state them.
    """

    def __init__(
        self,
        seed: int = 0,
        split: Split = "train",
        view: View | None = None,
        variation: float = 1.0,
        scattered: float = 0.0,
        accessories: float = 0.0,
    ) -> None:
        super().__init__(seed, split, view, variation)
        self.scattered, self.accessories = scattered, accessories

    def describe(self) -> str:
        accessories = f"accessories {self.accessories:g}, " if self.accessories else ""
        return f"open captions, scattered {self.scattered:g}, {accessories}{super().describe()}"

    def asset(self, index: int) -> Asset:
        rng = self.rng(index, 6)
        spec = self.full_spec(rng)
        caption = phrase(drop_colours(spec, rng), rng)
        return build(spec, self.rng(index, 1), caption, index, self.variation)

    def full_spec(self, rng: np.random.Generator) -> grammar.Spec:
        with_accessory = self.accessories > 0 and rng.random() < self.accessories
        while True:
            spec = sample_detailed_spec(rng)
            allowed = grammar.held_out(spec) == (self.split == "held-out")
            if allowed and (not with_accessory or any(word in grammar.ACCESSORIES for word, _ in spec.details)):
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
    size = grammar.sample_size(rng)
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
