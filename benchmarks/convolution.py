"""3 x 3 convolutions on a CPU, forward and backward: Winograd against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from unittest.mock import patch

import torch
from torch import nn

from threedgen.guidance import convolution

from .clock import Case, paired
from .table import Row, Table

SIZES = [
    (8, 64, 64, 16),
    (8, 128, 128, 8),
    (32, 192, 192, 16),
    (32, 384, 192, 16),
    (2, 320, 320, 64),
    (2, 128, 128, 128),
]
"""Batch size, input channels, output channels, image size: from the UNets of toybox-base and SD, and SD's VAE."""


def table(rounds: int) -> Table:
    """Return two rows (PyTorch, Winograd) for each size, without and with gradients."""
    rows: list[Row] = []
    for images, channels, out, side in SIZES:
        for backward in (False, True):
            size: Row = {"images": images, "from": channels, "to": out, "pixels": side, "backward": backward}
            plain = nn.Conv2d(channels, out, 3, padding=1)
            networks = {"PyTorch": plain, "Winograd": convolution.quick(deepcopy(plain))}
            x = torch.randn(images, channels, side, side)
            cases = {name: Case(_pass(network, x, backward)) for name, network in networks.items()}
            with patch.object(convolution, "bf16_cpu", lambda: False):
                rows += [size | row for row in paired(cases, "PyTorch", rounds)]
    note = f"float32, {rounds} interleaved rounds. Winograd is used on CPUs without bfloat16 instructions."
    return Table("3 x 3 convolutions", rows, [note])


def _pass(network: nn.Module, x: torch.Tensor, backward: bool) -> Callable[[], None]:
    x = x.clone().requires_grad_(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y = network(x)
        if backward:
            torch.autograd.grad(y, [x, *network.parameters()], y.detach())

    return run
