"""Attention for training on a CPU: the forward pass of torch's fused kernel, and a backward pass in matrix products.

Attention with an explicit softmax keeps the attention weights of the whole batch in memory, 4 L^2 bytes per head and
sequence of L tokens. The fused backward pass of torch 2.13 takes five times as long in bf16. This backward pass
recomputes the weights of one head and sequence at a time, as FlashAttention does (Dao et al. 2022, arXiv 2205.14135,
algorithm 4, with one tile), and takes half the time at L = 1024.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_TOKENS = 512
"""Sequence length from which on this attention is faster than attention with an explicit softmax."""


class FlashAttention(torch.autograd.Function):
    """Autograd function softmax(q k^T / sqrt(D)) v: q, k, v (B, H, L, D) -> (B, H, L, D), on the CPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sum = ctx.saved_tensors
        grad, scale = grad.to(q.dtype), q.shape[-1] ** -0.5
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                weights = (q[b, h] @ k[b, h].T).float().mul_(scale).sub_(log_sum[b, h, :, None]).exp_()
                slope = (grad[b, h] @ v[b, h].T).float().sub_(delta[b, h]).mul_(weights).mul_(scale).to(q.dtype)
                grads[0][b, h] = slope @ k[b, h]
                grads[1][b, h] = slope.T @ q[b, h]
                grads[2][b, h] = weights.to(q.dtype).T @ grad[b, h]
        return grads
