"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def when(condition: Callable[[], Any], what: str = "it", seconds: float = 120) -> Any:
    """What `condition` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} never happened"
        time.sleep(0.01)
    return found
