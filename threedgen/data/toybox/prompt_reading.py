"""Conversion of prompts to the words that a toybox prior was trained on. Imports no torch.

Synonyms are replaced and unknown words are removed, because an unknown word would change the text embedding at random.
Words that have no meaning without the removed word are removed too: the rest of its clause, its article, or a prefix
such as "a photo of". Nothing is added.
"""

import re
import unicodedata
from collections.abc import Collection
from string import punctuation

from threedgen.run.prompts import Reading
from threedgen.run.similar_words import SYNONYM_OF

from . import nouns  # noqa: F401  (fills NOUNS)
from .grammar import COLOURS, NOUNS, SIZES, article

ARTICLES = {"a", "an", "the"}
CONNECTORS = {",", "and", "in", "of", "that", "wearing", "with"}
ADJECTIVES = {*COLOURS, *SIZES, "toy", "3d", "two"}
NOT_CONTENT = {*ARTICLES, *CONNECTORS, *ADJECTIVES, "is", "inside", "model"}
VERBS = {"in", "wearing", "with"}
NEGATIONS = {"without", "no", "not", "never", "minus"}


def read_prompt(prompt: str, known: Collection[str], added: Collection[str] = ()) -> Reading:
    """Convert a prompt to the words of a toybox prior, and list the words that were replaced, ignored or negated.

    Args:
        prompt: text of the user.
        known: words of the prior's vocabulary. If it has no toybox noun, only the unknown words are listed.
        added: words that personalisation added. They are kept unchanged.
    """
    reading = Reading(prompt)
    if NOUNS.keys().isdisjoint(known):  # another closed vocabulary
        reading.ignored = [*dict.fromkeys(word for word in re.findall(r"\w+", prompt.lower()) if word not in known)]
        return reading
    words = _known_words(prompt, known, [word.lower() for word in added], reading)
    if reading.replaced or reading.ignored or reading.negated:
        clauses = [[word for word in clause if word] for clause in _without_prefix(_clauses(words))]
        reading.text = _join(_with_content([clause for clause in clauses if clause], added))
    return reading


def _known_words(prompt: str, known: Collection[str], added: list[str], reading: Reading) -> list[str]:
    """Return the words and commas of a prompt, with "" in place of unknown words. Note the changes in `reading`."""
    text = unicodedata.normalize("NFKC", prompt).lower()
    names = "|".join(re.escape(word) for word in sorted(added, key=len, reverse=True))
    words, negating = list[str](), False
    for word in re.findall(rf"{names + '|' if names else ''}\w+|[^\w\s]", text):
        if word in punctuation and word not in known:
            continue
        name = known_form(word, known)
        negating = word in NEGATIONS or (negating and name not in CONNECTORS)
        if negating:
            reading.negated += [] if word in NEGATIONS | ARTICLES else [word]
        elif word in added or word in known:
            words.append(word)
        elif name is not None:
            reading.replaced[word] = name
            words.append(name)
        else:
            words.append("")
            reading.ignored += [] if word in reading.ignored else [word]
    return words


def known_form(word: str, known: Collection[str]) -> str | None:
    """Return the known word for a word: itself, its singular, or a synonym of one of them. None if there is none."""
    if word in known:
        return word
    forms = [word, *(word[: -len(end)] for end in ("s", "es") if word.endswith(end))]
    return next((name for form in forms for name in (form, SYNONYM_OF.get(form, "")) if name in known), None)


def _clauses(words: list[str]) -> list[list[str]]:
    """Split a list of words before each word in `CONNECTORS`."""
    clauses: list[list[str]] = [[]]
    for word in words:
        if word in CONNECTORS:
            clauses.append([])
        clauses[-1].append(word)
    return clauses


def _without_prefix(clauses: list[list[str]]) -> list[list[str]]:
    """Remove a first clause with unknown words and without a noun, if "of" follows, such as "a photo of"."""
    has_prefix = len(clauses) > 1 and clauses[1][0] == "of" and "" in clauses[0] and NOUNS.keys().isdisjoint(clauses[0])
    return [clauses[1][1:], *clauses[2:]] if has_prefix else clauses


def _with_content(clauses: list[list[str]], added: Collection[str]) -> list[list[str]]:
    """Remove clauses without content, such as "with a" before an unknown noun, that follow the object's noun."""
    subjects = {*NOUNS, *(word.lower() for word in added)}
    result, has_subject, opening = list[list[str]](), False, list[str]()
    for clause in clauses:
        joins = clause[:1] in (["and"], [","])
        if joins and opening:  # "with a SWORD and a flag" becomes "with a flag"
            clause = [*opening, *clause[1:]]
        describes = clause[:1] == ["that"] or (joins and result[-1:] != [] and result[-1][:1] == ["that"])
        opening = list[str]()
        if not has_subject or not NOT_CONTENT.issuperset(clause) or (describes and not ADJECTIVES.isdisjoint(clause)):
            result.append(clause)
        elif clause[:1] == ["that"] or clause[0] in VERBS:
            opening = [word for word in clause if word in ("that", "is", *VERBS)]
        has_subject = has_subject or not subjects.isdisjoint(clause)
    return result


def _join(clauses: list[list[str]]) -> str:
    """Join the words of clauses to a text. Articles and connectors without a following noun phrase are dropped. "a" and
    "an" are chosen by the following word."""
    words = [word for clause in clauses for word in clause]
    while words and words[-1] in ARTICLES | CONNECTORS | {"is"}:
        words.pop()
    text = list[str]()
    for word, following in zip(words, [*words[1:], " "], strict=False):
        if word in ARTICLES and following in ARTICLES | CONNECTORS:
            continue
        if word in CONNECTORS and following in CONNECTORS and not (word in ("and", ",") and following in VERBS):
            continue
        text.append(article(following) if word in ("a", "an") else word)
    return " ".join(text).replace(" ,", ",")
