"""Signed distance field with the volume rendering of NeuS (Wang et al. 2021, arXiv 2106.10689).

f(x) is the distance to the surface, negative inside. The opacity of a ray interval is the relative decrease of Phi(s f)
on it, where Phi is the sigmoid and s a trained sharpness. It is converted to a density, which the renderer composites
as it does for other fields. The occupancy grid and the mesh extraction need a density that does not depend on a ray:
s Phi(-s f), the limit for short intervals of a ray perpendicular to the surface.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.config import at
from threedgen.representations.base import ParameterGroup, Regulariser
from threedgen.representations.losses import eikonal
from threedgen.representations.options import SDFConfig

from .mlp import MLP
from .ngp import EncodedField, central_differences

EPS = 1e-5  # lower bound of denominators


class SDF(EncodedField):
    """Signed distance field in the cube [-radius, radius]^3, rendered as in NeuS. At first it is a ball.

    A call maps world points (N, 3) to densities (N,) and features (N, n_features). The renderer calls `along_ray`
    instead, because NeuS's opacity depends on the ray. The distance is f(x) = mlp(encoding(x)) + |x| - sphere, where
    the option `sphere` is the radius of the ball. The CPU generator `generator` initialises the parameters.

    The parameter `log_sharpness` is log s, where s is NeuS's sharpness: the surface is about 1/s thick. The buffer
    `cosine` is NeuS's cosine annealing ratio r in [0, 1]. `before_step` sets it to the option `cosine`, which by
    default grows from 0 at the start of training to 1 at its end.

    Along a ray, f changes with the slope c, the cosine of the angle between ray and outward normal. For the opacity,
    `along_ray` replaces c by min(0, c) for r = 1, (c - 1) / 2 for r = 0, and a linear mix of both for other r. So as
    long as r is below 1, surfaces that face away from the camera (c > 0) are visible too, and training keeps them.
    """

    options: SDFConfig
    cosine: Tensor

    def __init__(self, options: SDFConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(options or SDFConfig(), generator)
        o, inputs = self.options, self.encoding.output_dim
        self.sdf_mlp = MLP(inputs, 1, o.width, o.hidden_layers, generator, self.backend)
        self.feature_mlp = MLP(inputs, o.n_features, o.width, o.hidden_layers, generator, self.backend)
        self.log_sharpness = nn.Parameter(torch.tensor(o.log_sharpness))
        self.register_buffer("cosine", torch.tensor(0.0))
        self.before_step(0, 1)

    def parameter_groups(self) -> list[ParameterGroup]:
        encoding, networks = super().parameter_groups()
        if self.options.lr_sharpness is None:  # the optimizer states of older checkpoints have these two groups
            return [encoding, networks]
        others = [parameter for parameter in networks.parameters if parameter is not self.log_sharpness]
        sharpness = ParameterGroup("sharpness", [self.log_sharpness], "lr_sharpness")
        return [encoding, networks._replace(parameters=others), sharpness]

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        super().before_step(step, max_steps)
        self.cosine.fill_(at(self.options.cosine, step, max_steps))

    def regularisers(self) -> dict[str, Regulariser]:
        return {"eikonal": eikonal}

    @property
    def sharpness(self) -> Tensor:
        """NeuS's sharpness s, a scalar in 1 / world unit, at most 1e6: the surface is about 1 / s thick."""
        return self.log_sharpness.exp().clamp(max=1e6)

    def distance(self, x: Tensor, encoded: Tensor | None = None) -> Tensor:
        """Return signed distances f (N,) in world units of world points x (N, 3), negative inside.

        `encoded` (N, encoding.output_dim) is the position encoding of x. None: compute it.
        """
        encoded = self._encode(x) if encoded is None else encoded
        return self.sdf_mlp(encoded)[:, 0] + torch.linalg.vector_norm(x, dim=-1) - self.options.sphere

    def density(self, x: Tensor) -> Tensor:
        """Return densities s sigmoid(-s f) (N,), in 1 / world unit, at world points x (N, 3).

        s is the sharpness, f the signed distance.
        """
        s = self.sharpness
        return s * torch.sigmoid(-s * self.distance(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.density(x), self.feature_mlp(self._encode(x))

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self(x), F.normalize(self.gradient(x), dim=-1)

    def along_ray(self, x: Tensor, directions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Evaluate N ray intervals: world midpoints x (N, 3), unit ray directions (N, 3), lengths (N,) in world units.

        Returns:
            Densities (N,), for which 1 - exp(-density * length) is NeuS's opacity (eq. 13).
            Features (N, n_features).
            Outward unit normals (N, 3).
            Norms (N,) of the gradient of the signed distance, for the eikonal loss.
        """
        encoded, gradient = self._encode(x), self.gradient(x)
        gradient_norm = torch.linalg.vector_norm(gradient, dim=-1)
        normal = F.normalize(gradient, dim=-1)
        cosine = (directions * normal).sum(-1)
        # df/dt <= 0 along the ray; early training mixes in a slope that is also below 0 on back sides, to keep them
        soft, hard = F.relu(0.5 - 0.5 * cosine), F.relu(-cosine)
        slope = -(soft + self.cosine * (hard - soft))
        opacity = self.opacity(self.distance(x, encoded), slope * lengths)
        return -torch.log1p(-opacity) / lengths.clamp(min=EPS), self.feature_mlp(encoded), normal, gradient_norm

    def opacity(self, distance: Tensor, change: Tensor) -> Tensor:
        """Return NeuS's opacities (N,) in [0, 1) of N ray intervals.

        `distance` (N,) is the signed distance at the midpoint of an interval. `change` (N,) is the signed distance at
        its end minus the signed distance at its start.
        """
        s = self.sharpness
        start, end = (torch.sigmoid(s * (distance + side * change / 2)) for side in (-1, 1))
        return ((start - end + EPS) / (start + EPS)).clamp(0, 1 - EPS)

    def gradient(self, x: Tensor) -> Tensor:
        """Return gradients (N, 3) of the signed distance at world points x (N, 3) by central differences.

        The gradients are differentiable in the parameters, not in x.
        """
        return central_differences(self.distance, x, self._eps(), self.options.radius)

    def _eps(self) -> float:
        o = self.options
        if o.normal_eps != "cell":
            return o.normal_eps
        used = min(self.levels, o.encoding.n_levels)
        return 2 * o.radius / (o.encoding.base_resolution * o.encoding.per_level_scale ** (used - 1))
