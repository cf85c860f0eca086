"""Errors of runs in the words of the page, whose users have no command line."""

import re

_ADVICE = re.compile(r"`|--\w|\b\w+(\.\w+)*=|\.md\b|Traceback|\bout=|\(got ")


def plain_words(text: str) -> str:
    """Return an error message without the parts that name options, flags, commands or doc pages."""
    sentences = re.split(r"(?<=[.;?!]) ", re.sub(r" \(got [^)]*\)+", "", text).strip())
    kept = [part for part in sentences if not _ADVICE.search(part)]
    return " ".join(kept or sentences[:1]).rstrip(";")
