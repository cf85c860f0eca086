"""Process a batch in parts, for layers in which images do not depend on each other: memory is that of one part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Output = Tensor | tuple[Tensor]
PART = {"cpu": 1 << 21, "cuda": 1 << 23}
"""Input elements per part, or one image: enough for full speed."""


@contextmanager
def in_parts(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Give layers their inputs in parts, inside the context and without gradients; hooks on them get whole batches."""
    with ExitStack() as restored:
        for layer in layers:
            layer.forward = split(layer.forward)
            restored.callback(delattr, layer, "forward")  # restores the method of the class
        yield


def split(forward: Callable[..., Output]) -> Callable[..., Output]:
    """Wrap a function of a batch and other arguments; tensors as long as the batch are split with it."""

    def call(x: Tensor, *args: object, **kwargs: object) -> Output:
        count = max(1, PART.get(x.device.type, PART["cpu"]) // max(1, x[0].numel()))
        if torch.is_grad_enabled() or len(x) <= count:
            return forward(x, *args, **kwargs)
        for start in range(0, len(x), count):
            rows = slice(start, start + count)
            part_args = [_rows(value, rows, len(x)) for value in args]
            part_kwargs = {name: _rows(value, rows, len(x)) for name, value in kwargs.items()}
            found = forward(x[rows], *part_args, **part_kwargs)
            part = found[0] if isinstance(found, tuple) else found
            if not start:
                whole = part.new_empty(len(x), *part.shape[1:])
            whole[rows] = part
        return (whole,) if isinstance(found, tuple) else whole

    return call


def _rows(value: object, rows: slice, length: int) -> object:
    """Return the rows of a tensor with one row per image; anything else unchanged."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == length else value
