"""softmax(q k^T / sqrt(d)) v: torch's fused kernel, and plain products where those are faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
PLAIN_TOKENS = 256
"""Longest sequence for which plain products in bfloat16 are faster on a CPU than torch's fused kernel and its backward:
2.13 needs 12 times as long for 16 tokens, 2.5 times for 256, half as long for 1024. In float32 it is never slower."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """For (N, heads, L, d). Where gradients are wanted, a CPU gets plain products for short sequences in half precision
    (autocast)."""
    slow = query.device.type == "cpu" and query.dtype in HALF and query.shape[-2] <= PLAIN_TOKENS
    if slow and torch.is_grad_enabled() and query.requires_grad:
        return plain(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """For (N, heads, L, d) and (N, heads, M, d)."""
    weights = (query * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)
    return weights.to(value.dtype) @ value
