"""A few pictures of a batch at a time, for layers in which pictures do not see each other: what these layers hold in
between is then that of a few pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PART = {"cpu": 1 << 21, "cuda": 1 << 23}
"""So many numbers of its input a layer gets at a time, or one picture: enough for a processor to be at full speed."""


@contextmanager
def in_parts(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, without gradients, layers get their inputs in parts; hooks on them see the whole."""
    with ExitStack() as restored:
        for layer in layers:
            layer.forward = split(layer.forward)
            restored.callback(delattr, layer, "forward")  # that of its class is there again
        yield


def split(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a function of a batch and of anything else; tensors as long as the batch are split with it."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        count = max(1, PART.get(x.device.type, PART["cpu"]) // max(1, x[0].numel()))
        if torch.is_grad_enabled() or len(x) <= count:
            return forward(x, *args, **kwargs)
        whole: Any = None
        for start in range(0, len(x), count):
            rows = slice(start, start + count)
            cut_args = [_rows(given, rows, len(x)) for given in args]
            found = forward(x[rows], *cut_args, **{name: _rows(given, rows, len(x)) for name, given in kwargs.items()})
            part = found[0] if isinstance(found, tuple) else found
            whole = part.new_empty(len(x), *part.shape[1:]) if whole is None else whole
            whole[rows] = part
        return (whole,) if isinstance(found, tuple) else whole

    return call


def _rows(given: Any, rows: slice, length: int) -> Any:
    """Takes these rows of what has one for each picture; anything else stays as it is."""
    return given[rows] if isinstance(given, Tensor) and given.ndim and len(given) == length else given
