"""Poses, orbits, multi-view rigs, rays and projection: the only place where camera conventions live.

World: right-handed, z up; azimuth 0 is +x and grows counter-clockwise seen from above. ``c2w`` (4,4) has
OpenGL axes: x right, y up, the camera looks along -z. Pixel centres are at +0.5: the first at (0.5, 0.5).
Radians everywhere; options are in degrees. ``fov`` is vertical, and pixels are square.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import pi, radians
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.config.sections import MultiviewCameraConfig, OrbitCameraConfig
from threedgen.geometry.poses import look_at, orbit_c2w, projection_matrix, unit_vector, world_to_camera, wrap_angle

__all__ = [
    "Cameras",
    "cameras_from_draws",
    "draw",
    "look_at",
    "orbit",
    "orbit_c2w",
    "projection_matrix",
    "sample_multiview",
    "turntable",
    "unit_vector",
    "world_to_camera",
    "wrap_angle",
]

PERTURBATIONS = ("camera_perturb", "center_perturb", "up_perturb")


@dataclass(frozen=True)
class Cameras:
    """B cameras: B / ``n_view`` groups, the views of a group consecutive. Angles (B,) in radians.

    ``elevation``, ``azimuth`` and ``distance`` are those asked for, before perturbations of ``c2w``;
    ``light`` (B,3) is the point light of each view.
    """

    c2w: Tensor
    fov: Tensor
    height: int
    width: int
    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    light: Tensor
    n_view: int = 1

    def __post_init__(self) -> None:
        if len(self.c2w) % self.n_view:
            raise ValueError(f"{len(self.c2w)} cameras are not whole groups of {self.n_view} views")

    def __len__(self) -> int:
        return len(self.c2w)

    @property
    def position(self) -> Tensor:
        """Centres of projection (B,3)."""
        return self.c2w[:, :3, 3]

    @property
    def focal(self) -> Tensor:
        """Focal length in pixels (B,), the same for both axes."""
        return 0.5 * self.height / torch.tan(0.5 * self.fov)

    def to(self, device: torch.device | str) -> Cameras:
        return self._each(lambda tensor: tensor.to(device))

    def with_size(self, height: int, width: int) -> Cameras:
        """The same views in another resolution."""
        return replace(self, height=height, width=width)

    def select(self, index: slice | Sequence[int] | Tensor, n_view: int = 1) -> Cameras:
        """Some of the cameras, by default as independent views."""
        return replace(replace(self, n_view=1)._each(lambda tensor: tensor[index]), n_view=n_view)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Cameras:
        fields: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **fields)

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions (B,H,W,3) through the pixel centres."""
        device = self.c2w.device
        x = torch.arange(self.width, device=device) + 0.5
        y = torch.arange(self.height, device=device) + 0.5
        pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        directions = normalize(self._directions(pixels.expand(len(self), -1, -1, -1).flatten(1, 2)), dim=-1)
        directions = directions.unflatten(1, (self.height, self.width))
        return self.position[:, None, None].expand_as(directions), directions

    def _directions(self, pixels: Tensor) -> Tensor:
        """World directions (B,N,3), with length 1 along the viewing axis, through ``pixels`` (B,N,2)."""
        size = pixels.new_tensor([self.width, self.height])
        plane = (pixels - size / 2) / self.focal[:, None, None]
        local = torch.stack([plane[..., 0], -plane[..., 1], -torch.ones_like(plane[..., 0])], dim=-1)
        return local @ self.c2w[:, :3, :3].mT

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World ``points`` (N,3) or (B,N,3) -> pixels (B,N,2) as (x, y), depth (B,N) along the viewing axis.

        Depth is positive in front of the camera; pixels of points behind it mean nothing.
        """
        local = (points - self.position[:, None]) @ self.c2w[:, :3, :3]
        depth = -local[..., 2]
        plane = torch.stack([local[..., 0], -local[..., 1]], dim=-1) / depth[..., None]
        size = plane.new_tensor([self.width, self.height])
        return plane * self.focal[:, None, None] + size / 2, depth

    def unproject(self, pixels: Tensor, depth: Tensor, along_ray: bool = False) -> Tensor:
        """World points (B,N,3) seen at ``pixels`` (N,2) or (B,N,2) with ``depth`` (B,N).

        Depth counts along the viewing axis, or, with ``along_ray``, from the camera to the point (which is
        what volume rendering gives).
        """
        directions = self._directions(pixels.expand(len(self), -1, -1))
        directions = normalize(directions, dim=-1) if along_ray else directions
        return self.position[:, None] + depth[..., None] * directions

    def mvp(self, near: float = 0.1, far: float = 1000.0) -> Tensor:
        """World -> clip space (B,4,4) for rasterisers whose rows run downwards."""
        return projection_matrix(self.fov, self.width / self.height, near, far) @ world_to_camera(self.c2w)


def orbit(
    n: int,
    elevation: float,
    distance: float,
    fov: float,
    height: int,
    width: int,
    azimuth: float = 0.0,
    closed: bool = False,
) -> Cameras:
    """``n`` views evenly around the object, the first at ``azimuth``, the light at each camera; one group.

    ``closed`` repeats the first view at the end, as the reference's test orbit does; a loop must not.
    """
    turn = torch.linspace(0.0, 2 * pi, n if closed else n + 1)[:n]
    ring, steep, far = turn + azimuth, torch.full((n,), float(elevation)), torch.full((n,), float(distance))
    c2w, fovs = orbit_c2w(steep, ring, far), torch.full((n,), float(fov))
    return Cameras(c2w, fovs, height, width, steep, ring, far, c2w[:, :3, 3].clone(), n)


def turntable(options: OrbitCameraConfig, n: int | None = None) -> Cameras:
    """The orbit that ``options`` describe, with ``n`` views instead of theirs if given."""
    start, steep, fov = radians(options.azimuth), radians(options.elevation), radians(options.fov)
    return orbit(n or options.n_view, steep, options.distance, fov, options.height, options.width, start)


def sample_multiview(
    options: MultiviewCameraConfig,
    generator: torch.Generator,
    step: int,
    *,
    n_groups: int = 1,
    height: int = 64,
    width: int = 64,
) -> Cameras:
    """``n_groups`` x ``options.n_view`` training cameras, on the generator's device.

    ``step`` matters only while the ranges grow (``options.progressive_until`` > 0).
    """
    ramp = min(1.0, step / options.progressive_until) if options.progressive_until else 1.0
    return cameras_from_draws(options, draw(options, n_groups, generator), height, width, ramp)


def draw(options: MultiviewCameraConfig, n_groups: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Everything random about ``n_groups`` groups, before any geometry.

    Uniform in [0,1): ``elevation_coin`` (), one for the whole batch; ``camera_perturb`` (n_groups,3); the
    others (n_groups,). Unit Gaussian (n_groups,3): ``center_perturb``, ``up_perturb``, ``light_direction``
    (dreamfusion; magic3d has the uniform ``light_azimuth`` and ``light_elevation`` instead).
    """
    device, n = generator.device, n_groups

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    draws = {"elevation_coin": uniform()}
    draws |= {name: uniform(n) for name in ("elevation", "azimuth", "fov", "distance", "zoom")}
    draws |= {"camera_perturb": uniform(n, 3), "center_perturb": gaussian(n, 3), "up_perturb": gaussian(n, 3)}
    draws["light_distance"] = uniform(n)
    if options.light_sample_strategy == "magic3d":
        return draws | {"light_azimuth": uniform(n), "light_elevation": uniform(n)}
    return draws | {"light_direction": gaussian(n, 3)}


