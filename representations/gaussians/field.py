"""3D Gaussians as a representation: parameters, rendering, and training with density control."""

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from threedgen.geometry.cameras import Cameras
from threedgen.representations.base import ParameterGroup, Regulariser, Render, Representation
from threedgen.representations.options import GaussiansConfig
from threedgen.representations.shading import ALBEDO, Material, Shading
from threedgen.run.memory import to_device

from . import MODULES, composite, density_control, project
from .density_control import PARAMETERS
from .points import SH_0, Points, ball, points_of, read_points

SH_1 = math.sqrt(3 / (4 * math.pi))  # factor of the spherical harmonics of degree 1
MAX_FEATURE = 0.499 / SH_0  # keeps the mean colour in [0, 1], where the gradient is not zero
MIN_SIZE = 1e-4  # smallest standard deviation, as a fraction of radius


class ScreenPositions(NamedTuple):
    """Image positions of N Gaussians in the V images of one render.

    After the backward pass, Gaussians whose positions have large gradients are cloned or split.

    Attributes:
        means: (V, N, 2) positions (x, y) in pixels. The tensor retains its gradient.
        visible: (V, N) bool, True for the Gaussians that are rasterised in an image.
        half_size: (2,) half the image width and half the image height in pixels. `means.grad` * `half_size` is the
            gradient with respect to positions in [-1, 1] across the image, and so does not depend on the image size.
    """

    means: Tensor
    visible: Tensor
    half_size: Tensor


