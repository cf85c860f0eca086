"""Small MLP of fields and backgrounds."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear layers without biases and with ReLU between them. Autocast is off: float32 layers compute in float32.

    The initial weights are sampled from U(-1/sqrt(fan_in), 1/sqrt(fan_in)) with the CPU generator `generator`, or with
    torch's global generator if it is None.
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
        """Map x (N, n_in) to outputs (N, n_out). With the argument `n_out`, compute only the first `n_out` outputs."""
        *hidden, last = self.layers
        weight = cast(nn.Linear, last).weight
        with torch.autocast(x.device.type, enabled=False):
            for layer in hidden:
                x = layer(x)
            return F.linear(x, weight if n_out is None else weight[:n_out])