def cameras_from_draws(
    options: MultiviewCameraConfig, draws: Mapping[str, Tensor], height: int, width: int, ramp: float = 1.0
) -> Cameras:
    """The geometry of ``draw``'s numbers. ``ramp`` in [0,1] widens elevation and azimuth from the front view.

    The reference has ramp 0 in its very first batch: four equal cameras. Here that happens only if asked for.
    """
    n_view = options.n_view
    elevation = _elevation(options, draws, ramp)
    azimuth = _azimuth(options, draws["azimuth"], ramp).flatten()
    fov = _between(options.fov_range, draws["fov"]) * (pi / 180)
    distance = _between(options.distance_range, draws["distance"])
    if options.relative_distance:
        distance = distance / torch.tan(0.5 * fov)
    fov = fov * _between(options.zoom_range, draws["zoom"])
    elevation, fov, distance = (part.repeat_interleave(n_view) for part in (elevation, fov, distance))
    shaken = {name: draws[name].repeat_interleave(n_view, dim=0) for name in PERTURBATIONS}
    position = distance[:, None] * unit_vector(elevation, azimuth)
    position = position + options.camera_perturb * (2 * shaken["camera_perturb"] - 1)
    up = position.new_tensor([0.0, 0.0, 1.0]) + options.up_perturb * shaken["up_perturb"]
    c2w = look_at(position, options.center_perturb * shaken["center_perturb"], up)
    light = _light(options, draws, position)
    return Cameras(c2w, fov, height, width, elevation, azimuth, distance, light, n_view)


