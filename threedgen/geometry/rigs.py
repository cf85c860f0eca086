"""Rigs: the cameras of a training step with what else is drawn for them, and rings of cameras to look from.

The conventions are those of ``threedgen.geometry.cameras``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import pi, radians

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.config.sections import MultiviewCameraConfig, OrbitCameraConfig
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import look_at, orbit_c2w, unit_vector

PERTURBATIONS = ("camera_perturb", "center_perturb", "up_perturb")


@dataclass(frozen=True)
class Rig:
    """Cameras around an object in B / ``n_view`` groups, the views of a group consecutive. Angles (B,) in radians.

    ``elevation``, ``azimuth`` and ``distance`` are those asked for, before perturbations of the poses; ``light``
    (B,3) is the point light of each view.
    """

    cameras: Cameras
    elevation: Tensor
    azimuth: Tensor
    distance: Tensor
    light: Tensor
    n_view: int = 1

    def groups(self) -> list[Rig]:
        """The groups, each as a rig of its own."""

        def part(k: Tensor) -> Rig:
            cameras, n_view = self.cameras.select(k), self.n_view
            return Rig(cameras, self.elevation[k], self.azimuth[k], self.distance[k], self.light[k], n_view)

        return [part(k) for k in torch.arange(len(self.cameras)).split(self.n_view)]


def orbit(
    n: int, elevation: float, distance: float, fov: float, height: int, width: int, azimuth: float = 0.0
) -> Cameras:
    """Places ``n`` cameras evenly around the object, the first at ``azimuth``; angles in radians."""
    turn = torch.linspace(0.0, 2 * pi, n + 1)[:n]
    ring, steep, far = turn + azimuth, torch.full((n,), float(elevation)), torch.full((n,), float(distance))
    projection = Projection.perspective(torch.full((n,), float(fov)), height, width)
    return Cameras(orbit_c2w(steep, ring, far), projection, height, width)


def surround(options: OrbitCameraConfig, groups: int, n_view: int, elevations: tuple[float, float], size: int) -> Rig:
    """Places ``groups`` rings of ``n_view`` cameras, each turned a little further, so that all azimuths are at equal
    distances; elevations (degrees) of successive rings are spread over their range. Distance and fov as ``options``."""
    ring = torch.arange(groups)
    low, high = elevations
    elevation = torch.deg2rad(low + (high - low) * (ring * 0.618034 % 1)).repeat_interleave(n_view)
    azimuth = (2 * pi * (torch.arange(n_view) + (ring / groups)[:, None]) / n_view).flatten()
    distance, fov = (torch.full_like(azimuth, value) for value in (options.distance, radians(options.fov)))
    cameras = Cameras(orbit_c2w(elevation, azimuth, distance), Projection.perspective(fov, size, size), size, size)
    return Rig(cameras, elevation, azimuth, distance, cameras.position, n_view)


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
) -> Rig:
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
    n = n_groups
    uniform, gaussian = (partial(f, generator=generator, device=generator.device) for f in (torch.rand, torch.randn))
    draws = {"elevation_coin": uniform(())}
    draws |= {name: uniform(n) for name in ("elevation", "azimuth", "fov", "distance", "zoom")}
    draws |= {"camera_perturb": uniform(n, 3), "center_perturb": gaussian(n, 3), "up_perturb": gaussian(n, 3)}
    draws["light_distance"] = uniform(n)
    if options.light_sample_strategy == "magic3d":
        return draws | {"light_azimuth": uniform(n), "light_elevation": uniform(n)}
    return draws | {"light_direction": gaussian(n, 3)}


def cameras_from_draws(
    options: MultiviewCameraConfig, draws: Mapping[str, Tensor], height: int, width: int, ramp: float = 1.0
) -> Rig:
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
    cameras = Cameras(c2w, Projection.perspective(fov, height, width), height, width)
    return Rig(cameras, elevation, azimuth, distance, _light(options, draws, position), n_view)


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
