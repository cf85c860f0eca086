"""Attention for training on a CPU equals explicit softmax, gradients included."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from threedgen.guidance.multiview.flash import MIN_TOKENS, FlashAttention
from threedgen.guidance.multiview.joined import MultiviewAttnProcessor, self_attention


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("shape", [(2, 1, 70, 16), (1, 3, 33, 8)])
def test_values_and_gradients_equal_explicit_softmax(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=rng).requires_grad_() for _ in range(3))
    weight = torch.randn(shape, generator=rng)
    ours, theirs = FlashAttention.apply(q, k, v), explicit(q, k, v)
    assert torch.allclose(ours, theirs, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bfloat16_gradients_are_near_those_in_float32() -> None:
    rng = torch.Generator().manual_seed(1)
    wide = [torch.randn(1, 2, 64, 32, generator=rng).requires_grad_() for _ in range(3)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in wide]
    exact = torch.autograd.grad(explicit(*wide).square().sum(), wide)
    found = torch.autograd.grad(FlashAttention.apply(*narrow).float().square().sum(), narrow)
    for a, b in zip(found, exact, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_a_block_of_diffusers_gives_the_same() -> None:
    torch.manual_seed(2)
    attn = Attention(32, heads=2, dim_head=16)
    for length in (40, MIN_TOKENS):
        tokens = torch.randn(1, length, 32)
        assert torch.allclose(self_attention(attn, tokens), AttnProcessor()(attn, tokens), atol=1e-5)


def test_long_joined_sequences_train_as_they_sample() -> None:
    torch.manual_seed(3)
    attn, images = Attention(16, heads=1, dim_head=16), torch.randn(4, 160, 16)
    attn.set_processor(MultiviewAttnProcessor())
    trained = attn(images, n_view=4)
    with torch.no_grad():
        sampled = attn(images, n_view=4)
    assert trained.requires_grad and torch.allclose(trained, sampled, atol=1e-5)
