"""Type `Array` of NumPy arrays, and selection of evenly spaced indices."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def evenly_spaced(count: int, max_count: int) -> list[int]:
    """Return at most `max_count` evenly spaced indices from 0 to count - 1, including the first and the last.

    If `max_count` is 1, the only index is 0.
    """
    return np.unique(np.round(np.linspace(0, count - 1, min(max_count, count))).astype(int)).tolist()
