"""3D Gaussians (Kerbl et al. 2023, arXiv 2308.04079) in plain torch, for renders of about 64 pixels.

    python launch.py --plugin docs/plugins/blobs.py field.name=blobs \\
        prompt="a red penguin"

A short version of the built-in field.name=gaussians: all Gaussians are composited at all pixels, without tiles, so
memory is pixels x Gaussians. Their number changes: Gaussians with a large position gradient are split, transparent ones
are removed.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from threedgen.config import Scheduled
from threedgen.config.registry import register
from threedgen.representations.base import ParameterGroup, Render, Representation, resize_parameter
from threedgen.representations.options import FieldConfig
from threedgen.representations.shading import ALBEDO

PARAMETERS = ("means", "log_scales", "rotations", "opacity_logits", "features")
BLUR = 0.3
"""Added to the variance of a projected Gaussian, in square pixels, so that none is smaller than a pixel."""


class BlobsConfig(FieldConfig):
    """3D Gaussians, split and removed during training (arXiv 2308.04079)."""

    has_normals: ClassVar[bool] = False
    losses: ClassVar[dict[str, str]] = {"blob_size": "weight of the mean size of the Gaussians"}

    name: Literal["blobs"] = "blobs"
    radius: float = Field(1.0, gt=0, description="half the side of the object's cube, world units")
    count: int = Field(300, ge=1, description="initial number of Gaussians")
    max_count: int = Field(1000, ge=1, description="maximum number of Gaussians")
    interval: int = Field(50, ge=1, description="steps between densifications")
    split_gradient: float = Field(0.0002, gt=0, description="mean gradient of a position that splits a Gaussian")
    min_opacity: float = Field(0.02, ge=0, lt=1, description="opacity below which a Gaussian is removed")
    lr_means: Scheduled = Field(0.005, ge=0, description="learning rate of the positions")
    lr_shapes: Scheduled = Field(0.01, ge=0, description="learning rate of sizes, rotations and opacities")
    lr_colours: Scheduled = Field(0.02, ge=0, description="learning rate of the colours")


class Blobs(Representation):
    """N Gaussians with means (N, 3), log_scales (N, 3), rotations (N, 4), opacity_logits (N, 1), features (N, 3)."""

    rasterised = True
    variable_shapes = (*PARAMETERS, "gradient_sum", "gradient_steps")

    def __init__(self, options: BlobsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.options, n = options, options.count
        directions = normalize(torch.randn(n, 3, generator=generator), dim=-1)
        distance = 0.5 * options.radius * torch.rand(n, 1, generator=generator) ** (1 / 3)
        self.means = nn.Parameter(directions * distance)
        self.log_scales = nn.Parameter(torch.full((n, 3), 0.07 * options.radius).log())
        self.rotations = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1))
        self.opacity_logits = nn.Parameter(torch.full((n, 1), -1.0))
        self.features = nn.Parameter(0.1 * torch.randn(n, 3, generator=generator))
        self.register_buffer("gradient_sum", torch.zeros(n))
        self.register_buffer("gradient_steps", torch.zeros(n))

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return three groups; their learning rates are options of this representation."""
        shapes = [self.log_scales, self.rotations, self.opacity_logits]
        return [
            ParameterGroup("means", [self.means], "lr_means"),
            ParameterGroup("shapes", shapes, "lr_shapes"),
            ParameterGroup("colours", [self.features], "lr_colours"),
        ]

    def regularisers(self):
        """Return the mean size of the Gaussians, in world units."""
        return {"blob_size": lambda render: self.log_scales.exp().mean()}

    # --- densification

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Sum up position gradients; every `interval` steps split and remove Gaussians."""
        if self.means.grad is not None:
            norm = self.means.grad.norm(dim=-1)
            self.gradient_sum += norm
            self.gradient_steps += norm > 0
        if (step + 1) % self.options.interval == 0:
            self.densify(step, optimizer)

    def densify(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Replace each Gaussian with a large gradient by two smaller ones; remove the transparent ones."""
        o = self.options
        gradient = self.gradient_sum / self.gradient_steps.clamp(min=1)
        visible = self.opacity_logits[:, 0].sigmoid() >= o.min_opacity
        if not visible.any():
            return
        room = max(0, o.max_count - int(visible.sum()))
        largest = (gradient * visible).argsort(descending=True)[:room]
        split = torch.zeros_like(visible)
        split[largest] = visible[largest] & (gradient[largest] > o.split_gradient)
        kept, parents = (visible & ~split).nonzero()[:, 0], split.nonzero()[:, 0].repeat(2)
        noise = torch.randn(len(parents), 3, generator=torch.Generator().manual_seed(step)).to(self.means)
        added = {name: getattr(self, name).detach()[parents] for name in PARAMETERS}
        added["means"] = added["means"] + noise * added["log_scales"].exp()
        added["log_scales"] = added["log_scales"] - 0.47  # divided by 1.6, as in the paper
        for name in PARAMETERS:
            resize_parameter(self, name, optimizer, kept, added[name])
        self.gradient_sum, self.gradient_steps = (self.means.new_zeros(len(self.means)) for _ in range(2))

    # --- rendering

    def render(self, cameras, background, material, *, generator=None, training=False, light=None, shading=ALBEDO):
        """Render all pixels (B H W, ...) of B cameras."""
        cameras = cameras.to(self.means.device)
        _, directions = (rays.reshape(-1, 3) for rays in cameras.rays())
        background_rgb = background(directions, training=training, generator=generator)
        colours = material(self.features)
        columns = torch.cat([self.composite(cameras.select([k]), colours) for k in range(len(cameras))])
        rgb_fg, opacity, depth, square = columns.split([3, 1, 1, 1], dim=-1)
        return Render(
            rgb=rgb_fg + background_rgb * (1 - opacity),
            rgb_fg=rgb_fg,
            background=background_rgb,
            opacity=opacity,
            depth=depth,
            z_variance=square - depth**2 * (2 - opacity),  # sum w (t - depth)^2
            extra={"depth_square": square},
        )

    def composite(self, camera, colours: Tensor) -> Tensor:
        """Return colour, opacity, depth and squared depth (H W, 6) of one camera, front to back."""
        pixel_means, z = (part[0] for part in camera.project(self.means))
        order = z.detach().argsort()
        order = order[z.detach()[order] > 0.01]
        inverse = torch.linalg.inv(self.covariances(camera)[order])
        y, x = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
        centres = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).to(self.means) + 0.5
        offset = centres - pixel_means[order]
        exponent = -0.5 * self.quadratic(offset, inverse)
        alpha = (self.opacity_logits[order, 0].sigmoid() * exponent.exp()).clamp(max=0.99)
        before = torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], dim=1)
        weights = alpha * before.cumprod(dim=1)
        distance = (self.means[order] - camera.position).norm(dim=-1, keepdim=True)
        values = torch.cat([colours[order], torch.ones_like(distance), distance, distance**2], dim=-1)
        return weights @ values

    @staticmethod
    def quadratic(offset: Tensor, matrix: Tensor) -> Tensor:
        """Return d^T M d of offsets (P, N, 2) and matrices (N, 2, 2), (P, N)."""
        return (offset.square() * matrix.diagonal(dim1=1, dim2=2)).sum(-1) + 2 * offset.prod(-1) * matrix[:, 0, 1]

    def covariances(self, camera) -> Tensor:
        """Return the covariances (N, 2, 2) of the projected Gaussians, in pixels (EWA splatting)."""
        w, x, y, z = normalize(self.rotations, dim=-1).unbind(-1)
        rows = [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
        ]
        axes = torch.stack(rows, dim=-2) * self.log_scales.exp()[:, None, :]
        to_camera = camera.c2w[0, :3, :3].T * camera.c2w.new_tensor([[1.0], [-1.0], [-1.0]])  # x right, y down, z ahead
        a, b, c = ((self.means - camera.position) @ to_camera.T).unbind(-1)
        c, zero, K = c.clamp(min=0.01), torch.zeros_like(a), camera.K[0]
        jacobian = torch.stack(
            [
                torch.stack([K[0, 0] / c, zero, -K[0, 0] * a / c**2], dim=-1),
                torch.stack([zero, K[1, 1] / c, -K[1, 1] * b / c**2], dim=-1),
            ],
            dim=-2,
        )
        projected = jacobian @ to_camera @ axes
        return projected @ projected.mT + BLUR * torch.eye(2, device=projected.device)


register("representation", "blobs", f"{__name__}:Blobs", f"{__name__}:BlobsConfig")
