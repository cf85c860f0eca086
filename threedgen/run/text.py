"""Safe output of text to the terminal and to HTML pages, and formatting of numbers and durations."""

import errno
import io
import logging
import math
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _SafeStream(io.TextIOWrapper):
    """Standard stream that discards its output after an error (closed pipe, full disk) instead of raising."""

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
        _open_devnull(self.fileno())  # also discards the buffer and output of other writers
        if error.errno != errno.EPIPE and self.fileno() == 1:
            say(f"standard output cannot be written ({error.strerror}): the command continues without it", sys.stderr)


def _open_devnull(descriptor: int) -> None:
    devnull = os.open(os.devnull, os.O_RDWR)
    if devnull != descriptor:
        os.dup2(devnull, descriptor)
        os.close(devnull)


def protect_streams() -> None:
    """Make write errors of standard streams harmless, and open streams that were closed when the process started.

    If a standard stream stayed closed, the next opened file would get its descriptor, and the output would go there.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _open_devnull(descriptor)
            stream = open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # a reference, because its deletion closes the descriptor
        if name != "stdin" and type(stream) is io.TextIOWrapper and stream.fileno() == descriptor:
            mode: Any = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
            setattr(sys, name, _SafeStream(stream.buffer, **mode))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines of text; escape control characters and characters outside the encoding of the stream."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding).rstrip("\n") + "\n")
    stream.flush()


def printable(text: str) -> str:
    """Escape characters that are not printable, except line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class _CleanRecord(logging.LogRecord):
    def __init__(self, *args: Any, **words: Any) -> None:
        super().__init__(*args, **words)
        if self.exc_info:  # as a Formatter keeps it
            self.exc_text = printable(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:
        return printable(super().getMessage())


def escape_logs() -> None:
    """Escape control characters in all log records and warnings: they may contain names from untrusted files."""
    if logging.getLogRecordFactory() is _CleanRecord:
        return
    logging.setLogRecordFactory(_CleanRecord)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **words: printable(plain(*args, **words))


@contextmanager
def log_to_stderr(level: str = "info") -> Iterator[None]:
    """Return a context in which threedgen's log records of at least `level` are printed to standard error.

    Warnings and errors are printed with their level as prefix.
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
    """Return `text` as one line without control characters."""
    spaced = "".join(" " if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in text)
    return " ".join(spaced.split()).encode("utf-8", "replace").decode("utf-8")


def visible(text: str) -> str:
    """Escape control characters and lone surrogates for an HTML page, except line breaks."""
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
    """Format a number with four significant digits: 0.1235, 12.35, 1,235,000, 1.235e-05, 1.235e+07."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e7 else f"{rounded:.4g}"
