"""Safe output of text to the terminal and to HTML pages, and formatting of numbers and durations."""

import logging
import math
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print text to `stream` (None: stdout), escaping control characters.

    If writing fails, this and all later output to the stream is discarded.
    """
    stream = stream or sys.stdout
    if stream is None:  # it was closed when the process started
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding).rstrip("\n") + "\n")
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), stream.fileno())


def printable(text: str) -> str:
    r"""Escape characters that are not printable, such as "\x1b", except line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@contextmanager
def log_to_stderr(level: str = "info") -> Iterator[None]:
    """Return a context in which threedgen's log records of at least `level` are printed to standard error.

    `level` is "debug", "info", "warning" or "error".
    """
    logger, handler = logging.getLogger("threedgen"), _StderrHandler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        say(prefix + self.format(record), sys.stderr)


def clean(text: str) -> str:
    """Return `text` as one line: line breaks, control characters and repeated spaces become single spaces."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return " ".join(spaced.split()).encode("utf-8", "replace").decode("utf-8")


def visible(text: str) -> str:
    r"""Escape control characters and lone surrogates as text such as "\x1b". Line breaks stay, all written as "\n".

    The characters <, > and & are unchanged.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else ascii(c)[1:-1] for c in lines)


def duration(seconds: float | None) -> str:
    """Format seconds as text: 45 s, 3:05 min, 2:03 h; "?" for None, negative and infinite values."""
    if seconds is None or not 0 <= seconds < math.inf:
        return "?"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, seconds_left = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes}:{seconds_left:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def number(value: float) -> str:
    """Format a number with four significant digits: 0.1235, 12.35, 1,235,000.

    Absolute values below 0.0001 and from 10 million get an exponent: 1.235e-05, 1.235e+07.
    """
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e7 else f"{rounded:.4g}"
