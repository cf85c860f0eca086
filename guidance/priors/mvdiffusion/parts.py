"""Processing of a batch in parts, to save memory in layers that process each image separately."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Output = Tensor | tuple[Tensor]
PART = {"cpu": 1 << 21, "cuda": 1 << 23}
"""Number of input elements per part, at least one image. This is enough for full speed."""


@contextmanager
def in_parts(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Return a context in which layers process their batch in parts, if gradients are disabled.

    Forward hooks on the layers still receive the whole batch.
    """
    with ExitStack() as restored:
        for layer in layers:
            layer.forward = split(layer.forward)
            restored.callback(delattr, layer, "forward")  # restores the method of the class
        yield


def split(forward: Callable[..., Output]) -> Callable[..., Output]:
    """Wrap a forward function so that it processes the batch, its first argument (B, ...), in parts.

    Other tensor arguments of length B are split in the same way.
    """

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
    """Return the given rows if `value` is a tensor with `length` rows; return any other value unchanged."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == length else value
