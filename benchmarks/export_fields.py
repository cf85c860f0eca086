"""Radiance fields of two synthetic shapes with known ground truth and typical defects: hollow, noise, haze, floaters.

The shapes are a long-necked animal with a hat, a thin tail and whiskers, and a stool with rings. Coordinates are in
[-1, 1]^3, z up, front +x. A shape is a smooth union of primitives, whose signed distances are exact except for tapered
ones.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.export.renders import field_renderer
from threedgen.export.shape.from_field import FieldView
from threedgen.representations.march import step_size
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.representations.volume.render import OccupancyGrid

Vector = tuple[float, float, float]  # point, direction, or sRGB colour

SKIN, PEAK = 0.008, 60.0
"""Width of the density transition at the surface in world units, and density just below the surface."""
SHELL = 0.06  # depth below the surface, in world units, over which the density falls to that of the hollow interior
HAZE, HAZE_DEPTH = 1.2, 0.15
FLOATERS = 25
SMOOTH = 0.015
MARCH = MarchConfig(samples=256, early_stop=1e-3)
CELLS, EMPTY = 64, 0.05  # cells per edge of the occupancy grid, and maximum density of an empty cell


@dataclass(frozen=True)
class Primitive:
    """Coloured solid of the kind "cone", "ring" or "disc".

    A cone is a capsule from point `a` to point `b`; `sizes` are its radii at both ends. A ring or disc has its centre
    at `a` and the unit axis `b`; `sizes` are the radii of ring and tube, or the radius and half of the thickness.
    """

    kind: str
    a: Vector
    b: Vector
    sizes: tuple[float, float]
    colour: Vector

    def distance(self, x: Tensor) -> Tensor:
        """Return the signed distance (N,) of points (N, 3) to the surface of the primitive, negative inside."""
        a, b = x.new_tensor(self.a), x.new_tensor(self.b)
        if self.kind == "cone":  # capsule with a radius from sizes[0] to sizes[1]
            axis = b - a
            t = ((x - a) @ axis / (axis @ axis)).clamp(0, 1)
            return (x - a - t[:, None] * axis).norm(dim=1) - (self.sizes[0] + t * (self.sizes[1] - self.sizes[0]))
        height = (x - a) @ b
        out = (x - a - height[:, None] * b).norm(dim=1)
        if self.kind == "ring":
            return torch.hypot(out - self.sizes[0], height) - self.sizes[1]
        side, above = out - self.sizes[0], height.abs() - self.sizes[1]  # a disc
        return torch.maximum(side, above).clamp(max=0) + torch.hypot(side.clamp(min=0), above.clamp(min=0))


def _cone(a: Vector, b: Vector, first: float, last: float, colour: Vector) -> Primitive:
    return Primitive("cone", a, b, (first, last), colour)


def _ball(centre: Vector, radius: float, colour: Vector) -> Primitive:
    x, y, z = centre
    return Primitive("cone", centre, (x, y, z + 1e-3), (radius, radius), colour)


def _both(make: Callable[[int], Primitive]) -> list[Primitive]:
    """Return a primitive on the left side, make(1), at +y, and its counterpart on the right side, make(-1), at -y."""
    return [make(side) for side in (1, -1)]


BROWN, PINK, RED, BLACK, WHITE = (0.72, 0.5, 0.24), (0.9, 0.6, 0.6), (0.8, 0.1, 0.12), (0.08, 0.08, 0.1), (0.95,) * 3
UP: Vector = (0.0, 0.0, 1.0)
TAIL = ((-0.42, 0.0, 0.02), (-0.78, 0.0, 0.2))


def animal() -> list[Primitive]:
    """Return the 34 primitives of the animal.

    The thinnest parts are the tail (0.014 world units), the whiskers (0.006) and the brim of the hat (0.016).
    """
    parts = [
        _cone((-0.3, 0, -0.08), (0.22, 0, -0.05), 0.24, 0.2, BROWN),
        _cone((0.2, 0, 0.02), (0.38, 0, 0.42), 0.13, 0.08, BROWN),
        _cone((0.36, 0, 0.47), (0.58, 0, 0.42), 0.12, 0.075, BROWN),
        _ball((0.66, 0, 0.42), 0.03, BLACK),
        _cone(TAIL[0], TAIL[1], 0.007, 0.007, BROWN),
        _ball(TAIL[1], 0.025, BLACK),
        Primitive("ring", (0.29, 0, 0.22), (0.4, 0.0, math.sqrt(1 - 0.16)), (0.11, 0.03), RED),
        _cone((0.36, 0.08, 0.16), (0.4, 0.12, -0.06), 0.03, 0.02, RED),
        Primitive("disc", (0.36, 0, 0.585), UP, (0.2, 0.008), BLACK),
        Primitive("disc", (0.36, 0, 0.68), UP, (0.11, 0.1), BLACK),
        Primitive("ring", (0.36, 0, 0.61), UP, (0.112, 0.014), RED),
        _cone((0.5, 0, 0.36), (0.6, 0, 0.35), 0.02, 0.015, PINK),
    ]
    for x in (-0.3, 0.18):
        parts += _both(lambda s, x=x: _cone((x, 0.13 * s, -0.2), (x, 0.15 * s, -0.75), 0.07, 0.05, BROWN))
        parts += _both(lambda s, x=x: _cone((x, 0.15 * s, -0.78), (x + 0.05, 0.15 * s, -0.79), 0.055, 0.05, BLACK))
    parts += _both(lambda s: _cone((0.33, 0.1 * s, 0.52), (0.28, 0.22 * s, 0.56), 0.035, 0.015, PINK))
    parts += _both(lambda s: _ball((0.47, 0.085 * s, 0.49), 0.032, WHITE))
    parts += _both(lambda s: _ball((0.492, 0.098 * s, 0.495), 0.016, BLACK))
    for tilt in (-0.04, 0.0, 0.04):
        parts += _both(lambda s, t=tilt: _cone((0.6, 0.05 * s, 0.4), (0.64, 0.2 * s, 0.4 + t), 0.003, 0.003, WHITE))
    parts += _both(lambda s: _ball((-0.1, 0.17 * s, 0.04), 0.09, WHITE))
    return parts


def stool() -> list[Primitive]:
    """Return the primitives of the stool: thin legs, a seat, open rings, and a ball on the seat."""
    wood, steel = (0.5, 0.3, 0.15), (0.55, 0.6, 0.65)
    parts = [
        Primitive("disc", (0, 0, 0.2), UP, (0.45, 0.04), wood),
        Primitive("ring", (0, 0, 0.24), UP, (0.43, 0.025), RED),
        Primitive("ring", (0, 0, -0.35), UP, (0.46, 0.02), steel),
        Primitive("ring", (0.5, 0, 0.3), (0.0, 1.0, 0.0), (0.12, 0.025), steel),
        _ball((0, 0, 0.42), 0.18, (0.2, 0.55, 0.2)),
        _cone((0, 0, 0.55), (0.05, 0, 0.8), 0.012, 0.03, BROWN),
    ]
    for k in range(4):
        x, y = math.cos(math.pi / 4 + k * math.pi / 2), math.sin(math.pi / 4 + k * math.pi / 2)
        parts.append(_cone((0.33 * x, 0.33 * y, 0.18), (0.52 * x, 0.52 * y, -0.75), 0.035, 0.025, wood))
    return parts


SHAPES: dict[str, Callable[[], list[Primitive]]] = {"animal": animal, "stool": stool}


class Creature:
    """Radiance field of a shape in SHAPES. `seed` determines noise, density of the interior and floaters."""

    def __init__(self, shape: str = "animal", seed: int = 0) -> None:
        self.parts = SHAPES[shape]()
        rng = np.random.default_rng(seed)
        self.noise = torch.from_numpy(np.exp(0.35 * rng.normal(size=(1, 1, 40, 40, 40)))).float()
        self.interior = float(rng.uniform(0.05, 0.35))
        away = rng.normal(size=(FLOATERS, 3))
        away *= rng.uniform(0.75, 0.92, (FLOATERS, 1)) / np.linalg.norm(away, axis=1, keepdims=True)
        floaters = np.column_stack([away, rng.uniform(0.015, 0.035, FLOATERS), rng.uniform(5, 40, FLOATERS)])
        self.floaters = torch.from_numpy(floaters).float()

    def distance(self, x: Tensor) -> Tensor:
        """Return the signed distance (N,) of points (N, 3) to the shape with fine surface relief, negative inside."""
        total = self.parts[0].distance(x)
        for part in self.parts[1:]:
            other = part.distance(x)
            mix = (0.5 + 0.5 * (other - total) / SMOOTH).clamp(0, 1)
            total = other + mix * (total - other) - SMOOTH * mix * (1 - mix)
        relief = torch.sin(55 * x[:, 0]) * torch.sin(55 * x[:, 1]) * torch.sin(55 * x[:, 2])
        thick = (self.parts[0].distance(x) < 0.02).float()  # only on the large part, as the relief would cut thin parts
        return total + 0.004 * relief * thick

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,), per world unit, at points (N, 3)."""
        distance = self.distance(x)
        shell = self.interior + (1 - self.interior) * torch.exp(-((distance.clamp(max=0) / SHELL) ** 2))
        haze = HAZE * torch.exp(-distance.clamp(min=0) / HAZE_DEPTH)
        sigma = (PEAK * torch.sigmoid(-distance / SKIN) * shell + haze) * _read(self.noise, x.flip(-1))[:, 0]
        for cx, cy, cz, radius, peak in self.floaters.tolist():
            near = ((x - x.new_tensor([cx, cy, cz])) ** 2).sum(dim=1)
            sigma = sigma + peak * torch.exp(-near / (2 * (radius / 2) ** 2))
        return sigma

    def colour(self, x: Tensor) -> Tensor:
        """Return sRGB (N, 3) at points (N, 3): the colour of the nearest primitive, with stripes on the first one."""
        nearest = torch.stack([part.distance(x) for part in self.parts]).argmin(dim=0)
        rgb = x.new_tensor([part.colour for part in self.parts])[nearest]
        stripes = 0.85 + 0.15 * torch.sign(torch.sin(40 * x[:, 0]))
        return torch.where((nearest == 0)[:, None], rgb * stripes[:, None], rgb)


