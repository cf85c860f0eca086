"""Gradient checkpointing over rays: render without a graph, then recompute chunk by chunk in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", divide the layers; here the rays are divided. For
autograd the whole render is one function of the parameters, so hooks, loss scaling and DDP work as usual.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

logger = logging.getLogger(__name__)

Outputs = Sequence[Tensor | None]
Compute = Callable[[slice], Outputs]


def two_pass(compute: Compute, parts: Sequence[slice], parameters: Iterable[Tensor]) -> tuple[Tensor | None, ...]:
    """Compute `compute(part)` for all parts and return the outputs, each concatenated over the parts along its rows.

    The forward pass keeps no autograd graph. The backward pass recomputes each part, so only the graph of one part is
    in memory at a time. The outputs can be differentiated only once. The backward pass raises RuntimeError if a
    parameter has changed since the forward pass, or if it is called with create_graph=True.

    Args:
        compute: deterministic map from a slice of rays to outputs, each a tensor with one row per ray or None.
        parts: slices that cover all rays in order.
        parameters: the only tensors that get gradients.
    """
    return _TwoPass.apply(compute, parts, *parameters)


class _Context(FunctionCtx):
    compute: Compute
    parts: Sequence[slice]
    autocast: list[tuple[str, bool, torch.dtype]]
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _TwoPass(Function):
    @staticmethod
    def forward(
        ctx: _Context, compute: Compute, parts: Sequence[slice], *parameters: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.compute, ctx.parts = compute, parts
        ctx.save_for_backward(*parameters)  # autograd checks their versions on access
        ctx.set_materialize_grads(False)
        ctx.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in {"cpu", *(p.device.type for p in parameters)} - {"meta"}
        ]
        columns = zip(*_run_parts(parts, compute), strict=True)
        return tuple(None if column[0] is None else torch.cat(column) for column in columns)

    @staticmethod
    def backward(ctx: _Context, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph
            raise RuntimeError("a chunked render is differentiable only once. Set march.chunk=null.")
        parameters = ctx.saved_tensors
        trained = [p for p, needed in zip(parameters, ctx.needs_input_grad[2:], strict=True) if needed]
        sums: list[Tensor | None] = [None] * len(trained)
        for part_sums in _run_parts(ctx.parts, lambda part: _part_gradients(ctx, part, gradients, trained)):
            for k, gradient in enumerate(part_sums):
                if gradient is not None:
                    total = sums[k]
                    sums[k] = gradient.clone() if total is None else total.add_(gradient)
        results = iter(sums)
        return None, None, *(next(results) if needed else None for needed in ctx.needs_input_grad[2:])


def _part_gradients(ctx: _Context, part: slice, gradients: Outputs, parameters: list[Tensor]) -> Outputs:
    # recomputes one part with a graph; the result is its contribution to the gradient of each parameter
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
    outputs, output_gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, parameters, output_gradients, allow_unused=True)


def _run_parts(parts: Sequence[slice], compute: Compute) -> Iterator[Outputs]:
    # a part that does not fit into GPU memory is halved
    stack = list(reversed(parts))
    while stack:
        part = stack.pop()
        try:
            result = compute(part)
        except torch.OutOfMemoryError:
            if part.stop - part.start < 2:
                raise
            middle = (part.start + part.stop) // 2
            stack += [slice(middle, part.stop), slice(part.start, middle)]
            _warn_halved()
        else:
            yield result


@cache  # warn once per process, since it may happen at every step
def _warn_halved() -> None:
    logger.warning("Out of GPU memory: the chunks of the render are halved. Set a smaller march.chunk to avoid this.")
