"""What tests expect of a refusal: its class, its key and the values that it names, not its wording."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from threedgen.config import ConfigError


def full_disk(*_: object) -> None:
    """Fail as a call of the system does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Trap:
    """Unpickling it would create the folder that it names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@contextmanager
def refused(key: str | None = None, *values: Any, kind: type[Exception] = ConfigError) -> Iterator[Any]:
    """Expect an error of a kind.

    Args:
        key: that of the ConfigError, whole; None: any.
        values: data that the message names, such as a file, a number, an option or a valid choice.
        kind: class of the error.
    """
    with pytest.raises(kind) as caught:
        yield caught
    if key is not None:
        assert caught.value.key == key, str(caught.value)
    for value in values:
        assert str(value) in str(caught.value)


@contextmanager
def refused_in_one_line(key: str | None = None, *values: Any) -> Iterator[Any]:
    """As `refused`; the message has one line and not torch's advice to load unsafe files."""
    with refused(key, *values) as caught:
        yield caught
    assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
