"""The type of arrays in signatures, whose docstrings say shapes and units; and places in them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def evenly(count: int, most: int) -> list[int]:
    """Chooses at most ``most`` of ``count`` places, evenly, the first and the last among them."""
    return np.unique(np.round(np.linspace(0, count - 1, min(most, count))).astype(int)).tolist()
