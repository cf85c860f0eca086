"""Fits a field to views of one scene: it shows how much of them one object can explain.

The field is Instant-NGP without view dependence, so that what two views disagree on cannot be both; with the losses
that keep its matter on surfaces. As 3DiM's section 7.4 has it, but for what it leaves open (the grid, the weights of
the losses) and one thing: here density and colour are two networks on the same encoding. The scene is inside the ball
about the origin that the paper's bounds mean, t_n = 3 r_min / 8 and t_f = 3 r_max / 2 for cameras at distances r_min to
r_max: of radius t_f - r_max, what the farthest camera sees behind the origin. It is scaled to the unit ball, so that no
setting depends on the units of the poses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from threedgen.config import at
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import Views, borders
from threedgen.run.memory import keep_freed_memory
from threedgen.run.seeding import generator

from . import losses
from .field.background import SolidBackground
from .field.ngp import NGP
from .march import step_size
from .options import MarchConfig, NGPConfig, OccupancyConfig, ProtocolConfig, SolidBackgroundConfig
from .shading import NoMaterial
from .volume.occupancy import OccupancyGrid
from .volume.render import Render, render

BETAS, EPS = (0.9, 0.99), 1e-15
"""Adam's, as Instant-NGP has them: gradients of a hash grid are small."""
OCCUPANCY = OccupancyConfig(interval=8, decay=0.7, warmup=10_000)
"""Updated often and forgotten soon: a fit is over in some hundred steps."""


@dataclass(frozen=True)
class Bounds:
    """The ball around the scene: ``radius``; samples are taken between the distances ``near`` and ``far``; in units of
    the poses."""

    radius: float
    near: float
    far: float

    @classmethod
    def of(cls, cameras: Cameras) -> Bounds:
        """Bounds for all cameras of a scene, held-out ones included.

        A ball of half the distance; where cameras see less than that from afar, by narrow angles, the ball that they
        see, in which alone a grid has something to resolve.
        """
        distance, K = cameras.position.norm(dim=-1), cameras.K
        corner = torch.stack([cameras.width / K[:, 0, 0], cameras.height / K[:, 1, 1]], -1).norm(dim=-1) / 2
        share = min(1.0, float(2 * corner.max()))
        radius = share * float(distance.max()) / 2
        return cls(radius, (1 - 5 * share / 8) * float(distance.min()), float(distance.max()) + radius)

    @property
    def span(self) -> float:
        """t_f - t_n in units of the ball."""
        return (self.far - self.near) / self.radius


