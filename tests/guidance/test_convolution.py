"""Winograd convolutions against PyTorch's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from threedgen.guidance import convolution
from threedgen.guidance.convolution import Convolution, quick


@pytest.fixture(autouse=True)
def float32_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "bf16_cpu", lambda: False)


@pytest.mark.parametrize(
    ("images", "channels", "out", "height", "width", "bias"),
    [(6, 64, 96, 8, 12, True), (32, 80, 64, 4, 4, False), (5, 64, 64, 32, 16, True), (70, 64, 64, 8, 8, True)],
)
def test_output_and_gradients_match_float64_convolution(images, channels, out, height, width, bias) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = nn.Conv2d(channels, out, 3, padding=1, bias=bias).double()
    fast = quick(copy.deepcopy(plain).float())
    x = torch.randn(images, channels, height, width, generator=generator)
    weights = torch.randn(images, out, height, width, generator=generator)
    found = []
    for network, dtype in ((plain, torch.float64), (fast, torch.float32)):
        leaf = x.to(dtype).requires_grad_()
        y = network(leaf)
        found.append((y, *torch.autograd.grad(y, [leaf, *network.parameters()], weights.to(dtype))))
    for expected, got in zip(*found, strict=True):
        assert got.shape == expected.shape and got.dtype is torch.float32
        assert float((got - expected).detach().norm() / expected.detach().norm()) < 1e-5


def test_gradients_follow_requires_grad() -> None:
    fast = quick(nn.Conv2d(64, 64, 3, padding=1)).requires_grad_(False)
    x = torch.randn(32, 64, 4, 4)
    assert not fast(x).requires_grad
    fast(x.requires_grad_()).sum().backward()
    assert x.grad is not None and fast.weight.grad is None


def test_quick_replaces_only_plain_wide_3x3_convolutions() -> None:
    others = [
        nn.Conv2d(64, 64, 1),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 64, 3, padding=1),
    ]
    network = quick(nn.Sequential(*others, nn.Conv2d(64, 64, 3, padding=1)))
    assert [type(layer) is Convolution for layer in network] == [False] * len(others) + [True]


@pytest.mark.parametrize("case", ["side 6", "few tiles", "float64", "bfloat16 in autocast", "fast bfloat16"])
def test_unsupported_inputs_use_torch_convolution(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Conv2d(64, 64, 3, padding=1)
    x = torch.randn(2 if case == "few tiles" else 16, 64, 6 if case == "side 6" else 8, 8)
    if case == "float64":
        plain, x = plain.double(), x.double()
    if case == "fast bfloat16":
        monkeypatch.setattr(convolution, "bf16_cpu", lambda: True)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in case):
        assert torch.equal(quick(copy.deepcopy(plain))(x), plain(x))
