"""Position encoding without levels, as a plug-in may add one: sin(2^k x) and cos(2^k x)."""

from typing import Literal

import torch
from torch import Tensor, nn

from threedgen.config import Config


class FrequencyConfig(Config):
    name: Literal["frequency"] = "frequency"


def build(options: FrequencyConfig, generator: torch.Generator | None = None) -> "Frequency":
    return Frequency()


class Frequency(nn.Module):
    def __init__(self, n_octaves: int = 4) -> None:
        super().__init__()
        self.octaves, self.output_dim = range(n_octaves), 6 * n_octaves

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([wave(x * 2.0**octave) for octave in self.octaves for wave in (torch.sin, torch.cos)], dim=-1)
