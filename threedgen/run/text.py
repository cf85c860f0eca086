"""Figures and foreign text as people read them, in a terminal and on a page."""

from __future__ import annotations

import errno
import io
import logging
import math
import os
import sys
import unicodedata
import warnings
from typing import Any, TextIO


class _Steady(io.TextIOWrapper):
    """A standard stream that cannot end a run: what it cannot say, as its pipe is closed or its disk full, is lost."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _fill(self.fileno())  # what is still in the buffer goes nowhere, and so does what others write
        if error.errno != errno.EPIPE and self.fileno() == 1:
            say(f"standard output cannot be written ({error.strerror}): going on without it", sys.stderr)


def _fill(descriptor: int) -> None:
    """Opens a descriptor to nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def steady_streams() -> None:
    """Makes the streams of a command such that it can always write to them, also those that it was started without.

    A file that is opened in their place would get what is said, and be spoilt.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _fill(descriptor)
            stream = open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # it closes the descriptor when it goes
        if name != "stdin" and type(stream) is io.TextIOWrapper and stream.fileno() == descriptor:
            how: Any = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
            setattr(sys, name, _Steady(stream.buffer, **how))


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints lines of text; control characters and what the terminal cannot show are escaped."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding).rstrip("\n") + "\n")
    stream.flush()


def printable(text: str) -> str:
    """Escapes whatever a terminal could obey instead of showing it; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class _CleanRecord(logging.LogRecord):
    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        if self.exc_info:  # as a Formatter keeps it
            self.exc_text = printable(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:
        return printable(super().getMessage())


def clean_logs() -> None:
    """Makes printable whatever is logged or warned of in this process from now on, by whichever library: names in a
    stranger's file become part of such messages."""
    if logging.getLogRecordFactory() is _CleanRecord:
        return
    logging.setLogRecordFactory(_CleanRecord)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **words: printable(plain(*args, **words))


def clean(text: str) -> str:
    """Joins `text` to one line without control characters (an ESC in a prompt would colour the terminal)."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return " ".join(spaced.split()).encode("utf-8", "replace").decode("utf-8")


def visible(text: str) -> str:
    """Escapes what has no glyph on a page (control characters, stray bytes); lines stay."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else ascii(c)[1:-1] for c in lines)


def duration(seconds: float | None) -> str:
    """Words seconds as people say them: 45 s, 3:05 min, 2:03 h; "?" for an unknown one."""
    if seconds is None or not 0 <= seconds < math.inf:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds_left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{seconds_left:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def number(value: float) -> str:
    """Words four significant digits, without trailing zeros: 0.1235, 12.35, 1,235,000, 1.235e-05, 1.235e+07."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e7 else f"{rounded:.4g}"
