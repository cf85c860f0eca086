"""Large renders in little memory: once without a graph, then again, chunk by chunk, to learn from it.

Distillation hands back one gradient for each pixel. So what led to a pixel need not be kept until then: it is computed
once more when its gradient is known, a few rays at a time. That is gradient checkpointing (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost") along the rays instead of the layers.

To autograd the whole is one function of the parameters, which get one gradient each. Hooks, loss scaling, clipping and
the exchange of gradients between devices (DDP) therefore see no difference from a render in one pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

logger = logging.getLogger(__name__)

Outputs = Sequence[Tensor | None]
Compute = Callable[[slice], Outputs]


def two_pass(compute: Compute, parts: Sequence[slice], parameters: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """What `compute` gives for each of the consecutive `parts`, joined along the first axis.

    compute(part) is a tuple of tensors, or None, with one row for each of part.start ... part.stop - 1. It may be
    differentiated with respect to `parameters` only, once, and has to give the same whenever it is asked: random
    numbers are drawn outside of it. At any time the graph of one part is held. A part that does not fit into the
    memory of a GPU is halved, which is said once. Raises RuntimeError in backward if a parameter was changed since,
    or if a graph of the gradient is asked for.
    """
    return _TwoPass.apply(compute, parts, *parameters)


class _TwoPass(Function):
    """(compute, parts, *parameters) -> the joined outputs."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, parts: Sequence[slice], *parameters: Tensor) -> tuple[Tensor | None, ...]:
        ctx.compute, ctx.parts = compute, parts
        ctx.save_for_backward(*parameters)  # autograd compares their versions when they are asked for
        ctx.set_materialize_grads(False)
        ctx.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", *(p.device.type for p in parameters)}
        ]
        columns = zip(*_each(parts, compute), strict=True)
        return tuple(None if column[0] is None else torch.cat(column) for column in columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError("a render in chunks is differentiable once: for higher derivatives use no chunks")
        parameters = ctx.saved_tensors
        learnt = [p for p, needed in zip(parameters, ctx.needs_input_grad[2:], strict=True) if needed]
        sums: list[Tensor | None] = [None] * len(learnt)
        for found in _each(ctx.parts, lambda part: _learn(ctx, part, gradients, learnt)):
            for k, gradient in enumerate(found):
                if gradient is not None:
                    total = sums[k]
                    sums[k] = gradient.clone() if total is None else total.add_(gradient)
        done = iter(sums)
        return None, None, *(next(done) if needed else None for needed in ctx.needs_input_grad[2:])


def _learn(ctx: Any, part: slice, gradients: Outputs, parameters: list[Tensor]) -> Outputs:
    """What one part adds to the gradient of each parameter; its graph ends with this function."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for kind, enabled, dtype in ctx.autocast:
            stack.enter_context(torch.autocast(kind, dtype, enabled))
        outputs = ctx.compute(part)
    pairs = [
        (output, gradient[part])
        for output, gradient in zip(outputs, gradients, strict=True)
        if output is not None and gradient is not None and output.requires_grad
    ]
    if not pairs:
        return [None] * len(parameters)
    wanted, given = zip(*pairs, strict=True)
    return torch.autograd.grad(wanted, parameters, given, allow_unused=True)


def _each(parts: Sequence[slice], work: Compute) -> Iterator[Outputs]:
    """work(part) for one part after the other; one that does not fit into the memory of a GPU is halved."""
    waiting = list(reversed(parts))
    while waiting:
        part = waiting.pop()
        try:
            found = work(part)
        except torch.OutOfMemoryError:
            if part.stop - part.start < 2:
                raise
            middle = (part.start + part.stop) // 2
            waiting += [slice(middle, part.stop), slice(part.start, middle)]
            _say_halved()
        else:
            yield found


@cache
def _say_halved() -> None:
    """Once in a process: it may happen at every step."""
    logger.warning("out of memory: chunks of the render are halved; a smaller march.chunk would save the attempt")
