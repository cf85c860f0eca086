"""The language of the toybox: colours, sizes, nouns, parts and accessories, and the wordings of a caption.

A noun or an accessory is a recipe (a function of a Builder), registered under its word.  A caption says at most one
size, one colour, one noun and one clause ("wearing a red hat", "with yellow wheels").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .builder import Builder, Luck

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.98, 0.50, 0.05),
    "yellow": (0.98, 0.88, 0.12),
    "green": (0.13, 0.62, 0.17),
    "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.15, 0.70),
    "pink": (1.00, 0.50, 0.72),
    "brown": (0.45, 0.26, 0.11),
    "black": (0.08, 0.08, 0.09),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.50, 0.51, 0.53),
    "turquoise": (0.15, 0.80, 0.78),
}
"""sRGB centres; samples scatter around them."""

SIZES: dict[str, tuple[float, tuple[float, float, float]]] = {
    "": (1.0, (1, 1, 1)),
    "small": (0.62, (1, 1, 1)),
    "large": (1.0, (1, 1, 1)),
    "tall": (1.0, (1, 1, 1.4)),
    "wide": (1.0, (1, 1.4, 1)),
}
"""word -> (radius factor, stretch).  Without a word the radius varies within 0.85 to 1, "large" fills the ball."""

Recipe = Callable[[Builder], None]


@dataclass(frozen=True)
class Noun:
    """A word, its recipe, and what may be said of it.  ``parts``: recolourable parts (see takes_article).
    ``wears``: accessories whose anchors the recipe sets."""

    word: str
    family: str
    recipe: Recipe
    front: bool
    parts: tuple[str, ...]
    wears: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """Content of a caption; "" is unspecified.  ``part`` and ``second``: parts or accessories of the noun."""

    noun: str
    colour: str = ""
    size: str = ""
    part: str = ""
    part_colour: str = ""
    second: str = ""
    second_colour: str = ""

    @property
    def details(self) -> tuple[tuple[str, str], ...]:
        """(word, colour) of each named part or accessory."""
        both = (self.part, self.part_colour), (self.second, self.second_colour)
        return tuple((word, colour) for word, colour in both if word)


NOUNS: dict[str, Noun] = {}
ACCESSORIES: dict[str, Callable[[Builder, np.ndarray], None]] = {}
HEADWEAR = ("hat", "crown", "helmet", "headphones")


def noun(word: str, family: str, *, front: bool = True, parts: tuple[str, ...] = (), wears: tuple[str, ...] = ()):
    """Register a recipe: ``@noun("dog", "animals", parts=("ears",), wears=("hat", "scarf"))``."""

    def register(recipe: Recipe) -> Recipe:
        if word in NOUNS:
            raise ValueError(f"the noun {word!r} is registered twice")
        NOUNS[word] = Noun(word, family, recipe, front, parts, wears)
        return recipe

    return register


def accessory(word: str):
    """Register an accessory recipe ``f(builder, colour)``; it reads the builder's anchors."""

    def register(recipe: Callable[[Builder, np.ndarray], None]):
        ACCESSORIES[word] = recipe
        return recipe

    return register


def colour_value(name: str, rng: Luck, spread: float = 0.035) -> np.ndarray:
    """One sample of a named colour: a brightness and a channel jitter around the centre, (3,) in [0, 1]."""
    value = np.asarray(COLOURS[name]) * np.exp(rng.normal(0, 1.5 * spread)) + rng.normal(0, spread, 3)
    return np.clip(value, 0.02, 1.0)


def draw_colour(rng: np.random.Generator) -> str:
    """The name of any colour."""
    return list(COLOURS)[int(rng.integers(len(COLOURS)))]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


NO_ARTICLE = {"feet", "hair", "icing", "cheese", "salad"}


def takes_article(word: str) -> bool:
    """Neither plurals ("wheels", "glasses", "feet") nor what cannot be counted ("hair") take one."""
    return not word.endswith("s") and word not in NO_ARTICLE


def detail_phrase(word: str, colour: str) -> str:
    """Noun phrase of a part or an accessory: "a red hat", "yellow wheels"."""
    words = f"{colour} {word}".strip()
    return f"{article(words)} {words}" if takes_article(word) else words


def clause(spec: Spec) -> str:
    """ "wearing a red hat", "with yellow wheels", both joined by "and", or ""."""
    phrases = [
        f"{'wearing' if word in ACCESSORIES else 'with'} {detail_phrase(word, colour)}" for word, colour in spec.details
    ]
    return " and ".join(phrases)


def caption(spec: Spec, wording: int = 0) -> str:
    """One of the wordings of a spec; 0 is the plain one: "a small blue dog wearing a red hat"."""
    adjectives = " ".join(w for w in (spec.size, spec.colour) if w)
    core = f"{adjectives} {spec.noun}".strip()
    plain = f"{article(core)} {core}"
    tail = clause(spec)
    full = f"{plain} {tail}".strip()
    forms = [full, full, core + (f", {tail}" if tail else ""), f"a toy of {full}", f"a 3d model of {full}"]
    if adjectives and not tail:
        forms.append(f"{article(spec.noun)} {spec.noun} that is {adjectives.replace(' ', ' and ')}")
    elif adjectives:
        forms.append(f"{article(spec.noun)} {spec.noun}, {adjectives}, {tail}")
    return forms[wording % len(forms)]


WORDINGS = 6


def named(text: str) -> list[str]:
    """The nouns of the toybox in a text, each once, in the order of the text; "ice cream" is one."""
    words = re.findall(r"[a-z]+", text.lower())
    pairs = [" ".join(words[k : k + length]) for k in range(len(words)) for length in (2, 1)]
    return [word for word in dict.fromkeys(pairs) if word in NOUNS]


def mentioned(text: str) -> Spec | None:
    """The first noun of the toybox in a text, and the last colour word before it; None if there is no such noun.

    For captions in the plain wording and whatever people type: "a white dog on a red chair" -> a white dog.
    """
    if not (nouns := named(text)):
        return None
    words = re.findall(r"[a-z]+", text.lower())
    colours = [word for word in words[: words.index(nouns[0].split()[0])] if word in COLOURS]
    return Spec(nouns[0], colours[-1] if colours else "")


def held_out(spec: Spec) -> bool:
    """Whether a combination (noun, colour, part) of the spec is kept out of training: a fixed sixteenth of them."""
    keys = [f"{spec.noun}/{spec.colour}/{word}".encode() for word, _ in spec.details if spec.colour]
    return any(hashlib.blake2b(key, digest_size=8).digest()[0] % 16 == 0 for key in keys)


def draw_spec(rng: np.random.Generator) -> Spec:
    """A random spec, before the held-out split: 90 % say a colour, 60 % a clause, 25 % a size."""
    entry = NOUNS[list(NOUNS)[int(rng.integers(len(NOUNS)))]]
    colour = draw_colour(rng) if rng.random() < 0.9 else ""
    size = list(SIZES)[1 + int(rng.integers(len(SIZES) - 1))] if rng.random() < 0.25 else ""
    options = entry.parts + entry.wears
    part, part_colour = "", ""
    if options and rng.random() < 0.6:
        part = options[int(rng.integers(len(options)))]
        part_colour = draw_colour(rng)
    return Spec(entry.word, colour, size, part, part_colour)
