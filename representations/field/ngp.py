"""Instant-NGP field: a position encoding, followed by small MLPs for density and features.

The state dict equals that of threestudio's "implicit-volume", with other names: `density_mlp.` for `density_network.`
and `feature_mlp.` for `feature_network.`. `encoding.table` is tiny-cuda-nn's flat parameter vector, reshaped to
(entries, F) with F features per entry.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import at, registry
from threedgen.representations.base import ParameterGroup, Representation
from threedgen.representations.field.mlp import MLP
from threedgen.representations.hashgrid.encoding import HashGrid, position_gradient
from threedgen.representations.options import EncodedFieldConfig, NGPConfig


def exp_linear(x: Tensor) -> Tensor:
    """Return exp(x), replaced for x > 15 by the tangent at 15, so that values and gradients do not overflow."""
    return torch.exp(x.clamp(max=15)) * (1 + F.relu(x - 15))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"softplus": F.softplus, "exp": exp_linear, "relu": F.relu}
MIN_SPACING = 1e-5  # lower bound of the distance of two neighbours, world units


def central_differences(f: Callable[[Tensor], Tensor], x: Tensor, eps: float, radius: float) -> Tensor:
    """Return the gradients (N, 3) of a function at points, by central differences.

    The result is differentiable in the parameters of `f`, but not in x.

    Args:
        f: maps points (M, 3) to values (M,).
        x: (N, 3) points in world units.
        eps: difference step in world units.
        radius: neighbours of x are clamped to the cube [-radius, radius]^3.
    """
    steps = eps * torch.eye(3, device=x.device, dtype=x.dtype)
    neighbours = (x.detach()[:, None, :] + torch.cat([steps, -steps])).clamp(-radius, radius)
    values = f(neighbours.reshape(-1, 3)).view(len(x), 6)
    # the clamp may have moved a neighbour: divide by the actual distance of the pair
    spacing = (neighbours[:, :3] - neighbours[:, 3:]).diagonal(dim1=1, dim2=2)
    return (values[:, :3] - values[:, 3:]) / spacing.clamp(min=MIN_SPACING)


def finite_difference_normal(density: Callable[[Tensor], Tensor], x: Tensor, eps: float, radius: float) -> Tensor:
    """Return outward unit normals (N, 3) at world points x (N, 3): the negative density gradient, normalised.

    The gradient is computed by central differences of `density`, a function from points (M, 3) to densities (M,), at
    neighbours of x. These are `eps` world units away, and clamped to the cube [-radius, radius]^3. Where the gradient
    is shorter than 1e-12, the normal is shorter than 1. Where the gradient is 0, the normal is 0.
    """
    return -F.normalize(central_differences(density, x, eps, radius), dim=-1)


class EncodedField(Representation):
    """Base class of fields in the cube [-radius, radius]^3 whose MLPs take a position encoding as input.

    A subclass adds its MLPs and implements `forward`, `density` and `with_normal`; `_encode(x)` returns the encoding
    (N, encoding.output_dim) of points (N, 3). The CPU generator `generator` initialises the parameters. The option
    `levels`, a number or a schedule, limits how many levels of the hash grid are active, coarsest first; the features
    of the others are 0.
    """

    options: EncodedFieldConfig
    encoding: HashGrid
    backend: str  # back end of hash grid and MLPs
    used_levels: Tensor | None  # () int64 buffer, number of active hash grid levels; None: all
    levels: int  # number of active hash grid levels, readable without waiting for a GPU; 0 for other encodings

    def __init__(self, options: EncodedFieldConfig, generator: torch.Generator | None) -> None:
        super().__init__()
        self.options = o = options
        self.encoding = registry.build("encoding", o.encoding, generator=generator)
        self.backend = getattr(o.encoding, "backend", "auto")
        self.levels = getattr(o.encoding, "n_levels", 0) if o.levels is None else int(at(o.levels, 0, 1))
        self.register_buffer("used_levels", None if o.levels is None else torch.tensor(self.levels))

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        if self.used_levels is not None:
            self.levels = int(self.used_levels)

    def parameter_groups(self) -> list[ParameterGroup]:
        encoding = list(self.encoding.parameters())
        networks = [parameter for name, parameter in self.named_parameters() if not name.startswith("encoding.")]
        return [ParameterGroup("encoding", encoding, "encoding"), ParameterGroup("networks", networks, "networks")]

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        if self.used_levels is not None and self.options.levels is not None:
            self.levels = int(at(self.options.levels, step, max_steps))
            self.used_levels.fill_(self.levels)

    def _unit(self, x: Tensor) -> Tensor:
        return (x + self.options.radius) / (2 * self.options.radius)

    def _mask_levels(self, encoded: Tensor) -> Tensor:
        # zeros for inactive levels (Li et al. 2023, "Neuralangelo", section 3.2)
        if self.used_levels is None:
            return encoded
        level = torch.arange(encoded.shape[1], device=encoded.device) // self.options.encoding.n_features
        return encoded * (level < self.used_levels)

    def _encode(self, x: Tensor) -> Tensor:
        return self._mask_levels(self.encoding(self._unit(x)))


class NGP(EncodedField):
    """Instant-NGP field: density and features of points in [-radius, radius]^3 (Mueller et al. 2022).

    The density is density_scale * activation(density_mlp(encoding(x)) + blob(x) + density_bias), where blob(x) is a
    fixed term that makes the initial density a blob at the origin. The features are feature_mlp(encoding(x)); a
    material maps them to colours. With the option `shared_mlp`, `feature_mlp` is None: output 0 of `density_mlp` gives
    the density, and its other outputs are the features. Normals have gradients with respect to the parameters, not to
    x. The CPU generator `generator` initialises the parameters.
    """

    options: NGPConfig

    def __init__(self, options: NGPConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__(options or NGPConfig(), generator)
        o, inputs = self.options, self.encoding.output_dim
        self.feature_mlp: MLP | None = None
        outputs, backend = 1 + o.n_features if o.shared_mlp else 1, self.backend
        self.density_mlp = MLP(inputs, outputs, o.width, o.hidden_layers, generator, backend)
        if not o.shared_mlp:
            layers = o.feature_hidden_layers or o.hidden_layers
            self.feature_mlp = MLP(inputs, o.n_features, o.width, layers, generator, backend)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, features = self._heads(self._encode(x))
        return self._sigma(raw, x), features

    def density(self, x: Tensor) -> Tensor:
        return self._sigma(self.density_mlp(self._encode(x), n_out=1)[:, 0], x)

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, training = x.detach(), torch.is_grad_enabled()
        unit = self._unit(x)
        encoded = self.encoding(unit)
        with torch.enable_grad():
            if not encoded.requires_grad:
                encoded.requires_grad_()
            raw, features = self._heads(self._mask_levels(encoded))
            sigma = self._sigma(raw, x)
            grad_encoded, grad_raw = torch.autograd.grad(
                sigma.sum(), (encoded, raw), retain_graph=training, create_graph=training
            )
            leaf = x.clone().requires_grad_()
            grad_blob = torch.autograd.grad(self._blob(leaf).sum(), leaf)[0]
        gradient = position_gradient(self.encoding, unit, grad_encoded) / (2 * self.options.radius)
        normal = -F.normalize(gradient + grad_raw[:, None] * grad_blob, dim=-1)
        return (sigma, features, normal) if training else (sigma.detach(), features.detach(), normal)

    def _heads(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        if self.feature_mlp is None:
            both = self.density_mlp(encoded)
            return both[:, 0], both[:, 1:]
        return self.density_mlp(encoded)[:, 0], self.feature_mlp(encoded)

    def _sigma(self, raw: Tensor, x: Tensor) -> Tensor:
        o = self.options
        return o.density_scale * ACTIVATIONS[o.density_activation](raw + self._blob(x) + o.density_bias)

    def _blob(self, x: Tensor) -> Tensor:
        # term (N,), added before the activation, that makes the initial density a blob at the origin
        o = self.options
        if o.density_blob == "blob_magic3d":
            return o.density_blob_scale * (1 - torch.linalg.vector_norm(x, dim=-1) / o.density_blob_std)
        if o.density_blob == "blob_dreamfusion":
            return o.density_blob_scale * torch.exp(-0.5 * x.square().sum(dim=-1) / o.density_blob_std**2)
        return 0 * x[:, 0]
