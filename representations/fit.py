"""Fit of an Instant-NGP field to views of one scene, for the 3D consistency score of the 3DiM paper (section 7.4).

3DiM is a diffusion model that samples new views of an object. Colours do not depend on the viewing direction, so the
field cannot reproduce inconsistent views. The fit scales the scene so that the ball around the origin that contains the
object has radius 1, so no setting depends on the unit of the camera positions. `Bounds` has the radius of this ball
before scaling, and the distances on a ray between which samples are placed, as in the paper.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from threedgen.config import at
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.views import Views, border_pixels
from threedgen.run.memory import keep_freed_memory
from threedgen.run.seeding import generator

from . import losses
from .base import Render
from .field.background import SolidBackground
from .field.ngp import NGP
from .march import step_size
from .options import NGPConfig, SolidBackgroundConfig
from .shading import Material
from .volume.options import MarchConfig, OccupancyConfig, ProtocolConfig
from .volume.render import OccupancyGrid, render

BETAS, EPS = (0.9, 0.99), 1e-15
"""Adam's betas and epsilon as in Instant-NGP. The small epsilon suits the small gradients of a hash grid."""
DENSITY_LAYERS, COLOUR_LAYERS = 1, 2  # number of hidden layers of the density MLP and of the colour MLP
WEIGHT_DECAY, MAX_GRADIENT_NORM = 0.1, 1.0
DISTORTION_WEIGHT = 0.01  # weight of the distortion loss (Mip-NeRF 360); unspecified in the paper of 3DiM
OCCUPANCY = OccupancyConfig(interval=8, decay=0.7, warmup=10_000)
"""Options of an occupancy grid with frequent updates and fast decay, since a fit takes about a thousand steps."""


class Bounds(NamedTuple):
    """Extent of a scene, in the unit of the camera positions.

    Attributes:
        radius: radius of the ball around the origin that contains the object.
        near, far: distances from the camera to the first and to the last sample on a ray.
    """

    radius: float
    near: float
    far: float

    @classmethod
    def from_cameras(cls, cameras: Cameras) -> "Bounds":
        """Return the bounds of a scene from all cameras of the scene, including those of held-out views.

            radius = min(d_max tan a, d_max / 2)      ball around the origin, as large as what the images show
            near = d_min (1 - 1.25 radius / d_max)    d - 1.25 radius, if all cameras have the same distance d
            far = d_max + radius                      end of the ball, seen from the farthest camera

        d_min and d_max are the smallest and the largest distance of a camera from the origin, and a is the largest
        angle between the viewing axis and a corner of the image. In the plane through the origin, an image shows at
        most d_max tan a on each side. As the radius is at most d_max / 2, `near` is at least 3/8 d_min.
        """
        distance, K = cameras.position.norm(dim=-1), cameras.K
        corner = torch.stack([cameras.width / K[:, 0, 0], cameras.height / K[:, 1, 1]], -1).norm(dim=-1) / 2
        fraction = min(1.0, float(2 * corner.max()))
        radius = fraction * float(distance.max()) / 2
        return cls(radius, (1 - 5 * fraction / 8) * float(distance.min()), float(distance.max()) + radius)

    @property
    def span(self) -> float:
        """Length of the sampled part of a ray, divided by the radius of the scene's ball: (far - near) / radius."""
        return (self.far - self.near) / self.radius


