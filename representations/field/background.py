"""What lies behind the object: one colour, or a small network from direction to colour.

A background is called as background(directions (..., 3), generator=None, training=False) -> colours (..., 3)
in [0, 1]. Randomness, in training, comes from the generator alone: without it that is a ValueError.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threedgen.representations.options import NeuralBackgroundConfig, SolidBackgroundConfig

from .mlp import MLP


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Real spherical harmonics up to degree 2 ("degree 3" in tiny-cuda-nn, whose order and signs these are).

    directions (..., 3), unit -> (..., 9).
    """
    x, y, z = directions.unbind(-1)
    constants = (0.28209479177387814, 0.4886025119029199, 1.0925484305920792, 0.5462742152960396)
    terms = [
        torch.full_like(x, constants[0]),
        -constants[1] * y,
        constants[1] * z,
        -constants[1] * x,
        constants[2] * x * y,
        -constants[2] * y * z,
        0.94617469575755997 * z * z - 0.31539156525251999,
        -constants[2] * x * z,
        constants[3] * (x * x - y * y),
    ]
    return torch.stack(terms, dim=-1)


def _draw(n: int, generator: torch.Generator | None) -> Tensor:
    """n uniform numbers, on the generator's device."""
    if generator is None:
        raise ValueError("a background that is random in training needs a generator")
    return torch.rand(n, generator=generator, device=generator.device)


class SolidBackground(nn.Module):
    """One colour; with the option `random`, in training, a random grey or colour for all rays of the call."""

    color: Tensor

    def __init__(self, options: SolidBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or SolidBackgroundConfig()
        self.register_buffer("color", torch.tensor(self.options.color), persistent=False)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """directions (..., 3) -> (..., 3), one colour."""
        color = self.color.to(directions)
        if self.options.random != "none" and training:
            low, high = self.options.random_range
            draw = _draw(1 if self.options.random == "grey" else 3, generator)
            color = low + (high - low) * draw.to(directions)
        return color.expand(directions.shape)


class NeuralBackground(nn.Module):
    """Environment map: spherical harmonics of the direction, an MLP, a sigmoid.

    In training, with probability `random_probability`, one random colour replaces it for all rays of the call, so that
    the object cannot be painted onto it. The parameters then get zero gradients, not none: optimisers see every step.
    """

    def __init__(self, options: NeuralBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or NeuralBackgroundConfig()
        self.mlp = MLP(9, 3, o.width, o.hidden_layers, generator)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """directions (..., 3), unit -> (..., 3)."""
        if self.options.random_probability > 0 and training:
            draw = _draw(4, generator)
            if draw[0] < self.options.random_probability:
                zero = sum(weight.sum() for weight in self.mlp.parameters()) * 0
                return (draw[1:].to(directions) + zero).expand(directions.shape)
        harmonics = spherical_harmonics(directions).reshape(-1, 9)
        return torch.sigmoid(self.mlp(harmonics)).view(directions.shape)
