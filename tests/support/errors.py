"""What tests expect of a refusal: its class, its key and the values that it names, not its wording."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from threedgen.config import ConfigError


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
