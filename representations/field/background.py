"""Backgrounds: one colour, or a small MLP from ray direction to colour.

Interface: background(directions (..., 3), generator=None, training=False) -> colours (..., 3) in [0, 1]. A random
background in training raises ValueError without a generator.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from threedgen.representations.options import NeuralBackgroundConfig, SolidBackgroundConfig

from .mlp import MLP


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Return real spherical harmonics (..., 9) up to degree 2 of unit directions (..., 3).

    Order and signs are those of tiny-cuda-nn, which calls it degree 3.
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


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError("missing generator for a random background. Pass a generator in training.")
    return torch.rand(n, generator=generator, device=generator.device)


class SolidBackground(nn.Module):
    """Background of one colour. With the option `random`, each training call uses one random grey or colour."""

    color: Tensor

    def __init__(self, options: SolidBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or SolidBackgroundConfig()
        self.register_buffer("color", torch.tensor(self.options.color), persistent=False)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """Return the colour for each of the directions (..., 3), (..., 3)."""
        color = self.color.to(directions)
        if self.options.random != "none" and training:
            low, high = self.options.random_range
            random = _uniform(1 if self.options.random == "grey" else 3, generator)
            color = low + (high - low) * random.to(directions)
        return color.expand(directions.shape)


class NeuralBackground(nn.Module):
    """Neural environment map: spherical harmonics of the direction, an MLP, a sigmoid.

    In training, with probability `random_probability`, all rays of a call get one random colour instead, so that the
    background cannot imitate the object. The parameters then have zero gradients instead of None.
    """

    def __init__(self, options: NeuralBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or NeuralBackgroundConfig()
        self.mlp = MLP(9, 3, o.width, o.hidden_layers, generator)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """Return colours (..., 3) of unit directions (..., 3)."""
        if self.options.random_probability > 0 and training:
            random = _uniform(4, generator)
            if random[0] < self.options.random_probability:
                zero = sum(weight.sum() for weight in self.mlp.parameters()) * 0
                return (random[1:].to(directions) + zero).expand(directions.shape)
        harmonics = spherical_harmonics(directions).reshape(-1, 9)
        return torch.sigmoid(self.mlp(harmonics)).view(directions.shape)