def _between(bounds: tuple[float, float], share: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * share


def _ramped(bounds: tuple[float, float], start: float, ramp: float) -> tuple[float, float]:
    return (1 - ramp) * start + ramp * bounds[0], (1 - ramp) * start + ramp * bounds[1]


def _elevation(options: MultiviewCameraConfig, draws: Mapping[str, Tensor], ramp: float) -> Tensor:
    """Radians (n_groups,). The coin: uniform in angle, or uniform on the sphere, that is, in the sine."""
    bounds = _ramped(options.elevation_range, options.progressive_elevation, ramp)
    share = draws["elevation"]
    if float(draws["elevation_coin"]) < 0.5:
        return _between(bounds, share) * (pi / 180)
    if options.elevation_reference:
        # The reference maps angles, not their sines, to [0,1]: 0..30 degrees come out as 0..19.5.
        sines = [2 * (degrees + 90) / 180 - 1 for degrees in bounds]
    else:
        sines = torch.sin(torch.tensor(bounds, dtype=torch.float64) * (pi / 180)).tolist()
    return torch.asin(_between((sines[0], sines[1]), share))


def _azimuth(options: MultiviewCameraConfig, share: Tensor, ramp: float) -> Tensor:
    """Radians (n_groups, n_view): one offset a group, the views at equal distances."""
    bounds = _ramped(options.azimuth_range, 0.0, ramp)
    view = torch.arange(options.n_view, device=share.device)
    return _between(bounds, (share[:, None] + view) / options.n_view) * (pi / 180)


def _light(options: MultiviewCameraConfig, draws: Mapping[str, Tensor], position: Tensor) -> Tensor:
    """Point lights (B,3): one draw a group, placed relative to each view's own camera."""
    n_view = options.n_view
    distance = _between(options.light_distance_range, draws["light_distance"])
    distance = distance.repeat_interleave(n_view)[:, None]
    if options.light_sample_strategy == "dreamfusion":
        offset = draws["light_direction"].repeat_interleave(n_view, dim=0) * options.light_position_perturb
        return normalize(position + offset, dim=-1) * distance
    # Magic3D: within 60 degrees of the camera's direction, in a frame whose z axis is that direction.
    # The reference turns by half a circle only, on which the light never is above the camera.
    azimuth = (draws["light_azimuth"] * (1 if options.light_reference else 2) * pi).repeat_interleave(n_view)
    elevation = (draws["light_elevation"] * pi / 3 + pi / 6).repeat_interleave(n_view)
    z = normalize(position, dim=-1)
    x = normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros_like(z[:, 0])], dim=-1), dim=-1)
    y = torch.linalg.cross(z, x, dim=-1)
    frame = torch.stack([x, y, z], dim=-1)
    return (frame @ (unit_vector(elevation, azimuth) * distance)[..., None])[..., 0]