class Voxels:
    """Voxel grid of the density and colours of a `Creature`, with the interface of a representation. Queries are fast.

    Values are sampled at linspace(-1, 1, R)^3, R = `resolution`, and interpolated trilinearly. The grids sigma
    (1, 1, R, R, R) and rgb (1, 3, R, R, R) are indexed [x, y, z].
    """

    rasterised = False
    along_ray = None

    def __init__(self, creature: Creature, resolution: int) -> None:
        values = (grid(function, resolution) for function in (creature.density, creature.colour))
        self.sigma, self.rgb = (value.permute(3, 0, 1, 2)[None].contiguous() for value in values)

    def density(self, x: Tensor) -> Tensor:
        """Return the density (N,), per world unit, at points (N, 3)."""
        return _read(self.sigma, x)[:, 0]

    def colour(self, x: Tensor) -> Tensor:
        """Return sRGB (N, 3) in [0, 1] at points (N, 3)."""
        return _read(self.rgb, x)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return density (N,) and features (N, 3) at points (N, 3); the sigmoid of the features is the sRGB colour."""
        return self.density(x), torch.logit(self.colour(x), eps=1e-4)

    def parameters(self) -> Iterable[Tensor]:
        """Return an empty tuple, because the grid has no trainable parameters."""
        return ()

    def view(self) -> FieldView:
        """Return the field as the export takes it, with a renderer that skips empty space."""
        skip = OccupancyGrid(OccupancyConfig(resolution=CELLS), 1.0, step_size(MARCH))
        fullest = F.max_pool3d(F.adaptive_max_pool3d(self.sigma, CELLS), 3, 1, 1)  # neighbours share border points
        skip.binary.copy_(fullest[0, 0] > EMPTY)
        return FieldView(self.density, self.colour, 1.0, renderer=field_renderer(self, skip, MARCH))


def grid(function: Callable[[Tensor], Tensor], resolution: int) -> Tensor:
    """Evaluate a function of points (N, 3) on a grid over [-1, 1]^3 with R = `resolution` points per edge.

    Return values (R, R, R, C), indexed [x, y, z].
    """
    axis = torch.linspace(-1, 1, resolution)
    slabs = torch.cartesian_prod(axis, axis, axis).split(resolution**2)
    return torch.cat([function(slab) for slab in slabs]).view(resolution, resolution, resolution, -1)


def _read(volume: Tensor, x: Tensor) -> Tensor:
    """Interpolate a volume (1, C, X, Y, Z) trilinearly at points (N, 3) in [-1, 1]^3; return values (N, C)."""
    where = x.flip(-1).view(1, -1, 1, 1, 3)  # grid_sample expects the last axis first
    return F.grid_sample(volume, where, align_corners=True, padding_mode="border")[0, :, :, 0, 0].T
