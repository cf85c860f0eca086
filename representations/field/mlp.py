"""Small MLP of fields and backgrounds."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers without biases and with ReLU in between; float32 also under autocast.

    Initial weights are sampled from U(-1/sqrt(in), 1/sqrt(in)) with `generator` (CPU), or torch's global one.
    """

    def __init__(
        self, n_in: int, n_out: int, width: int, hidden_layers: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        sizes = [n_in, *[width] * hidden_layers, n_out]
        linear = [nn.utils.skip_init(nn.Linear, *pair, bias=False) for pair in pairwise(sizes)]
        for layer in linear:
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
        modules: list[nn.Module] = [linear[0]]
        for layer in linear[1:]:
            modules += [nn.ReLU(inplace=True), layer]
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor, n_out: int | None = None) -> Tensor:
        """Map (N, n_in) to all outputs, or to the first `n_out` of them."""
        *hidden, last = self.layers
        weight = cast(nn.Linear, last).weight
        with torch.autocast(x.device.type, enabled=False):
            for layer in hidden:
                x = layer(x)
            return F.linear(x, weight if n_out is None else weight[:n_out])