class SceneField:
    """Instant-NGP field of one scene, with the background, occupancy grid and ray marching options of its renders.

    The parameters are initialised from `seed`; the function `fit` trains them. `options` set the size of the networks,
    the samples per ray, and the training. `bounds` is the radius of the ball around the origin that contains the
    object, and the distances from the camera to the first and last sample. The background has the uniform colour
    `colour` (3,) in [0, 1]. Renders are computed on `device`.
    """

    def __init__(self, options: ProtocolConfig, bounds: Bounds, colour: Tensor, seed: int, device: str = "cpu") -> None:
        self.options, self.bounds, self.device = options, bounds, torch.device(device)
        self.march = MarchConfig(
            samples=options.samples, bound="sphere", radius=1.0, near=bounds.near / bounds.radius, chunk=None
        )
        network = NGPConfig(
            encoding=options.encoding,
            width=options.width,
            hidden_layers=DENSITY_LAYERS,
            feature_hidden_layers=COLOUR_LAYERS,
            density_activation="exp",
            density_blob="none",
        )
        self.field = NGP(network, generator(seed, 0, "consistency field")).to(self.device)
        red, green, blue = colour.tolist()
        self.background = SolidBackground(SolidBackgroundConfig(color=(red, green, blue))).to(self.device)
        self.occupancy = OccupancyGrid(OCCUPANCY, 1.0, step_size(self.march)).to(self.device)

    def rays(self, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Return the rays of all pixels of N cameras: origins and unit directions, (N * H * W, 3) each.

        They are ordered by camera, row and column. Origins are in units of the scene ball's radius (`Bounds.radius`).
        """
        origins, directions = (part.reshape(-1, 3).to(self.device) for part in cameras.rays())
        return origins / self.bounds.radius, directions

    def render_rays(
        self, origins: Tensor, directions: Tensor, rng: torch.Generator | None = None, normals: bool = False
    ) -> Render:
        """Render R rays with origins (R, 3), in units of the scene ball's radius, and unit directions (R, 3).

        If `normals` is True, the render has normals. In training, the CPU generator `rng` shifts the samples randomly.
        For evaluation, `rng` is None and nothing is random.
        """
        parts = (self.field, self.background, Material(), self.occupancy, self.march)
        return render(*parts, origins, directions, generator=rng, training=rng is not None, need_normals=normals)

    @torch.no_grad()
    def render_images(self, cameras: Cameras) -> Tensor:
        """Return renders (N, H, W, 3) in [0, 1] of N cameras."""
        rays = (part.split(self.options.chunk) for part in self.rays(cameras))
        rgb = torch.cat([self.render_rays(*part).rgb for part in zip(*rays, strict=True)])
        return rgb.view(len(cameras), cameras.height, cameras.width, 3)


def fit(views: Views, bounds: Bounds, options: ProtocolConfig, seed: int, device: str = "cpu") -> SceneField:
    """Train an Instant-NGP field on views of one scene and return it. Equal seeds give equal fields.

    The rays and colours of all pixels stay in memory: 36 bytes per pixel.

    Args:
        bounds: bounds of the scene, from all its cameras (`Bounds.from_cameras`), also those of held-out views.
        options: options of the training. The autograd graph holds at most `options.chunk` rays at a time.
        device: "cpu", "cuda", or "auto" for a GPU if one is available.
    """
    keep_freed_memory()
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    scene = SceneField(options, bounds, border_colour(views), seed, device)
    origins, directions = scene.rays(views.cameras)
    colours = views.images.reshape(-1, 3).to(device)
    parameters = list(scene.field.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
    for step in range(options.steps):
        rng = generator(seed, step, "consistency step")
        scene.occupancy.update(scene.field.density, step, rng)
        optimizer.param_groups[0]["lr"] = at(options.learning_rate, step, options.steps)
        optimizer.zero_grad(set_to_none=True)
        orientation = at(options.orientation, step, options.steps)
        for part, normals, fraction in _pixel_batches(options, len(colours), orientation > 0, rng):
            part = part.to(device)
            result = scene.render_rays(origins[part], directions[part], rng, normals)
            (fraction * loss(options, result, colours[part], bounds.span, orientation)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
    return scene


def loss(options: ProtocolConfig, result: Render, colours: Tensor, span: float, orientation: float) -> Tensor:
    """Return the training loss of R rendered rays, a scalar: mean squared colour error plus weighted regularisers.

    The regularisers (see `losses.py`), with the property of the render that each of them penalises:

        distortion     spread of the density along a ray; weight `DISTORTION_WEIGHT`
        sparsity       high opacity; weight `options.sparsity`
        opaque         opacity between 0 and 1 (half-transparent rays); weight `options.opaque`
        orientation    normals that face away from the camera; weight `orientation`; only for renders with normals

    Args:
        result: render of the rays, all with normals or all without. Its unit of length is the radius of the scene's
            ball.
        colours: target colours (R, 3) in [0, 1].
        span: `Bounds.span`, the length of the sampled part of a ray in the same unit. The distortion loss divides all
            distances by it.
        orientation: weight of the orientation loss in this step. `fit` splits the rays of a step into several renders,
            and only the fraction `options.normals` of the rays gets normals. In return, these have the weight
            `orientation` / `options.normals`.
    """
    total = mse_loss(result.rgb, colours)
    if (distortion := losses.distortion(result, span)) is not None:
        total = total + DISTORTION_WEIGHT * distortion
    if orientation and result.orientation is not None:
        # only the fraction `normals` of a step's rays has normals: divide, so that the step's sum is that of all rays
        total = total + orientation / options.normals * result.orientation.mean()
    if options.sparsity:
        total = total + options.sparsity * losses.sparsity(result)
    if options.opaque:
        total = total + options.opaque * losses.opaque(result)
    return total


def _pixel_batches(
    options: ProtocolConfig, pixels: int, normals: bool, rng: torch.Generator
) -> Iterator[tuple[Tensor, bool, float]]:
    # yields batches of a step's pixels: indices (K,), whether to compute normals, and fraction of the step's pixels
    if options.rays is None or options.rays >= pixels:
        indices = torch.randperm(pixels, generator=rng) if options.normals < 1 else torch.arange(pixels)
    else:
        indices = torch.randint(pixels, (options.rays,), generator=rng)
    count = max(1, round(options.normals * len(indices))) if normals else 0
    for group, with_normals in ((indices[:count], True), (indices[count:], False)):
        for chunk in group.split(options.chunk):
            if len(chunk):
                yield chunk, with_normals, len(chunk) / len(indices)


def border_colour(views: Views) -> Tensor:
    """Return the background colour (3,) in [0, 1]: the median per channel of the border pixels of all images."""
    return border_pixels(views.images).reshape(-1, 3).median(0).values.clamp(0, 1)
