"""The type of arrays in signatures; docstrings say shapes and units."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
