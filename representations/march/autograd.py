"""The compositor's kernels as a function that autograd differentiates once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import Composite, Samples

Forward = Callable[..., tuple[Tensor, ...]]
"""(sigma, values, t_start, t_end, start, count), float32 and contiguous, to the four of `Composite` and behind (N,),
the transmittance after each sample, kept for the backward pass"""
Backward = Callable[[Sequence[Tensor | None], Sequence[Tensor], bool], tuple[Tensor, Tensor | None]]
"""(gradients of the four, that of the weights or None; what went in, weights and behind; do the values learn?) to the
gradients of sigma and values"""


def differentiable(forward: Forward, backward: Backward) -> Callable[[Tensor, Tensor, Samples], Composite]:
    """`march.composite` by a back end's kernels."""

    def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
        given = sigma.float().contiguous(), values.float().contiguous(), *samples.intervals()
        return Composite(*_Composite.apply(forward, backward, *given))

    return composite


class _Composite(torch.autograd.Function):
    """(forward, backward, sigma, values, t_start, t_end, start, count) -> values, opacity, depth, weights."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, backward: Backward, *given: Tensor) -> tuple[Tensor, ...]:
        *out, weights, behind = forward(*given)
        ctx.kernel = backward
        ctx.save_for_backward(*given, weights, behind)
        ctx.set_materialize_grads(False)
        return *out, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved, pixels = ctx.saved_tensors, []
        rays, channels = len(saved[4]), saved[1].shape[1]
        for grad, width in zip(grads, (channels, 1, 1), strict=False):
            pixels.append(saved[0].new_zeros(rays, width) if grad is None else grad.contiguous())
        to_weights = None if grads[3] is None else grads[3].contiguous()
        return None, None, *ctx.kernel([*pixels, to_weights], saved, ctx.needs_input_grad[3]), None, None, None, None
