"""Safe reading of files from untrusted sources: only regular files, of limited size, and strict JSON."""

import codecs
import errno
import json
import logging
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from .errors import STORAGE_ERRORS, ConfigError, short

logger = logging.getLogger(__name__)

LEGACY_ENCODING = "cp1252"  # encoding of text files of older Windows programs, such as CSV files of Excel
_LARGE_NUMBER = re.compile(r"[0-9](?:[0-9]{18}|[eE]\+?[0-9]{3})")  # begins with a set, which is searched fast
MAX_BYTES = 64 << 20
"""Default maximum size of a file in bytes. The largest files are the metrics of long runs."""
MAX_PICKLE_BYTES = 4 << 20  # maximum size of the pickle with the structure of a torch file; SDXL's has 0.4 MB
MAX_VALUES, MAX_CHARACTERS = 5_000_000, 1 << 28
"""Limits of JSON text: number of values (each takes up to 300 bytes of memory), and number of characters."""


def require_regular_file(path: Path, max_bytes: int | None = None) -> Path:
    """Return `path` unchanged if it is a regular file of at most `max_bytes` bytes.

    Raises OSError if the file is missing or larger, or is a folder, pipe or device. `max_bytes` None: any size.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    if max_bytes is not None and found.st_size > max_bytes:
        raise _too_large(path, max_bytes)
    return path


def named_file(folder: Path, name: str, key: str = "") -> Path:
    """Return the path `folder`/`name`, where `name` is a relative path that was read from another file.

    The path need not exist. Symbolic links, which users make for large datasets, are not resolved. Raises ConfigError,
    with the config key `key`, if `name` is absolute or has "..".
    """
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or parts[0][1:2] == ":" or ".." in parts:
        raise ConfigError(f"{short(name)} is no path of a file in {folder}. Use a relative path without ..", key)
    return folder.joinpath(*parts)


def _too_large(path: Path, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {max_bytes / 1e6:,.4g} MB", str(path))


def read_bytes(path: Path, max_bytes: int = MAX_BYTES, start: int = 0, count: int | None = None) -> bytes:
    """Read `count` bytes of a file from the byte `start` on, or fewer at its end. `count` None: all up to the end.

    Raises OSError if the file is unreadable, or if more than `max_bytes` bytes would be read.
    """
    with open(require_regular_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size - start
        if (size if count is None else min(count, size)) <= max_bytes:
            file.seek(start)
            data = file.read(max_bytes + 1 if count is None else count)
            if len(data) <= max_bytes:  # else the file is growing, or its size is unknown as in /proc
                return data
    raise _too_large(path, max_bytes)


def read_text(path: Path, key: str = "", max_bytes: int = MAX_BYTES) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark.

    Other text is read as Windows-1252, with a warning. Raises ConfigError if the file is unreadable, binary or larger
    than `max_bytes`; the error names `key`, the config key that has the path.
    """
    try:
        data = read_bytes(path, max_bytes)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", key) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", key) from None
    encoding = unicode_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        encoding, text = LEGACY_ENCODING, data.decode(LEGACY_ENCODING, "replace")
    if "\0" in text:
        raise ConfigError(f"{path} is not a text file, or its encoding is unknown. Save it as UTF-8 text", key)
    if encoding == LEGACY_ENCODING:
        logger.warning("%s is not UTF-8; read as %s. Save it as UTF-8 if letters are wrong.", path, LEGACY_ENCODING)
    return text


def unicode_encoding(data: bytes) -> str:
    """Return the name of the codec for Unicode text: UTF-16 with a byte order mark, else UTF-8 with or without one.

    Windows PowerShell writes UTF-16 for `command > file`.
    """
    return "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly.

    Raises ValueError for invalid JSON, NaN, infinities, integers longer than 19 characters, nesting beyond Python's
    recursion limit, more than 5 million values (MAX_VALUES), or more than 2^28 characters (MAX_CHARACTERS).
    """
    problem = ValueError(f"more than {MAX_VALUES:,} values or {MAX_CHARACTERS:,} characters")
    if len(text) > MAX_CHARACTERS:
        raise problem
    text = text.decode(json.detect_encoding(text), "surrogatepass") if isinstance(text, bytes) else text
    if sum(map(text.count, ",{[")) > MAX_VALUES:
        raise problem
    large = _LARGE_NUMBER.search(text) is not None  # else the checks, which are slow, are not needed
    number, integer = (_finite, _bounded) if large else (None, None)
    try:
        return json.loads(text, parse_constant=_not_finite, parse_float=number, parse_int=integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file as a dict; {} if the file is missing or damaged, or if its content is no dict.

    Raises OSError if the disk fails, because then the file itself may be intact.
    """
    try:
        found = parse_json(read_bytes(path))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            raise
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
