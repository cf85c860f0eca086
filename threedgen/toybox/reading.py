"""Rewriting of prompts in the closed vocabulary of a toybox prior, an image generator trained on toybox captions.

`_read_words` replaces synonyms by known words. It marks unknown and negated words, which would change the text
embedding at random. `_phrases` groups the words into phrases, such as "wearing a red hat". `_kept` leaves out phrases
that describe something unknown, or another object. `_written` joins the rest as in captions. No module imports torch.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from string import punctuation

from threedgen.run.prompts import PREPOSITIONS, Reading

from .synonyms import is_object, known_form
from .world import nouns  # noqa: F401  (fills NOUNS)
from .world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES, article, find_nouns

ARTICLES = {"a", "an", "the"}
ADJECTIVES = {*COLOURS, *SIZES, "toy", "3d", "two"} - {""}
JOINTS = {",", "and"}
WORN = {"with", "wearing", "in"}
"""Words between an object and its parts and accessories."""
BY_SUBJECT = {"wearing", "wears", "holding", "carrying"}
"""Words in front of accessories of the main object, not of an object that was named later."""
LINKS = {*ARTICLES, *PREPOSITIONS, *WORN, "of"}
"""Words between an object and the next one."""
CONNECTORS = {*JOINTS, *WORN, "of", "inside", "that", "is"}
NOT_CONTENT = {*ARTICLES, *CONNECTORS, *ADJECTIVES, "model"}
NEUTRAL = {"colour", "color", "coloured", "colored"}
"""Unknown words that are no objects: the colour beside them describes another word."""
LACKING = set("without no minus neither nor lacking w/o nothing".split())
INABILITY = set("never cannot can't cant couldn't won't wouldn't".split())
"""Negations of a verb, such as "swim", after which "with a red hat" is not negated."""
NEGATIONS = {*LACKING, *INABILITY, "not", "non", "dont", "doesnt", "isnt", "hasnt"}
ASKED = {"you", "we", "i"}
"""Words after "can't", "don't" and so on in a question or a request, which negates nothing."""
STOPS = ",.;:()!?|–—•"
"""Punctuation that ends a phrase and is read as a comma. Other punctuation is left out."""
TOYBOX_WORDS = {*NOT_CONTENT, *(word for noun in NOUNS for word in noun.split())}


def read_prompt(prompt: str, known: Collection[str], added: Collection[str] = ()) -> Reading:
    """Rewrite a prompt with the words that a toybox prior (diffusion model trained on toybox captions) knows.

    Args:
        prompt: text of the user.
        known: words of the prior's vocabulary. If no toybox noun, such as "dog", is among them, the text stays
            unchanged, and the result only lists the unknown words.
        added: words that DreamBooth or textual inversion added, whether or not they are in `known` too. They are kept
            unchanged.

    Returns:
        `Reading` with the new text, and three groups of words of the prompt: replaced by known synonyms; left out
        because they are unknown or belong to unknown words; or left out because they are negated ("without a hat").
    """
    if NOUNS.keys().isdisjoint(known):  # another closed vocabulary
        found = dict.fromkeys(re.findall(r"\w+", prompt.lower()))
        return Reading(prompt, ignored=[word for word in found if word not in known])
    added = [word.lower() for word in added]
    words = received = _read_words(prompt, known, added)
    if any(word.name != word.typed or not word.name for word in words):
        received = _written(_kept(_phrases(words, added)))
    used = set(map(id, received))
    text = " ".join(word.name for word in received).replace(" ,", ",").strip(", ")
    named = [word for word in words if word.typed and word.name not in ARTICLES]
    lost = [word for word in named if id(word) not in used and word.name not in CONNECTORS]
    return Reading(
        prompt if prompt.lower().split() == text.split() else text,
        {word.typed: word.name for word in named if id(word) in used and word.typed != word.name},
        [*dict.fromkeys(word.typed for word in lost if not word.negated)],
        [word.typed for word in lost if word.negated],
    )


def missing_object(prompt: str, known: Collection[str], added: Collection[str] = ()) -> str:
    """Return the unknown word that names the object of a prompt, such as "monkey" in "a monkey eating a banana".

    The toybox prior will make the first known noun instead. The result is "" if this noun names the object, as in "a
    school bus" and "a pencil drawing of a dog", or if the tables of similar words lack the unknown word. The arguments
    are those of `read_prompt`.
    """
    words = _read_words(prompt, known, [word.lower() for word in added])
    found = [k for k, word in enumerate(words) if word.name in NOUNS]
    first = found[0] if found else 0
    for k, word in enumerate(words[:first]):
        if word.name in WORN or word.typed in PREPOSITIONS:
            break
        links = {link.typed for link in words[k + 1 : first] if {link.typed, link.name} & LINKS}
        if links and links - ARTICLES != {"of"} and not word.name and is_object(word.typed, words[first].name):
            return word.typed
    behind = next((word for k, word in enumerate(words) if k > first and k not in found), COMMA)
    is_verb = behind.typed.endswith("s")  # "a robot stands": nouns behind a noun are mostly singular
    if not found or behind.name or is_verb or not is_object(behind.typed, words[first].name):
        return ""
    return behind.typed


@dataclass
class _Word:
    # word or comma, as typed ("" for negations) and in the vocabulary ("" for unknown and negated words)
    typed: str
    name: str
    negated: bool = False


@dataclass
class _Phrase:
    # words that belong together, such as "a red hat"; before them may be a comma or "and" (joint), then verbs, such as
    # "with" or "that is"; `gap` is whether unknown words, such as "sitting on", separate it from the phrase before;
    # `objects` are its toybox nouns, "room" or added words
    words: list[_Word] = field(default_factory=list)
    joint: str = ""
    verbs: list[_Word] = field(default_factory=list)
    gap: bool = False
    objects: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        return " ".join(verb.name for verb in self.verbs)

    @property
    def names(self) -> list[str]:
        return [word.name for word in self.words if word.name]

    @property
    def has_noun(self) -> bool:
        return not NOT_CONTENT.issuperset(self.names)

    @property
    def is_part(self) -> bool:
        return self.has_noun and not self.objects

    @property
    def ends_unknown(self) -> bool:
        return bool(self.words) and not self.words[-1].name


COMMA, WITH = _Word(",", ","), _Word("with", "with")


def _read_words(prompt: str, known: Collection[str], added: list[str]) -> list[_Word]:
    text = unicodedata.normalize("NFKC", prompt).lower().replace("’", "'")
    text = re.sub(r" shaped(?! (?:like|as)\b)", "-shaped", text)
    text = re.sub(r"\b(that|which|who|it)'s\b", r"\1 is", re.sub(r"\s-+\s", ", ", text))
    of_two_words = {noun.replace(" ", ""): noun for noun in NOUNS if " " in noun and {*noun.split()}.issubset(known)}
    only_within = {word for noun in of_two_words.values() for word in noun.split()} - NOUNS.keys()  # "ice"
    single, objects = {*known, *of_two_words} - only_within, {*NOUNS, *ACCESSORIES}
    if not re.search(r"\brooms?\b", text):
        single.discard("two")  # only captions of rooms have it

    def form(word: str) -> str:
        name = known_form(re.sub("[ ‐-]", "", word), single) or ""
        return of_two_words.get(name, name)

    tokens, words, negation, negated = list[str](), list[_Word](), "", False
    names = "".join(rf"(?<!\w){re.escape(word)}(?!\w)|" for word in sorted(added, key=len, reverse=True))
    for token in re.findall(rf"{names}w/o?(?!\w)|[^\W_]+(?:['‐-][^\W_]+)*|[^\w\s]", text):
        parts = re.split("[‐-]", token)  # "toy-car" is two words, "blue-eyed" is one
        compound = any(map(form, parts)) and not (form(parts[-1]) or parts[-1] in NEUTRAL)
        tokens += [token] if token in added or form(token) or parts[0] in NEGATIONS or compound else parts
    for k in range(len(tokens) - 1, 0, -1):
        pair = tokens[k - 1 : k + 1]  # "light house", "ice cream"
        if "".join(pair).isalpha() and form("".join(pair)) in objects and {*pair}.isdisjoint(added):
            tokens[k - 1 : k + 1] = [" ".join(pair)]
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        name = token if token in added else form(token)
        goes_on = token == "and" and form(following) not in {"", *NOT_CONTENT}  # "without wheels and windows"
        ends = negated and not goes_on and (name in CONNECTORS or token in PREPOSITIONS)
        if ends or token in STOPS or token == "but":
            negation, negated = "", False
        if token in NEGATIONS or token.endswith("n't"):
            negation, negated = "" if following in ASKED else token, False
            words.append(_Word("", ""))
        elif token in STOPS:
            words += [COMMA] if words and words[-1] != COMMA else []
        elif token == "but" or (not name and (token in punctuation or unicodedata.category(token[0])[0] in "PMC")):
            continue
        elif negation:
            content = name not in ARTICLES | CONNECTORS
            words.append(_Word(token if content else "", "", negated=content and name != ""))
            # "not made of": the negation goes on
            negated |= content and (name != "" or negation in LACKING | INABILITY)
        else:
            photo = (token, following) == ("picture", "of") and NOT_CONTENT.issuperset(word.name for word in words)
            words.append(_Word(token, "" if photo else name))
    return words


def _phrases(words: list[_Word], added: list[str]) -> list[_Phrase]:
    phrases = [_Phrase()]
    for word, following in zip(words, [*words[1:], COMMA], strict=False):
        last, name = phrases[-1], word.name
        phrase = _Phrase() if last.words else last
        if name in JOINTS:
            ends = following.name in ARTICLES | CONNECTORS or following.typed in PREPOSITIONS
            first = len(phrases) == 1 and COLOURS.keys().isdisjoint(last.names)
            if last.words and not last.has_noun and not ends and (first or not last.ends_unknown):
                phrase = last
                phrase.words.append(word)  # between adjectives
            else:
                phrase.joint = name
        elif name == "of" and last.ends_unknown and not last.has_noun:  # "a photo of", "wearing a pair of"
            phrase = last
            phrase.words, phrase.gap = [], True
            phrase.verbs = last.verbs if last.verb in ("with", "wearing") else []
        elif name == "of" and (last.ends_unknown or (last.gap and not last.words)):  # "made of", "out of"
            phrase.gap = True
        elif name in CONNECTORS:
            phrase.verbs = [*phrase.verbs, word] if (phrase.verb, name) == ("that", "is") else [word]
        elif not name and word.typed in PREPOSITIONS:
            phrase.gap = True
        elif name or word.typed not in NEUTRAL:
            behind_gap = last.ends_unknown and name != "" and (name in ARTICLES or last.has_noun)
            if not (behind_gap or name in ARTICLES or (name in ADJECTIVES and last.has_noun)):
                phrase = last
            phrase.gap |= behind_gap
            phrase.words.append(word)
        if phrase is not last:
            phrases.append(phrase)
    for phrase in phrases:
        others = [name for name in phrase.names if name in ("room", *added)]
        phrase.objects = find_nouns(" ".join(phrase.names)) or others
    return phrases


def _kept(phrases: list[_Phrase]) -> list[_Phrase]:
    # `subject` is the first object; `lost` is the phrase before if it was left out, else empty
    kept, subject, lost, before = list[_Phrase](), "", _Phrase(), _Phrase()
    is_room = any("room" in phrase.names for phrase in phrases)
    for phrase in phrases:
        if phrase.verb == "that" or (phrase.verb == "is" and (phrase.joint or lost.words)):
            phrase.verbs, phrase.gap = [], True
        connected = bool(phrase.verbs) != bool(phrase.joint) and not any(v.typed in BY_SUBJECT for v in phrase.verbs)
        # part of "on a SKATEBOARD with red wheels", but not of ", SHINY with red ears"
        of_lost = connected and bool(lost.gap or lost.verbs or ARTICLES & {*lost.names})
        if phrase.joint and not phrase.verbs and lost.verb in (WORN if phrase.has_noun else {"that is"}):
            phrase.joint, phrase.verbs, of_lost = lost.joint, lost.verbs, False  # "with a SWORD and a flag"
        if phrase.objects:  # several objects only in rooms, or if no unknown word is between them
            keep = not subject or is_room or not (of_lost or phrase.gap)
        elif phrase.has_noun:
            of_other = phrase.verbs and any(_has(noun, phrase) for noun in lost.objects if noun in NOUNS)
            keep = _has(subject, phrase) and not of_other
            keep = keep or not (of_lost or (phrase.gap and subject and not phrase.verbs))
            separate = of_lost or phrase.gap or (phrase.joint and before.ends_unknown)
            if subject and separate and not (phrase.verbs or is_room):
                phrase.joint, phrase.verbs = "", [WITH]
        else:
            keep = phrase.joint == "," or not of_lost
        words = _known(phrase) if keep else []
        describes_part = not phrase.has_noun and phrase.verb in ("is", "that is") and kept and kept[-1].is_part
        if words and describes_part and not lost.words:  # "its ears are red" becomes "red ears"
            start = int(kept[-1].words[0].name in ARTICLES)
            kept[-1].words[start:start] = words
        elif words:
            kept.append(replace(phrase, words=words))
            subject = subject or (phrase.objects or [""])[-1]
        before, lost = phrase, _Phrase() if words else phrase
    first = next((k for k, phrase in enumerate(kept) if phrase.objects), 0)
    if first and kept[first].gap and not is_room:  # "a hat on a dog" becomes "a dog with a hat"
        parts = [replace(part, joint="", verbs=[WITH]) for part in kept[:first] if part.is_part and _has(subject, part)]
        kept = [*(phrase for phrase in kept[:first] if not phrase.is_part), kept[first], *parts, *kept[first + 1 :]]
    return kept


def _has(noun: str, part: _Phrase) -> bool:
    # whether a noun can have a part or accessory; a room and an added word can have all
    entry = NOUNS.get(noun)
    return noun != "" if entry is None else not {*entry.parts, *entry.wears}.isdisjoint(part.names)


def _known(phrase: _Phrase) -> list[_Word]:
    # the known words, without the adjectives of an unknown noun, such as "red" of "a red parrot"
    words, names = phrase.words, {*phrase.names}
    predicate = phrase.verb.endswith("is") and names.isdisjoint(ARTICLES)
    if phrase.ends_unknown and not phrase.has_noun and not predicate:
        start = max((k for k, word in enumerate(words) if word.name in JOINTS), default=0)
        shared = words[start].name == "and" and any(word.name in ADJECTIVES for word in words[start:])
        words = [] if shared or phrase.verb in WORN or names & ARTICLES else words[:start]
    found = list[_Word]()
    for word_before, word in zip([_Word("", ""), *words], words, strict=False):
        if word.name and word.name not in JOINTS:
            pair = word_before.name in JOINTS and found and {found[-1].name, word.name} <= ADJECTIVES
            found += [word_before, word] if pair else [word]
    return found if phrase.has_noun or names & ADJECTIVES else []


def _written(phrases: list[_Phrase]) -> list[_Word]:
    text, before = list[_Word](), _Phrase()
    for phrase in phrases:
        words, verbs, joint = phrase.words, phrase.verbs, phrase.joint
        if not text:
            verbs, joint = verbs if phrase.verb == "inside" else [], ""
        elif not verbs:
            joint = joint or "," * phrase.gap
        elif before.verb not in WORN if joint == "and" else before.has_noun:
            joint = ""  # "a dog, wearing a hat"
        if words[0].name in ("a", "an"):
            words[0].name = article(words[1].name)
            words = words[any(word.name == f"{word.typed}s" for word in words) :]  # "a wheel" becomes "wheels"
        text += [*([_Word(joint, joint)] if joint else []), *verbs, *words]
        before = phrase
    return text
