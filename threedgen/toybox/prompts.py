"""Prompts in the closed vocabulary of a toybox prior: checks, suggestions, usual heights of objects.

A toybox prior is an image generator that was trained on toybox captions and knows only their words. `read_prompt`
rewrites prompts in these words. The module does not import torch.
"""

import itertools
import re
from collections.abc import Collection

from threedgen.config import ConfigError
from threedgen.guidance.weights.tokens import Vocabulary
from threedgen.run.prompts import EXAMPLE_ROOM, Reading

from .reading import CONNECTORS, NOT_CONTENT, TOYBOX_WORDS, missing_object, read_prompt
from .synonyms import SYNONYM_OF, also_called, similar
from .world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES, article, find_nouns

PAGE = "docs/toybox-words.md"
EXAMPLES_OF_ALL, EXAMPLES_OF_NEAREST = 2, 6
"""Maximum number of nouns per family in an error that lists all families, and in one that lists similar ones."""
MAX_SUGGESTIONS = 10
ROOM_DETAILS = set("corner door floor picture rug walls window".split())
"""Known words that only captions of rooms have."""
DETAILS = {*ACCESSORIES, *(part for noun in NOUNS.values() for part in noun.parts), *ROOM_DETAILS}


class ToyboxPrompts:
    """Reader of user prompts for priors (diffusion models) that were trained on toybox captions and know few words.

    It implements the protocol `threedgen.guidance.weights.tokens.PromptReader`: `read` rewrites a prompt in known
    words, `similar` returns known words for an unknown one, `check` raises ConfigError if a prompt names no known
    object, and `notes` returns warnings. `vocabulary` has all words that the prior knows (`known`), and those that
    DreamBooth or textual inversion added (`added`); None: the prior takes any text. If the vocabulary is None or has no
    toybox noun, `check` accepts every prompt.
    """

    def __init__(self, vocabulary: Vocabulary | None) -> None:
        self.vocabulary = vocabulary
        known = vocabulary.known if vocabulary else frozenset()
        self.nouns = [noun for noun in NOUNS if known.issuperset(noun.split())]

    def read(self, prompt: str) -> Reading:
        v = self.vocabulary
        return Reading(prompt) if v is None else read_prompt(prompt, v.known, v.added)

    def similar(self, word: str) -> list[str]:
        return similar(word, self.vocabulary.known, self.families()) if self.vocabulary else []

    def categories(self) -> dict[str, list[str]]:
        """Return the words that the prior (diffusion model) knows, as a dict from category to words.

        Categories are the groups of nouns ("animals", "vehicles", ...), then "colours", "sizes" and "accessories".
        """
        known = self.vocabulary.known if self.vocabulary else frozenset()
        more: dict[str, Collection[str]] = {"colours": COLOURS, "sizes": SIZES, "accessories": ACCESSORIES}
        return self.families() | {name: [word for word in words if word in known] for name, words in more.items()}

    def families(self) -> dict[str, list[str]]:
        """Return a dict from family (group of nouns), such as "animals", to its nouns that the prior knows.

        The prior is the diffusion model for which the prompts are meant.
        """
        found = dict[str, list[str]]()
        for noun in self.nouns:
            found.setdefault(NOUNS[noun].family, []).append(noun)
        return found

    def check(self, prompt: str, of_object: bool = True) -> None:
        """Raise ConfigError if a prompt has neither a noun that the prior knows nor a word that tuning added.

        The prior is the diffusion model for which the prompt is meant; DreamBooth and textual inversion add words to
        its vocabulary. The message of the error suggests known nouns. If the prior knows no toybox noun, every prompt
        is accepted. With `of_object` False the prompt describes a scene, and also a known part of a room is accepted.
        """
        vocabulary = self.vocabulary
        if vocabulary is None or not self.nouns or self._nouns_in(prompt):
            return
        reading = self.read(prompt)
        if not of_object:
            if NOT_CONTENT.issuperset(re.findall(r"\w+", reading.text.lower())):
                problem = f'contains no noun that this prior knows. Describe a room, such as "{EXAMPLE_ROOM}"'
                raise ConfigError(f"{problem}. {PAGE} lists the furniture; prompt_check=off skips this check", "prompt")
            return
        if any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt, re.IGNORECASE) for word in vocabulary.added):
            return
        words = [word for word in vocabulary.split(prompt) if word not in " ".join(reading.negated).split()]
        near = {word: also_called(word, vocabulary.known) for word in words} | dict(vocabulary.unknown(prompt))
        nearest = {word: [n for n in names if n in self.nouns and n != word] for word, names in near.items()}
        nearest = {word: names[:1] for word, names in nearest.items() if names}
        lead, limit = "Use one of", EXAMPLES_OF_ALL
        if nearest:
            swaps = ", ".join(f"{word!r} by {names[0]}" for word, names in nearest.items())
            lead, limit = f"Replace {swaps}, or use another of", EXAMPLES_OF_NEAREST
        examples = []
        families = self.families()
        for family in dict.fromkeys(NOUNS[noun].family for noun in (sum(nearest.values(), []) or self.nouns)):
            members = families[family]
            examples.append(f"{family} ({', '.join(members[:limit])}{' ...' if len(members) > limit else ''})")
        owner = "" if nearest else self._with_owner(prompt)
        advice = owner or f"{lead} {', '.join(examples)}"
        problem = f"contains no noun that this prior knows. {advice}. {PAGE} lists all words"
        other = "configs with sd21 in their name, and other prior.weights, take any text, on a GPU"
        raise ConfigError(f"{problem}; {other}; prompt_check=off skips this check", "prompt", prompt)

    def _with_owner(self, prompt: str) -> str:
        # advice for a prompt that names only a part or an accessory, such as "a red hat"
        phrases = re.split(rf"\b(?:{'|'.join(CONNECTORS - {','})})\b|,", self.read(prompt).text.lower())
        for noun, phrase in itertools.product(self.nouns, phrases):
            if not {*NOUNS[noun].wears, *NOUNS[noun].parts}.isdisjoint(phrase.split()):
                return f"Name an object that has it, such as '{article(noun)} {noun} with {phrase.strip()}'"
        return ""

    def notes(self, prompt: str) -> list[str]:
        """Return warnings if a prompt names several objects or parts, or an object or parts that will be missing.

        Synonyms are first replaced by the words that the prior (diffusion model) knows. The list is empty if there is
        nothing to warn about, or if the prompt has no noun that the prior knows.
        """
        reading, v = self.read(prompt), self.vocabulary
        missing = missing_object(prompt, v.known, v.added) if v else ""
        prompt = reading.text
        known = [[noun for noun in nouns if noun in self.nouns] for nouns in _compounds(prompt)]
        compounds = [nouns for nouns in known if nouns]
        if not compounds:
            return []
        # "palm tree" is one object to the prior, "apple tree" mixes two families
        mixed = [nouns if len({NOUNS[noun].family for noun in nouns}) > 1 else nouns[-1:] for nouns in compounds]
        objects, main = sum(mixed, []), NOUNS[compounds[0][-1]]
        words = re.findall(r"[a-z]+", prompt.lower())
        of_object = DETAILS - ROOM_DETAILS if "room" in words else DETAILS
        details = [word for word in dict.fromkeys(words) if word in of_object]
        own = {word for noun in objects for word in (*NOUNS[noun].parts, *NOUNS[noun].wears)}
        warnings = []
        if missing:
            made = f"{article(main.word)} {main.word}"
            warnings.append(f"the object will be {made}, as this prior does not know {missing!r}")
        if len(objects) > 1:
            names = " and ".join(objects)
            warnings.append(f"the prompt names {names}; this prior knows single objects and may mix them")
        replaced = {re.sub(r"\W", "", word): name for word, name in reading.replaced.items()}  # joins "light house"
        plurals = [name for word, name in replaced.items() if word not in {*SYNONYM_OF, name.replace(" ", "")}]
        for noun in objects:
            named = re.findall(rf"(?<!\bthe )\b{noun}\b", prompt.lower())
            if len(named) > 1 or noun in plurals:
                warnings.append(f"the prompt names more than one {noun}; this prior makes a single one")
        if len(details) > 1:
            names = " and ".join(details)
            warnings.append(f"the prompt names {names}; this prior knows one part or accessory and may omit the others")
        if foreign := [word for word in details if word not in own]:
            warning = f"this prior knows no {main.word} with {' or '.join(foreign)}, and may leave this out"
            theirs = ", ".join((*main.parts, *main.wears))
            warnings.append(f"{warning}. It knows: {theirs}." if theirs else warning)
        return warnings

    def suggest(self, prompt: str) -> tuple[str, list[str]]:
        """Suggest nouns for an unfinished prompt. Return the start of a noun, or "", and a list of at most 10 nouns.

        "Known" nouns are those that the prior (diffusion model) knows. There are three cases:
        1. If the prompt contains a known noun or a synonym, return "" and an empty list: it needs no second noun.
        2. Else, if the prior does not know the last word of the prompt, and known nouns start with it, return it and
           these nouns.
        3. Else return "" and one known noun of each family (group of nouns, such as "animals").
        """
        if self._nouns_in(prompt):
            return "", []
        last = prompt.lower().rpartition(" ")[2]
        if self.vocabulary and last.isalpha() and last not in self.vocabulary.known:
            if found := [noun for noun in self.nouns if noun.startswith(last)]:
                return last, found[:MAX_SUGGESTIONS]
        return "", [members[0] for members in self.families().values()][:MAX_SUGGESTIONS]

    def usual_height(self, prompt: str) -> tuple[str, float] | None:
        """Return the first object of a prompt, with its article, and its usual height in metres: ("a dog", 0.5).

        Objects are nouns of the data set "toybox" and their synonyms; an "apple tree" is a tree. The height is
        that of the real thing; an exported game asset gets it by default. The prior (diffusion model) need not know the
        noun. The result is None if the prompt has no toybox noun.
        """
        found = _compounds(read_prompt(prompt, TOYBOX_WORDS).text)
        return next(((f"{article(noun)} {noun}", NOUNS[noun].height) for *_, noun in found), None)

    def _nouns_in(self, prompt: str) -> list[str]:
        return [noun for noun in find_nouns(self.read(prompt).text) if noun in self.nouns]


def _compounds(text: str) -> list[list[str]]:
    # nouns of a text; nouns beside each other, such as "apple tree", are one list: the last one names the object
    found = list[list[str]]()
    for noun in find_nouns(text):
        if found and re.search(rf"\b{found[-1][-1]} {noun}\b", text.lower()):
            found[-1].append(noun)
        else:
            found.append([noun])
    return found
