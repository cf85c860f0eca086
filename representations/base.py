"""Interface of representations, backgrounds and materials, and the result of rendering them.

A representation is what a run optimises. It renders in one of two ways:

    rasterised = False: rays are marched through the functions of points (`forward`, `density`, `with_normal`).
    rasterised = True: the method `render` returns whole images.

A rasterised representation needs no density: its mesh is then extracted from rendered depth. Its config
(`options.FieldConfig`) declares whether it has normals, and the names of its own losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras

from .losses import distortion
from .march import Samples
from .shading import ALBEDO, Shading


class Background(Protocol):
    """Map of unit directions (R, 3) to colours (R, 3) in [0, 1]; an nn.Module if it has parameters."""

    def __call__(
        self, directions: Tensor, *, training: bool = False, generator: torch.Generator | None = None
    ) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


class Material(Protocol):
    """Map of features (N, F) to colours (N, 3) in [0, 1], unlit or lit by a point light."""

    def sample_shading(
        self, step: int = 0, training: bool = False, generator: torch.Generator | None = None
    ) -> Shading: ...

    def __call__(
        self,
        features: Tensor,
        normal: Tensor | None = None,
        position: Tensor | None = None,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Tensor: ...


@dataclass
class Render:
    """Render of R rays, B * H * W for whole images. Distances in world units along the ray, colours in [0, 1].

    Attributes:
        rgb: (R, 3) rgb_fg + background * (1 - opacity).
        rgb_fg, background: (R, 3) foreground composited on black, and background colour.
        opacity: (R, 1) sum of weights.
        depth: (R, 1) sum of weight * distance, not divided by the opacity.
        z_variance: (R, 1), see `march.depth_variance`.
        samples: packed samples along the rays, or None if no rays were marched.
        normal: (R, 3) opacity * (unit normal + 1) / 2, or None without normals.
        orientation: (R, 1) sum of `losses.orientation_terms`, or None without normals.
        eikonal: (R, 1) sum of the samples' eikonal errors (`losses.eikonal`), or None without a distance field.
        weights, normals: (N,) and (N, 3) per sample, or None in a chunked render.
        surface: vertices (N, 3) and faces (F, 3) of a mesh, or None.
        extra: further channels (R, C) of a representation, by name.
    """

    rgb: Tensor
    rgb_fg: Tensor
    background: Tensor
    opacity: Tensor
    depth: Tensor
    z_variance: Tensor
    shading: Shading = ALBEDO
    samples: Samples | None = None
    normal: Tensor | None = None
    orientation: Tensor | None = None
    eikonal: Tensor | None = None
    weights: Tensor | None = None
    normals: Tensor | None = None
    surface: tuple[Tensor, Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def n_samples(self) -> int:
        """Number of samples along all rays; 0 if no rays were marched."""
        return 0 if self.samples is None else len(self.samples)

    def distortion(self, span: float) -> Tensor | None:
        """Return the distortion loss (`losses.distortion`), or None without samples or in a chunked render."""
        s = self.samples
        if self.weights is None or s is None:
            return None
        return distortion(self.weights, s.t_start, s.t_end, s.ray_index, s.start, span)


class ParameterGroup(NamedTuple):
    """Parameters with one learning rate.

    Attributes:
        learning_rate: key of the learning rate in the section `optimizer`, else in the representation's own section.
    """

    name: str
    parameters: list[nn.Parameter]
    learning_rate: str


Regulariser = Callable[[Render], Tensor]
"""Loss of a render, a scalar that is differentiable in the parameters."""


class Representation(nn.Module):
    """Base of all representations.

    Attributes:
        rasterised: True if `render` returns whole images, False if rays are marched.
        variable_shapes: parameters and buffers whose first dimension changes during training, by name.
        along_ray: query used instead of `forward` where the density depends on the ray (`sdf.SDF.along_ray`), or None.
    """

    rasterised: ClassVar[bool] = False
    variable_shapes: ClassVar[tuple[str, ...]] = ()
    along_ray: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    # --- training

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters in groups, always in the same order; by default one group `networks`."""
        return [ParameterGroup("networks", list(self.parameters()), "networks")]

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        """Prepare a step, for example set scheduled options. A step may be prepared twice."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Change the representation after an optimizer step, for example add and remove parameters.

        State that decides the change belongs in buffers, and randomness in a generator keyed by `step`, so that a
        resumed run makes the same change. See `resize_parameter`.
        """

    def regularisers(self) -> Mapping[str, Regulariser]:
        """Return the representation's own losses by name; their weights are the keys `losses` of its config."""
        return {}

    def resize(self, state: Mapping[str, Tensor]) -> None:
        """Give `variable_shapes` the shapes of a state dict. Call before `load_state_dict` and before the optimizer."""
        for name in self.variable_shapes:
            old, stored = getattr(self, name), state.get(name)
            if isinstance(stored, Tensor) and stored.shape != old.shape and stored.shape[1:] == old.shape[1:]:
                new = old.detach().new_zeros(stored.shape)
                setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    def init_from(self, other: nn.Module) -> None:
        """Copy all parameters of a trained representation. Raises ConfigError for another class or other shapes."""
        if type(self) is type(other):
            self.resize(other.state_dict())
        one, two = ({k: tuple(v.shape) for k, v in part.state_dict().items()} for part in (self, other))
        if type(self) is not type(other) or one != two:
            sizes = " with other sizes" if type(self) is type(other) else ""
            raise ConfigError(
                f"{type(self).__name__} cannot be initialised from {type(other).__name__}{sizes}. "
                "Use the field of the previous stage with the same sizes.",
                "stages",
            )
        self.load_state_dict(other.state_dict())

    # --- rendering

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return density (N,) and features (N, F) of points x (N, 3) in world units."""
        raise NotImplementedError(f"{type(self).__name__} is not a function of points")

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,) >= 0 of points x (N, 3) in world units."""
        raise NotImplementedError(f"{type(self).__name__} has no density")

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return density (N,), features (N, F) and outward unit normals (N, 3) of points x (N, 3)."""
        raise NotImplementedError(f"{type(self).__name__} has no normals")

    def render(
        self,
        cameras: Cameras,
        background: Background,
        material: Material,
        *,
        generator: torch.Generator | None = None,
        training: bool = False,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Render:
        """Render all pixels (B H W, ...) of B cameras, for `rasterised` representations.

        Args:
            generator: CPU generator of the background in training.
            light: (B, 3) positions of point lights; None: at the cameras.
        """
        raise NotImplementedError(f"{type(self).__name__} is not rasterised")


def resize_parameter(
    module: nn.Module, name: str, optimizer: torch.optim.Optimizer, kept: Tensor, added: Tensor
) -> None:
    """Keep some rows of a parameter and append new ones, in the module and in the optimizer.

    The optimizer's state is kept for kept rows and zero for added ones.

    Args:
        kept: indices (K,) of the rows that stay.
        added: (A, ...) values of the new rows.
    """
    old = getattr(module, name)
    new = nn.Parameter(torch.cat([old.detach()[kept], added.to(old)]), requires_grad=old.requires_grad)
    setattr(module, name, new)
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[new] = {
            key: torch.cat([value[kept], value.new_zeros(added.shape)])
            if isinstance(value, Tensor) and value.shape == old.shape
            else value
            for key, value in state.items()
        }
