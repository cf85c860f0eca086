"""Safe reading of small files from untrusted sources: only regular files, of limited size, and strict JSON."""

import codecs
import errno
import json
import logging
import math
import stat
from pathlib import Path
from typing import Any

from .errors import ConfigError

logger = logging.getLogger(__name__)

LEGACY_ENCODING = "cp1252"
"""Encoding of text files of older Windows programs, such as Excel's plain CSV."""
MAX_BYTES = 64 << 20
"""Maximum size of a JSON or text file; the largest one is the metrics of a long run."""


def ordinary(path: Path) -> Path:
    """Return `path` if it is a regular file. Raises OSError for folders, pipes and devices, which may never end."""
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(kind):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return path


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a whole file. Raises OSError, also for a file larger than `max_bytes`."""
    with open(ordinary(path), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes / 1e6:.3g} MB", str(path))
    return data


def read_text(path: Path, key: str = "", max_bytes: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8, UTF-16 or Windows-1252. Raises ConfigError with the config key `key`."""
    try:
        text, encoding = decode_text(read_bytes(path, max_bytes))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", key) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file. Save it as UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}", key) from None
    if encoding == LEGACY_ENCODING:
        logger.warning("%s is not UTF-8; read as %s. Save it as UTF-8 if letters are wrong.", path, encoding)
    return text


def decode_text(data: bytes) -> tuple[str, str]:
    """Decode text in UTF-8 or UTF-16 (with or without byte order mark); other bytes are decoded as Windows-1252.

    Returns:
        The text without a byte order mark, and the name of the encoding.

    Raises:
        UnicodeDecodeError: binary data.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16"), "utf-16"
    nul = data.count(0)
    if nul > len(data) // 4:  # Latin letters in UTF-16 are pairs of a letter and a NUL
        encoding = "utf-16-le" if data[1::2].count(0) > nul // 2 else "utf-16-be"
        return data.decode(encoding), encoding
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError:
        if nul:
            raise
        return data.decode(LEGACY_ENCODING), LEGACY_ENCODING


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError, also for NaN, infinities, numbers beyond 64 bits and deep nesting."""
    try:
        return json.loads(text, parse_constant=_not_finite, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file as a dict; {} if the file cannot be read or holds other data."""
    try:
        found = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _not_finite(text)


def _bounded(text: str) -> int:
    if len(text) >= 20:
        raise ValueError(f"{text[:20]} is longer than 64 bits")
    return int(text)
