"""Base classes and interfaces of representations and backgrounds, and the result of rendering them.

A representation is the 3D object that a run optimises. If its attribute `rasterised` is False, the volume renderer
samples points on rays and calls `forward`, `density` and `with_normal`. If True, `render` returns whole images. A
rasterised representation needs no density, because the export can extract the mesh from rendered depth images.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras

from .march import Samples
from .shading import ALBEDO, Material, Shading


@dataclass
class Render:
    """Result of rendering R rays. For whole images of B cameras, R = B * H * W, ordered by camera, row and column.

    Distances are from the camera along the ray, in world units. Colours are in [0, 1], normals in world coordinates.
    "Weight" is the compositing weight of a sample.

    Attributes:
        rgb: (R, 3) final colours, rgb_fg + background * (1 - opacity).
        rgb_fg: (R, 3) colours of the object, composited on black.
        background: (R, 3) colours of the background.
        opacity: (R, 1) sum of the weights, in [0, 1].
        depth: (R, 1) sum of weight * distance, not divided by the opacity.
        z_variance: (R, 1) sum of weight * (distance - depth)^2.
        shading: shading mode and light intensities of the render.
        samples: samples of all rays in flat arrays, or None if no rays were marched.
        normal: (R, 3) opacity * (unit normal + 1) / 2, or None if no normals were computed.
        orientation: (R, 1) sum of weight * max(0, normal . ray direction)^2 over the samples of a ray, which penalises
            normals that face away from the camera, or None if no normals were computed.
        eikonal: (R, 1) sum of (|grad f| - 1)^2 over the samples of a ray, or None if the representation is not a
            signed distance field f.
        weights: (N,) weights of all N samples, or None if the render has no samples or was computed in chunks.
        normals: (N, 3) unit normals of all N samples, or None if they were not computed or `weights` is None.
        surface: vertices (V, 3) and faces (F, 3) of the rendered mesh, or None if there is no mesh or it is empty.
        extra: channel name -> (R, C), further channels that the representation defines.
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
        return 0 if self.samples is None else len(self.samples)


class ParameterGroup(NamedTuple):
    """Parameters that share one learning rate.

    `learning_rate` is the config key of the rate. It is looked up in the section `optimizer` of the config, then in the
    section `field` (options of the representation); if both lack it, `optimizer.networks` is used.
    """

    name: str
    parameters: list[nn.Parameter]
    learning_rate: str


Field = Callable[[Tensor], Tensor]
"""Function that maps points (N, 3) in world units to values at these points."""
Regulariser = Callable[[Render], Tensor]
"""Function that maps a render to a loss: a scalar that is differentiable in the parameters of the representation."""


