"""Errors of runs in the words of the page, whose users have no command line."""

import re

_ADVICE = re.compile(r"`|--\w|\b\w+(\.\w+)*=|\.(md|yaml)\b")
_KEY = re.compile(r"^(?:\w+\.)*(\w+): (?=(?:contains|has|is|are|needs|should|was|were)\b)")


def plain_words(text: str) -> str:
    """Return an error message for users of the page, without options, flags, commands and names of doc pages.

    "prompt: is empty. Set it, for example prompt=..." becomes "The prompt is empty.".
    """
    sentences = re.split(r"(?<=[.;?!]) ", re.sub(r" \(got [^()]*(\([^()]*\))?[^()]*\)", "", text).strip())
    kept = [part for part in sentences if not _ADVICE.search(part)]
    return _KEY.sub(r"The \1 ", " ".join(kept or sentences[:1])).rstrip(";")