class SceneField:
    """Holds the field of one scene with all that it takes to render it."""

    def __init__(
        self, options: ProtocolConfig, bounds: Bounds, colour: Tensor, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        """``colour`` (3,) is behind the scene; ``seed`` draws the initial parameters."""
        self.options, self.bounds, self.device = options, bounds, torch.device(device)
        self.march = MarchConfig(
            samples=options.samples, bound="sphere", radius=1.0, near=bounds.near / bounds.radius, chunk=None
        )
        self.field = NGP(
            NGPConfig(
                encoding=options.encoding,
                width=options.width,
                hidden_layers=options.density_layers,
                feature_hidden_layers=options.colour_layers,
                density_activation="exp",
                density_blob="none",
            ),
            generator(seed, 0, "consistency field"),
        ).to(self.device)
        red, green, blue = colour.tolist()
        self.background = SolidBackground(SolidBackgroundConfig(color=(red, green, blue))).to(self.device)
        self.material = NoMaterial()
        self.occupancy = OccupancyGrid(OCCUPANCY, 1.0, step_size(self.march)).to(self.device)

    def rays(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Origins in units of the ball and unit directions (N * H * W, 3)."""
        origins, directions = (part.reshape(-1, 3).to(self.device) for part in cameras.rays())
        return origins / self.bounds.radius, directions

    def render_rays(
        self, origins: Tensor, directions: Tensor, rng: torch.Generator | None = None, normals: bool = False
    ) -> Render:
        """Renders rays (R, 3); in training, with ``rng``, their samples are jittered."""
        parts = (self.field, self.background, self.material, self.occupancy, self.march)
        return render(*parts, origins, directions, generator=rng, training=rng is not None, need_normals=normals)

    @torch.no_grad()
    def pictures(self, cameras: Cameras) -> Tensor:
        """Renders the views of cameras: (N, H, W, 3) in [0, 1]."""
        origins, directions = self.rays(cameras)
        parts = zip(origins.split(self.options.chunk), directions.split(self.options.chunk), strict=True)
        rgb = torch.cat([self.render_rays(*part).rgb for part in parts])
        return rgb.view(len(cameras), cameras.height, cameras.width, 3)


def fit(views: Views, bounds: Bounds, options: ProtocolConfig, seed: int, device: str = "cpu") -> SceneField:
    """Fits a field to ``views``. Everything random is drawn from ``seed``: same views, same field.

    ``device``: "cpu", "cuda", or "auto" for a GPU if there is one.
    Takes memory for the rays (36 bytes a pixel) and the graph of ``options.chunk`` of them, and keeps what it frees.
    """
    keep_freed_memory()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    scene = SceneField(options, bounds, border_colour(views), seed, device)
    origins, directions = scene.rays(views.at)
    colours = views.images.reshape(-1, 3).to(device)
    parameters = list(scene.field.parameters())
    optimizer = torch.optim.AdamW(
        parameters,
        lr=at(options.learning_rate, 0, options.steps),
        betas=BETAS,
        eps=EPS,
        weight_decay=options.weight_decay,
        fused=True,
    )
    for step in range(options.steps):
        rng = generator(seed, step, "consistency step")
        scene.occupancy.update(scene.field.density, step, rng)
        for group in optimizer.param_groups:
            group["lr"] = at(options.learning_rate, step, options.steps)
        optimizer.zero_grad(set_to_none=True)
        facing = at(options.orientation, step, options.steps)
        for part, normals, share in _parts(options, len(colours), facing > 0, rng):
            part = part.to(device)
            seen = scene.render_rays(origins[part], directions[part], rng, normals)
            (share * loss(options, seen, colours[part], bounds.span, facing)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, options.clip)
        optimizer.step()
    return scene


def loss(options: ProtocolConfig, seen: Render, colours: Tensor, span: float, facing: float) -> Tensor:
    """Sums up what is wrong with some rays, a mean over them: the squared error, matter spread along rays, matter that
    faces away (with the weight ``facing``)."""
    total = mse_loss(seen.rgb, colours)
    if options.distortion and (spread := seen.distortion(span)) is not None:
        total = total + options.distortion * spread
    if facing and seen.away is not None:
        # `normals` is the share of the rays that are asked, so that the sum over a step is that of all of them
        total = total + facing / options.normals * seen.away.mean()
    if options.sparsity:
        total = total + options.sparsity * losses.sparsity(seen.opacity)
    if options.opaque:
        total = total + options.opaque * losses.opaque(seen.opacity)
    return total


def _parts(
    options: ProtocolConfig, pixels: int, normals: bool, rng: torch.Generator
) -> Iterator[tuple[Tensor, bool, float]]:
    """Draws the pixels of a step, in parts that fit into memory: their indices, whether their normals are asked for (of
    none, or of the protocol's share), which share of the step they are."""
    if options.rays is None or options.rays >= pixels:
        chosen = torch.randperm(pixels, generator=rng) if options.normals < 1 else torch.arange(pixels)
    else:
        chosen = torch.randint(pixels, (options.rays,), generator=rng)
    asked = max(1, round(options.normals * len(chosen))) if normals else 0
    for some, with_normals in ((chosen[:asked], True), (chosen[asked:], False)):
        for part in some.split(options.chunk):
            if len(part):
                yield part, with_normals, len(part) / len(chosen)


def border_colour(views: Views) -> Tensor:
    """Takes the colour behind the scene (3,) to be the median of the pixels at the borders of its pictures."""
    return borders(views.images).reshape(-1, 3).median(0).values.clamp(0, 1)