class Gaussians(Representation):
    """N anisotropic 3D Gaussians with colours from spherical harmonics (Kerbl et al. 2023, "3D Gaussian Splatting").

    The CPU generator `generator` initialises the Gaussians in a ball. No material is applied to the colours.

    Attributes:
        means: parameter (N, 3), centres in world units.
        log_scales: parameter (N, 3), logarithms of the standard deviations in world units.
        quaternions: parameter (N, 4), rotations from the Gaussians' axes to the world, real part first, of any length.
        opacity_logits: parameter (N,), logits of the opacities in (0, 1).
        features: parameter (N, K, 3), RGB coefficients of K = (sh_degree + 1)^2 spherical harmonics. A colour is 0.5 +
            the sum of coefficient * harmonic, clamped to [0, 1].
    """

    rasterised = True
    variable_shapes = (*PARAMETERS, "gradient_sum", "gradient_count")
    backends = MODULES
    gradient_sum: Tensor  # (N,) sum of the lengths of the image position gradients since the last densification
    gradient_count: Tensor  # (N,) number of views in that sum

    def __init__(self, options: GaussiansConfig | None = None, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options = o = options or GaussiansConfig()
        self.max_steps: int | None = None
        self.screen: list[ScreenPositions] = []
        self.start(ball(o.count, o.sphere, generator))

    @torch.no_grad()
    def start(self, points: Points) -> None:
        """Replace all Gaussians by isotropic ones at the given points.

        The standard deviation of a Gaussian is half the typical distance of its point to the nearest others
        (`points.spacing`), clamped to the allowed sizes. The opacity is the option `opacity`. The colours are those of
        the points, the same from all directions.
        """
        o, n = self.options, len(points.positions)
        low, high = self.size_limits
        self.means = nn.Parameter(points.positions.float())
        self.log_scales = nn.Parameter((0.5 * points.spacing).log().clamp(low, high)[:, None].repeat(1, 3))
        self.quaternions = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1))
        self.opacity_logits = nn.Parameter(torch.full((n,), o.opacity).logit())
        features = torch.zeros(n, (o.sh_degree + 1) ** 2, 3)
        features[:, 0] = ((points.colours - 0.5) / SH_0).clamp(-MAX_FEATURE, MAX_FEATURE)
        self.features = nn.Parameter(features)
        self.register_buffer("gradient_sum", torch.zeros(n))
        self.register_buffer("gradient_count", torch.zeros(n))

    @property
    def size_limits(self) -> tuple[float, float]:
        """Natural logarithms of the smallest and the largest allowed standard deviation of a Gaussian, world units."""
        o = self.options
        return math.log(MIN_SIZE * o.radius), math.log(o.max_size * o.radius)

    def init_from(self, other: Representation) -> None:
        """Start at points on the surface of a trained representation `other`, or copy `other` if it is a `Gaussians`.

        Raises ConfigError if the surface is empty, or if Gaussians to copy have tensors of other shapes.
        """
        if isinstance(other, Gaussians):
            super().init_from(other)
        else:
            self.start(points_of(other, self.options.count, self.options.radius))

    def init_from_file(self, path: Path) -> None:
        """Replace all Gaussians by isotropic ones at the points of a point cloud or the vertices of a mesh file.

        Coordinates are world units; those of Gaussian splatting files (PLY, y down) and of glTF files (y up, front +z)
        are turned to z up, front +x. Of more points than the option `max_count`, a random subset is used. Raises
        ConfigError if the file cannot be read or has no points, or if a point is farther than the option `radius` from
        the origin.
        """
        self.start(read_points(path, self.options.max_count, self.options.radius))

    # --- training

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return one group per parameter tensor. Learning rates are the options `lr_means`, `lr_scales` and so on."""
        keys = ("lr_means", "lr_scales", "lr_quaternions", "lr_opacities", "lr_colours")
        named = zip(PARAMETERS, keys, strict=True)
        return [ParameterGroup(key.removeprefix("lr_"), [getattr(self, name)], key) for name, key in named]

    def regularisers(self) -> dict[str, Regulariser]:
        """Return two losses by name, as functions from a render to a scalar (Kheradmand et al. 2024, section 3.5).

        "gaussian_opacity" is the mean opacity, "gaussian_scale" the mean standard deviation in world units.
        """
        return {
            "gaussian_opacity": lambda render: self.opacity_logits.sigmoid().mean(),
            "gaussian_scale": lambda render: self.log_scales.exp().mean(),
        }

    def before_step(self, step: int, max_steps: int | None = None) -> None:
        self.max_steps = max_steps
        self.screen.clear()

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Clamp standard deviations and colour coefficients of degree 0, then change the set of Gaussians.

        The option `densify` selects the change. Changes at intervals of steps happen only in a part of the run, from
        the first to the second number in the option `densify_range`, which are fractions of all steps.

        - "adaptive": every `interval` steps, Gaussians are cloned or split if the gradient of their image position is
          large, on average over the images that show them, and transparent ones are removed; every `reset_interval`
          steps, all opacities are reduced.
        - "mcmc": noise is added to the positions after every step; every `interval` steps, transparent Gaussians are
          moved to the places of opaque ones, and new ones are added there.
        - "none": no change.
        """
        self.log_scales.clamp_(*self.size_limits)
        self.features[:, 0].clamp_(-MAX_FEATURE, MAX_FEATURE)
        for means, visible, half_size in self.screen:
            if means.grad is not None:
                length = (means.grad * half_size * len(means)).norm(dim=-1)
                counted = visible & length.isfinite().all()  # none in a skipped step, whose gradients are not finite
                self.gradient_sum += torch.where(counted, length, 0).sum(0)
                self.gradient_count += counted.sum(0)
        self.screen.clear()
        density_control.after_step(self, step, optimizer)

    # --- rendering

    def colours(self, directions: Tensor) -> Tensor:
        """Return colours (V, N, 3) in [0, 1] for unit directions (V, N, 3) from the cameras to the Gaussians."""
        total = 0.5 + SH_0 * self.features[:, 0]
        if self.options.sh_degree:
            x, y, z = (part[..., None] for part in directions.unbind(-1))
            f = self.features
            total = total + SH_1 * (-y * f[:, 1] + z * f[:, 2] - x * f[:, 3])
        return total.clamp(0, 1).expand(directions.shape)

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
        cameras = cameras.to(self.means.device)
        _, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
        background_rgb = background(directions, training=training, generator=generator)
        with torch.autocast(self.means.device.type, enabled=False):
            columns = self._columns(cameras).flatten(0, 2)
        rgb_fg, depth, square, opacity = columns.split([3, 1, 1, 1], dim=-1)
        return Render(
            rgb=rgb_fg + background_rgb * (1 - opacity),
            rgb_fg=rgb_fg,
            background=background_rgb,
            opacity=opacity,
            depth=depth,
            z_variance=square - depth**2 * (2 - opacity),  # sum of weight * (distance - depth)^2
        )

    def _columns(self, cameras: Cameras) -> Tensor:
        # (V, H, W, 6): colour, distance, squared distance and opacity
        offset = self.means - cameras.position[:, None]
        distance = offset.norm(dim=-1, keepdim=True)
        values = torch.cat([self.colours(normalize(offset, dim=-1)), distance, distance**2], dim=-1)
        scales, opacities = self.log_scales.exp(), self.opacity_logits.sigmoid()
        splats = project(self.means, self.quaternions, scales, opacities, values, cameras)
        if splats.means.requires_grad and self.options.densify == "adaptive":
            splats.means.retain_grad()
            half_size = to_device(torch.tensor([cameras.width / 2, cameras.height / 2]), self.means.device)
            self.screen.append(ScreenPositions(splats.means, splats.extents[..., 0] > 0, half_size))
        return composite(splats, cameras.height, cameras.width, self.options.backend)