class Representation(nn.Module):
    """Base class of all representations. A representation is the trained 3D object, as a field, mesh or Gaussians.

    A subclass whose rays are marched implements `forward`, `density` and `with_normal`; a rasterised one implements
    `render`. The other methods have defaults.

    Attributes:
        rasterised: True if `render` returns whole images, False if rays are marched through the field.
        variable_shapes: names of the parameters and buffers whose first dimension changes during training.
        backends: name -> import path of the back ends (kernel implementations) that the option `backend` of the
            representation selects from. Empty if the representation has no such option.
        along_ray: None, or a method of a field whose density depends on the ray direction. The renderer then calls it
            in place of `forward` and `with_normal`. It maps midpoints (N, 3), directions (N, 3) and lengths (N,) of ray
            intervals to density (N,), features (N, F), normals (N, 3) and, for the eikonal loss, norms (N,) of the
            gradient of the signed distance.
    """

    rasterised: ClassVar[bool] = False
    variable_shapes: ClassVar[tuple[str, ...]] = ()
    backends: ClassVar[Mapping[str, str]] = {}
    along_ray: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    # --- training

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the optimizer's parameter groups, in a fixed order. Each parameter is in exactly one group.

        The default is one group "networks" with all parameters.
        """
        return [ParameterGroup("networks", list(self.parameters()), "networks")]

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        """Prepare training step `step` of `max_steps`, for example set options to their scheduled values.

        It is called before each step, and again if the step is repeated after it ran out of memory. Before a checkpoint
        is loaded, it is called with the number of the last step before the checkpoint. `max_steps` is needed only for
        options scheduled in percent of the run.
        """

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Change the representation after an optimizer step, for example add or remove parameters (`resize_parameter`).

        A resumed run must make the same changes: an implementation keeps its state in buffers and seeds random numbers
        with `step`.
        """

    def regularisers(self) -> Mapping[str, Regulariser]:
        """Return the losses that only this representation has: name -> function from a render to a scalar loss.

        The names are those in the attribute `losses` of the representation's config.
        """
        return {}

    def resize(self, state: Mapping[str, Tensor]) -> None:
        """Resize the tensors named in `variable_shapes` to their shapes in the state dict `state`.

        Call it before `load_state_dict`. Only the first dimension changes, and resized tensors are filled with 0.
        Tensors that `state` lacks, or that differ in another dimension, keep their shape.
        """
        for name in self.variable_shapes:
            old, stored = getattr(self, name), state.get(name)
            if isinstance(stored, Tensor) and stored.shape != old.shape and stored.shape[1:] == old.shape[1:]:
                new = old.detach().new_zeros(stored.shape)
                setattr(self, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)

    def init_from(self, other: "Representation") -> None:
        """Copy the state of a trained representation `other`. Raises ConfigError if classes or tensor shapes differ."""
        same_class = type(self) is type(other)
        if same_class:
            self.resize(other.state_dict())
        one, two = ({k: v.shape for k, v in part.state_dict().items()} for part in (self, other))
        if not same_class or one != two:
            names = f"{type(self).__name__} cannot be initialised from {type(other).__name__}"
            sizes = " with other sizes" if same_class else ""
            raise ConfigError(f"{names}{sizes}. Use the field of the run that it starts from, and its sizes", "stages")
        self.load_state_dict(other.state_dict())

    def init_from_functions(self, density: Field, colour: Field) -> None:
        """Initialise the representation from two functions of world points (N, 3).

        `density` returns densities (N,), `colour` sRGB colours (N, 3) in [0, 1]. This default raises ConfigError;
        subclasses that support such a start override it.
        """
        raise ConfigError(f"{type(self).__name__} cannot start from 3D Gaussians. Set field.name=dmtet", "start")

    def init_from_file(self, path: Path) -> None:
        """Initialise the representation from the points of a point cloud file.

        This default raises ConfigError; subclasses that support such a start override it.
        """
        raise ConfigError(f"{type(self).__name__} cannot start from a point cloud. Set field.name=gaussians", "start")

    # --- rendering

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return density (N,) >= 0, in 1 / world unit, and features (N, F) of world points x (N, 3).

        A material maps the features to colours.
        """
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,) >= 0, in 1 / world unit, of world points x (N, 3)."""
        raise NotImplementedError

    def with_normal(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return density (N,), features (N, F) and outward unit normals (N, 3) of world points x (N, 3).

        The density is in 1 / world unit, the normals are in world coordinates.
        """
        raise NotImplementedError

    def render(
        self,
        cameras: Cameras,
        background: nn.Module,
        material: Material,
        *,
        generator: torch.Generator | None = None,
        training: bool = False,
        light: Tensor | None = None,
        shading: Shading = ALBEDO,
    ) -> Render:
        """Render whole images of B cameras. Call it only if `rasterised` is True.

        The result has B * H * W pixels, ordered by camera, row and column.

        Args:
            background: returns colours (R, 3) in [0, 1], R = B * H * W; called with unit ray directions (R, 3), and
                the keyword arguments `training` and `generator`.
            material: function that maps features of surface points to colours.
            generator: CPU generator of the random background in training.
            training: if False, use no random numbers.
            light: (B, 3) world position of the point light of each camera. None places it at the camera.
            shading: shading mode and light intensities.
        """
        raise NotImplementedError


def resize_parameter(
    module: nn.Module, name: str, optimizer: torch.optim.Optimizer, kept: Tensor, added: Tensor
) -> None:
    """Replace a parameter by K of its rows followed by A new rows, in the module and in the optimizer.

    Args:
        name: name of the parameter in `module`; rows are its first dimension.
        kept: (K,) int64 indices of the rows to keep, with their optimizer state.
        added: (A, ...) values of the new rows. Their optimizer state is zero.
    """
    old = getattr(module, name)
    new = nn.Parameter(torch.cat([old.detach()[kept], added.to(old)]), requires_grad=old.requires_grad)
    setattr(module, name, new)
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, {})
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            state[key] = torch.cat([value[kept], value.new_zeros(added.shape)])
    if state:
        optimizer.state[new] = state
