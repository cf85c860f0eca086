"""A signed distance field, volume-rendered as in NeuS (Wang et al. 2021, arXiv 2106.10689).

f(x) is the distance to the surface, negative inside. The opacity of a piece of a ray is how much of the light Phi(s f),
Phi the sigmoid, is lost on it; the sharpness s is learnt and grows. Written as a density of the piece, it goes through
the same compositing as any other field. What a density is without a ray, for the occupancy grid and the mesh, is the
limit of short pieces of a ray that meets the surface head on: s Phi(-s f).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config import at
from threedgen.representations.options import SDFConfig

from .mlp import MLP
from .ngp import EncodedField

EPS = 1e-5
"""Keeps quotients of vanishing lights finite."""


class SDF(EncodedField):
    """Distances and features of points in [-radius, radius]^3; begins as a ball.

    f(x) = mlp(encoding(x)) + |x| - sphere. `log_sharpness` is log s. `generator` (CPU) draws the initial parameters.
    """

    cosine: Tensor

    def __init__(self, options: SDFConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(options or SDFConfig(), generator)
        o, inputs = self.options, self.encoding.output_dim
        self.sdf_mlp = MLP(inputs, 1, o.width, o.hidden_layers, generator)
        self.feature_mlp = MLP(inputs, o.n_features, o.width, o.hidden_layers, generator)
        self.log_sharpness = nn.Parameter(torch.tensor(o.log_sharpness))
        self.register_buffer("cosine", torch.tensor(0.0))
        self.at_step(0, 1)

    def at_step(self, step: int, max_steps: int | None = None) -> None:
        """Levels of the encoding and softness of the opacity, as the options say for this step."""
        super().at_step(step, max_steps)
        self.cosine.fill_(at(self.options.cosine, step, max_steps))

    @property
    def sharpness(self) -> Tensor:
        """s, per world unit."""
        return self.log_sharpness.exp().clamp(max=1e6)

    def distance(self, x: Tensor, encoded: Tensor | None = None) -> Tensor:
        """f (N,) of points (N, 3), in world units; `encoded`: their encoding, if it is known."""
        encoded = self._encode(x) if encoded is None else encoded
        return self.sdf_mlp(encoded)[:, 0] + torch.linalg.vector_norm(x, dim=-1) - self.options.sphere

    def density(self, x: Tensor) -> Tensor:
        """s Phi(-s f) (N,): what a ray straight towards the surface meets."""
        s = self.sharpness
        return s * torch.sigmoid(-s * self.distance(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, 3) -> density (N,), features (N, n_features)."""
        return self.density(x), self.feature_mlp(self._encode(x))

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (N, 3) -> density (N,), features (N, n_features), outward unit normals (N, 3)."""
        return *self(x), F.normalize(self.gradient(x), dim=-1)

    def along(self, x: Tensor, directions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points (N, 3) in the middle of pieces of rays, of unit directions (N, 3) and lengths (N,).

        Gives the density (N,) of each piece, so that 1 - exp(-density length) is NeuS's opacity (eq. 13), features
        (N, n_features), outward unit normals (N, 3) and the length of f's gradient (N,).
        """
        encoded, gradient = self._encode(x), self.gradient(x)
        steepness = torch.linalg.vector_norm(gradient, dim=-1)
        normal = F.normalize(gradient, dim=-1)
        slope = self._slope((directions * normal).sum(-1))
        opacity = self.opacity(self.distance(x, encoded), slope * lengths)
        return -torch.log1p(-opacity) / lengths.clamp(min=EPS), self.feature_mlp(encoded), normal, steepness

    def opacity(self, distance: Tensor, change: Tensor) -> Tensor:
        """1 - Phi(s f_end) / Phi(s f_start), in [0, 1), where f is `distance` in the middle and changes by `change`."""
        s = self.sharpness
        start, end = (torch.sigmoid(s * (distance + side * change / 2)) for side in (-1, 1))
        return ((start - end + EPS) / (start + EPS)).clamp(0, 1 - EPS)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient (N, 3) of f by central differences; what learns from it learns from all six neighbours."""
        eps, radius = self._eps(), self.options.radius
        steps = eps * torch.eye(3, device=x.device, dtype=x.dtype)
        around = (x.detach()[:, None, :] + torch.cat([steps, -steps])).clamp(-radius, radius)
        values = self.distance(around.reshape(-1, 3)).view(len(x), 6)
        # at the border a neighbour was moved: what counts is how far apart the two are
        apart = (around[:, :3] - around[:, 3:]).diagonal(dim1=1, dim2=2)
        return (values[:, :3] - values[:, 3:]) / apart.clamp(min=EPS)

    def _slope(self, cosine: Tensor) -> Tensor:
        """How f changes along the ray, <= 0; softened while `cosine` is below 1, so that no surface is lost early."""
        soft, hard = F.relu(0.5 - 0.5 * cosine), F.relu(-cosine)
        return -(soft + self.cosine * (hard - soft))

    def _eps(self) -> float:
        """Step of the differences in world units."""
        o = self.options
        if o.normal_eps != "cell":
            return o.normal_eps
        used = o.encoding.n_levels if self.used_levels is None else min(int(self.used_levels), o.encoding.n_levels)
        return 2 * o.radius / (o.encoding.base_resolution * o.encoding.per_level_scale ** (used - 1))

    def _encode(self, x: Tensor) -> Tensor:
        return self._coarse(self.encoding(self._unit(x)))
