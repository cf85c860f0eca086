"""What is checked of a prompt before any work starts, and what the user is told about it."""

from __future__ import annotations

import logging
from typing import Any

from threedgen.errors import ConfigError

logger = logging.getLogger(__name__)


def tidy(prompt: str, key: str = "prompt") -> str:
    """The prompt as one line without outer white space.  Raises ConfigError if nothing is left."""
    text = " ".join(prompt.split())
    if not text:
        raise ConfigError(f'{key}: is empty; say what to make, such as {key}="a blue dog wearing a red hat"')
    return text


def warn_about(prompt: str, prior: Any) -> list[str]:
    """Logs and returns a sentence for what the prior will not understand: words cut off, words it never saw."""
    notes = []
    if cut := prior.tokens_cut(prompt):
        shown = cut if len(cut) <= 60 else f"{cut[:57]}..."
        notes.append(f"the prompt is too long for this prior: everything from {shown!r} on has no effect")
    unknown = prior.unknown_words(prompt[: len(prompt) - len(cut)] if cut else prompt)
    if unknown:
        words = "; ".join(
            f"{word[:40]!r}" + (f" (nearest: {', '.join(near)})" if near else "")
            for word, near in unknown[:8]
        )
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        notes.append(f"this prior does not know {words}{more}; it goes on without them")
    for note in notes:
        logger.warning("%s", note)
    return notes
