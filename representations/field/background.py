"""Backgrounds: one colour, or a small MLP that maps the ray direction to a colour."""

import torch
from torch import Tensor, nn

from threedgen.representations.options import NeuralBackgroundConfig, SolidBackgroundConfig
from threedgen.run.memory import to_device

from .mlp import MLP


def spherical_harmonics(directions: Tensor) -> Tensor:
    """Return the real spherical harmonics (..., 9) of degrees 0 to 2 of unit directions (..., 3).

    Their order and signs are those of tiny-cuda-nn.
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


class SolidBackground(nn.Module):
    """Background of one colour: the option `color`.

    If the option `random` is "grey" or "color", each call in training uses a random grey or a random colour instead.
    """

    color: Tensor

    def __init__(self, options: SolidBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or SolidBackgroundConfig()
        self.register_buffer("color", torch.tensor(self.options.color), persistent=False)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """Return one colour in [0, 1], expanded to the shape of `directions` (..., 3).

        If `training` is True and the option `random` is set, the colour is sampled with the CPU generator `generator`.
        Otherwise the result is the option `color`.
        """
        color = self.color.to(directions)
        if self.options.random != "none" and training:
            low, high = self.options.random_range
            random = torch.rand(1 if self.options.random == "grey" else 3, generator=generator)
            color = low + (high - low) * to_device(random, directions.device).to(directions.dtype)
        return color.expand(directions.shape)


class NeuralBackground(nn.Module):
    """Neural environment map: an MLP from the spherical harmonics of ray directions (..., 3) to colours (..., 3).

    In training, with the probability of the option `random_probability`, all rays of a call get one random colour
    instead, so that the background cannot imitate the object. The gradients of the parameters are then zero, not None.
    """

    def __init__(self, options: NeuralBackgroundConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = options or NeuralBackgroundConfig()
        self.mlp = MLP(9, 3, width=16, hidden_layers=2, generator=generator)

    def forward(self, directions: Tensor, generator: torch.Generator | None = None, training: bool = False) -> Tensor:
        """Return colours (..., 3) in [0, 1] of unit ray directions (..., 3).

        If `training` is True, all rays of the call get one random colour with the probability of the option
        `random_probability`. The CPU generator `generator` samples it. Otherwise the MLP computes the colours.
        """
        if self.options.random_probability > 0 and training:
            random = torch.rand(4, generator=generator)
            if random[0] < self.options.random_probability:
                zero = sum(weight.sum() for weight in self.mlp.parameters()) * 0
                color = to_device(random[1:], directions.device).to(directions.dtype)
                return (color + zero).expand(directions.shape)
        harmonics = spherical_harmonics(directions).reshape(-1, 9)
        return torch.sigmoid(self.mlp(harmonics)).view(directions.shape)
