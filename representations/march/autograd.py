"""Autograd function that makes the compositing kernels of a back end differentiable once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from . import Composite, Samples

Forward = Callable[..., tuple[Tensor, ...]]
"""Kernel of the forward pass.

It maps contiguous float32 (sigma, values, t_start, t_end, start, count) to the four tensors of `Composite` and the
transmittance (N,) behind each sample, which is saved for the backward pass.
"""
Backward = Callable[[Sequence[Tensor | None], Sequence[Tensor], bool], tuple[Tensor, Tensor | None]]
"""Kernel of the backward pass: returns the gradients of sigma (N,) and values (N, C).

Arguments: the gradients of the four tensors of `Composite`, where that of the weights may be None; the inputs of the
forward pass, weights and transmittance; True if values need a gradient (else the second result is None).
"""


def differentiable(forward: Forward, backward: Backward) -> Callable[[Tensor, Tensor, Samples], Composite]:
    """Return the function `composite(sigma, values, samples)` of a back end, made from its two kernels."""

    def composite(sigma: Tensor, values: Tensor, samples: Samples) -> Composite:
        inputs = sigma.float().contiguous(), values.float().contiguous(), *samples.intervals()
        return Composite(*_Composite.apply(forward, backward, *inputs))

    return composite


class _Context(FunctionCtx):
    kernel: Backward
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]


class _Composite(torch.autograd.Function):
    """Map (forward, backward, sigma, values, t_start, t_end, start, count) to values, opacity, depth and weights."""

    @staticmethod
    def forward(ctx: _Context, forward: Forward, backward: Backward, *inputs: Tensor) -> tuple[Tensor, ...]:
        *out, weights, transmittance = forward(*inputs)
        ctx.kernel = backward
        ctx.save_for_backward(*inputs, weights, transmittance)
        ctx.set_materialize_grads(False)
        return *out, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, grad_rays = ctx.saved_tensors, []
        rays, channels = len(saved[4]), saved[1].shape[1]
        for grad, width in zip(grads, (channels, 1, 1), strict=False):
            grad_rays.append(saved[0].new_zeros(rays, width) if grad is None else grad.contiguous())
        grad_weights = None if grads[3] is None else grads[3].contiguous()
        grad_sigma, grad_values = ctx.kernel([*grad_rays, grad_weights], saved, ctx.needs_input_grad[3])
        return None, None, grad_sigma, grad_values, None, None, None, None
