"""Vocabulary and captions of the toybox: colours, sizes, nouns, parts, accessories and caption wordings.

Each noun and each accessory has a recipe (a function that adds solids to a Builder), registered under its word. A
caption has one noun, at most one size and one main colour, and up to two parts or accessories, with or without a colour
("wearing a red hat").
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .builder import Builder, RandomSource

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
"""Dict from colour word to its mean sRGB value, in [0, 1]. The colours of objects vary around it."""

SIZES: dict[str, tuple[float, tuple[float, float, float]]] = {
    "": (1.0, (1, 1, 1)),
    "small": (0.62, (1, 1, 1)),
    "large": (1.0, (1, 1, 1)),
    "tall": (1.0, (1, 1, 1.4)),
    "wide": (1.0, (1, 1.4, 1)),
}
"""Dict from size word to (radius factor, stretch factors along x, y and z). The key "" stands for captions without a
size word, whose radius factor is random, from 0.85 to 1."""

Recipe = Callable[[Builder], None]


@dataclass(frozen=True)
class Noun:
    """Object class of the toybox, such as "dog".

    Attributes:
        word: the noun itself.
        family: group of nouns, such as "animals".
        height: usual height of the real thing in metres, including ears of animals, pots of plants and headboards of
            beds.
        recipe: function that adds the solids of an object to a Builder.
        front: True if the object has a front, False if it looks the same from every side.
        parts: parts that a caption can name and colour, such as "wheels".
        wears: accessories that the object can have, such as "hat".
    """

    word: str
    family: str
    height: float
    recipe: Recipe
    front: bool
    parts: tuple[str, ...]
    wears: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """Specification of an object in words, from which its caption is written. An empty string means unspecified.

    Attributes:
        noun: object class, such as "dog".
        colour, size: words for the whole object, such as "red" and "small".
        part, second: first and second part or accessory that the caption names, such as "hat".
        part_colour, second_colour: colour words of ``part`` and ``second``.
    """

    noun: str
    colour: str = ""
    size: str = ""
    part: str = ""
    part_colour: str = ""
    second: str = ""
    second_colour: str = ""

    @property
    def details(self) -> tuple[tuple[str, str], ...]:
        """Pairs (word, colour) of the zero to two parts or accessories that the spec names."""
        both = (self.part, self.part_colour), (self.second, self.second_colour)
        return tuple((word, colour) for word, colour in both if word)


NOUNS: dict[str, Noun] = {}
ACCESSORIES: dict[str, Callable[[Builder, np.ndarray], None]] = {}
HEADWEAR = ("hat", "crown", "helmet", "headphones")


def noun(
    word: str, family: str, height: float, *,
    front: bool = True, parts: tuple[str, ...] = (), wears: tuple[str, ...] = (),
):  # fmt: skip
    """Return a decorator that registers a function as the recipe of a noun, such as ``@noun("dog", "animals", 0.5)``.

    The function ``f(builder)`` adds the solids of an object to a `Builder`.

    Args:
        word: the noun itself.
        family: group of nouns, such as "animals".
        height: usual height of the real thing in metres.
        front: True if the object has a front, False if it looks the same from every side.
        parts: parts that a caption can name and colour, such as "wheels".
        wears: accessories that the object can have, such as "hat".

    Raises:
        ValueError: the noun is not one or two words of the letters a to z, so that prompts could not name it.
    """
    if not re.fullmatch("[a-z]+( [a-z]+)?", word):
        raise ValueError(f"noun should be one or two words of the letters a to z: word={word!r}. Use another one.")

    def register(recipe: Recipe) -> Recipe:
        NOUNS[word] = Noun(word, family, height, recipe, front, parts, wears)
        return recipe

    return register


def accessory(word: str):
    """Return a decorator that registers a function as the recipe of the accessory ``word``.

    The function ``f(builder, colour)`` adds the solids of the accessory, of the sRGB colour (3,), to the `Builder` of
    the object that wears it. It places them at the builder's anchors, which are named places such as "head_top".
    """

    def register(recipe: Callable[[Builder, np.ndarray], None]):
        ACCESSORIES[word] = recipe
        return recipe

    return register


def colour_value(name: str, rng: RandomSource, spread: float = 0.035) -> np.ndarray:
    """Sample an sRGB colour (3,), in [0.02, 1], near the mean value of the colour word ``name``.

    The mean colour is multiplied by exp(x), then y (3,) is added, and the sum is clipped. The random numbers x and y
    are normal with mean 0 and the standard deviations 1.5 ``spread`` (x) and ``spread`` (y).
    """
    value = np.asarray(COLOURS[name]) * np.exp(rng.normal(0, 1.5 * spread)) + rng.normal(0, spread, 3)
    return np.clip(value, 0.02, 1.0)


def sample_colour(rng: np.random.Generator) -> str:
    return list(COLOURS)[int(rng.integers(len(COLOURS)))]


def sample_size(rng: np.random.Generator) -> str:
    """Sample a size word with the probability 0.25, else return ""."""
    return list(SIZES)[1 + int(rng.integers(len(SIZES) - 1))] if rng.random() < 0.25 else ""


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


NO_ARTICLE = {"feet", "hair", "icing", "cheese", "salad"}


def detail_phrase(word: str, colour: str) -> str:
    """Return a noun phrase for the part or accessory ``word``: "a red hat" or, if ``colour`` is "", "a hat".

    Words that end with "s" and those in `NO_ARTICLE`, such as "hair", have no article.
    """
    words = f"{colour} {word}".strip()
    return words if word.endswith("s") or word in NO_ARTICLE else f"{article(words)} {words}"


def caption(spec: Spec, wording: int = 0) -> str:
    """Return a caption for a specification.

    ``wording``, from 0 to 5 (``WORDINGS`` - 1), selects the sentence pattern. Pattern 0 is the plain one, as in "a
    small dog wearing a hat"; another is "a toy of a small dog wearing a hat".
    """
    adjectives = " ".join(w for w in (spec.size, spec.colour) if w)
    core = f"{adjectives} {spec.noun}".strip()
    plain = f"{article(core)} {core}"
    verbs = ("wearing" if word in ACCESSORIES else "with" for word, _ in spec.details)
    tail = " and ".join(f"{verb} {detail_phrase(*detail)}" for verb, detail in zip(verbs, spec.details, strict=True))
    full = f"{plain} {tail}".strip()
    forms = [full, full, core + (f", {tail}" if tail else ""), f"a toy of {full}", f"a 3d model of {full}"]
    if adjectives and not tail:
        forms.append(f"{article(spec.noun)} {spec.noun} that is {adjectives.replace(' ', ' and ')}")
    elif adjectives:
        forms.append(f"{article(spec.noun)} {spec.noun}, {adjectives}, {tail}")
    return forms[wording % len(forms)]


WORDINGS = 6


def find_nouns(text: str) -> list[str]:
    """Return the nouns of the table `NOUNS` ("dog", "ice cream", ...) that occur in a text, in order, each once."""
    words = " ".join(re.findall(r"[a-z]+", text.lower()))
    longest_first = "|".join(sorted(NOUNS, key=len, reverse=True))  # no "table" in "coffee table" if both are nouns
    return list(dict.fromkeys(re.findall(rf"\b(?:{longest_first})\b", words)))


def parse_prompt(text: str) -> Spec | None:
    """Return a `Spec` with the first toybox noun (object class, such as "dog") of a text, and its colour.

    The colour is the last colour word before the noun, "" if there is none. The result is None if the text has no
    toybox noun.
    """
    if not (nouns := find_nouns(text)):
        return None
    words = re.findall(r"[a-z]+", text.lower())
    colours = [word for word in words[: words.index(nouns[0].split()[0])] if word in COLOURS]
    return Spec(nouns[0], colours[-1] if colours else "")


def held_out(spec: Spec) -> bool:
    """Return whether the object of a specification is held out of training.

    A hash selects about 1 in 16 of the combinations (noun, main colour, part or accessory). An object is held out if
    its specification names one of the selected combinations. Without a main colour, or without a part or accessory, it
    is not held out.
    """
    keys = [f"{spec.noun}/{spec.colour}/{word}".encode() for word, _ in spec.details if spec.colour]
    return any(hashlib.blake2b(key, digest_size=8).digest()[0] % 16 == 0 for key in keys)


def sample_spec(rng: np.random.Generator) -> Spec:
    """Sample a specification of an object in words: a noun, with a main colour in 90 % and a size in 25 % of the cases.

    In 60 % of the cases, it also names one part or accessory, always with a colour, if the noun has any. The
    specification may be one that is held out of training (`held_out`).
    """
    entry = NOUNS[list(NOUNS)[int(rng.integers(len(NOUNS)))]]
    colour = sample_colour(rng) if rng.random() < 0.9 else ""
    size = sample_size(rng)
    options = entry.parts + entry.wears
    part, part_colour = "", ""
    if options and rng.random() < 0.6:
        part = options[int(rng.integers(len(options)))]
        part_colour = sample_colour(rng)
    return Spec(entry.word, colour, size, part, part_colour)
