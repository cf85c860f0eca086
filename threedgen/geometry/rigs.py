"""Camera rigs: random cameras and lights of training steps, and fixed orbits. `cameras.py` defines axes and angles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import pi, radians

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.config.sections import MultiviewCameraConfig, OrbitCameraConfig
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import look_at, orbit_c2w, unit_vector


@dataclass(frozen=True)
class Rig:
    """B `cameras` around an object, their `elevation`, `azimuth` and `distance` (B,), and one light position for each.

    Angles are in radians; distances and the light positions `light` (B, 3) are in world units. `n_view` consecutive
    cameras form a group. A multi-view prior (diffusion model of several views) denoises the views of a group together.
    """

    cameras: Cameras
    elevation: Tensor  # (B,) radians; elevation, azimuth and distance are before the random perturbation of the poses
    azimuth: Tensor  # (B,) radians
    distance: Tensor  # (B,) from the origin, world units
    light: Tensor  # (B, 3) world position of the point light of each camera
    n_view: int = 1  # number of cameras per group

    def groups(self) -> "list[Rig]":
        rigs = []
        for k in torch.arange(len(self.cameras)).split(self.n_view):
            columns = (column[k] for column in (self.elevation, self.azimuth, self.distance, self.light))
            elevation, azimuth, distance, light = columns
            rigs.append(Rig(self.cameras.select(k), elevation, azimuth, distance, light, self.n_view))
        return rigs


def orbit(
    n: int, elevation: float, distance: float, fov: float, height: int, width: int, azimuth: float = 0.0
) -> Cameras:
    """Place `n` cameras evenly on a horizontal circle around the origin, counter-clockwise seen from above.

    The first camera is at `azimuth` (0: +x). Elevation, azimuth and vertical `fov` are in radians, the distance from
    the origin in world units, height and width of the images in pixels.
    """
    azimuths = torch.linspace(0.0, 2 * pi, n + 1)[:n] + azimuth
    c2w = orbit_c2w(torch.full((n,), float(elevation)), azimuths, torch.full((n,), float(distance)))
    return Cameras(c2w, Projection.perspective(torch.full((n,), float(fov)), height, width), height, width)


def ring_rig(
    groups: int, n_view: int, elevations: Sequence[float], distance: float, fov: float, size: int, azimuth: float = 0.0
) -> Rig:
    """Place G = `groups` rings of `n_view` cameras around the origin, at different elevations.

    Each ring is turned against the ring before it by 1/G of the angle between neighbouring cameras of a ring, so that
    the azimuths of all cameras are equally spaced. A ring is a group of consecutive cameras. The lights are at the
    cameras.

    Args:
        elevations: lowest and highest elevation in degrees. Ring k is at the fraction (0.5 + 0.618 k) mod 1 of this
            range, so the first ring is in its middle.
        distance, fov: distance of the cameras from the origin in world units, and field of view in degrees.
        size: edge of the square images in pixels.
        azimuth: azimuth of the first camera in radians; 0 is +x.
    """
    ring = torch.arange(groups)
    low, high = elevations
    elevation = torch.deg2rad(low + (high - low) * ((0.5 + ring * 0.618034) % 1)).repeat_interleave(n_view)
    azimuths = azimuth + (2 * pi * (torch.arange(n_view) + (ring / groups)[:, None]) / n_view).flatten()
    distances, fovs = (torch.full_like(azimuths, value) for value in (distance, radians(fov)))
    cameras = Cameras(orbit_c2w(elevation, azimuths, distances), Projection.perspective(fovs, size, size), size, size)
    return Rig(cameras, elevation, azimuths, distances, cameras.position, n_view)


def turntable(options: OrbitCameraConfig, n: int | None = None) -> Cameras:
    """Return evenly spaced cameras on a horizontal circle around the origin, with azimuth 0 (+x) for the first one.

    Elevation, distance, field of view and image size are those of `options`. `n` is the number of cameras; None:
    `options.n_view`.
    """
    elevation, fov = radians(options.elevation), radians(options.fov)
    return orbit(n or options.n_view, elevation, options.distance, fov, options.height, options.width)


LIGHT_DISTANCE_RANGE = (0.8, 1.5)
RigSampler = Callable[..., Rig]
"""Function that samples the training cameras of a step. `sample_multiview` is the default and defines the arguments.

Plug-ins register such a function as kind `camera`.
"""


def sample_multiview(
    options: MultiviewCameraConfig,
    generator: torch.Generator,
    step: int,
    *,
    n_groups: int = 1,
    height: int = 64,
    width: int = 64,
) -> Rig:
    """Sample `n_groups` groups of `options.n_view` cameras around the origin, with one light per camera.

    The cameras of a group have the same random elevation, distance and field of view, and evenly spaced azimuths. Their
    positions, look-at points and up vectors are then shifted at random, equally for the whole group
    (`options.camera_perturb`, `center_perturb` and `up_perturb`). Each light is 0.8 to 1.5 world units from the origin,
    in a random direction around that of its camera (`options.light_sample_strategy`).

    Args:
        options: ranges of the cameras and sizes of the shifts.
        generator: random generator; the cameras are on its device.
        step: training step. If `options.progressive_until` is not 0, the ranges of elevation and azimuth widen linearly
            with the step. At step 0, they are only `options.progressive_elevation` and the azimuth 0 (+x); from the
            step `options.progressive_until` on, they are `options.elevation_range` and all azimuths.
        n_groups: number of groups.
        height, width: image size in pixels.
    """
    ramp = min(1.0, step / options.progressive_until) if options.progressive_until else 1.0
    return rig_from_random_inputs(options, sample_random_inputs(options, n_groups, generator), height, width, ramp)


def sample_random_inputs(options: MultiviewCameraConfig, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return a dict of the random tensors from which `rig_from_random_inputs` computes `n` groups of cameras.

    Uniform in [0, 1):

    - elevation, azimuth, fov, distance, zoom and light_distance, (n,) each: positions in the ranges of these values;
    - camera_perturb (n, 3): shift of the camera positions;
    - light_azimuth and light_elevation (n,): direction of the lights, only with `options.light_sample_strategy`
      magic3d;
    - elevation_coin, a scalar for all groups: below 0.5, elevations are uniform in the angle, else uniform on the
      sphere.

    Standard normal, (n, 3) each:

    - center_perturb and up_perturb: shifts of the look-at points and of the up vectors;
    - light_direction: shift of the lights, only with `options.light_sample_strategy` dreamfusion.
    """
    uniform, gaussian = (partial(f, generator=generator, device=generator.device) for f in (torch.rand, torch.randn))
    inputs = {"elevation_coin": uniform(())}
    inputs |= {name: uniform(n) for name in ("elevation", "azimuth", "fov", "distance", "zoom")}
    inputs |= {"camera_perturb": uniform(n, 3), "center_perturb": gaussian(n, 3), "up_perturb": gaussian(n, 3)}
    inputs["light_distance"] = uniform(n)
    if options.light_sample_strategy == "magic3d":
        return inputs | {"light_azimuth": uniform(n), "light_elevation": uniform(n)}
    return inputs | {"light_direction": gaussian(n, 3)}


def rig_from_random_inputs(
    options: MultiviewCameraConfig, inputs: Mapping[str, Tensor], height: int, width: int, ramp: float = 1.0
) -> Rig:
    """Compute cameras and lights from random numbers, the result `inputs` of `sample_random_inputs` for n groups.

    The result has n groups of `options.n_view` cameras, whose images have height x width pixels. `ramp` in [0, 1]
    scales the ranges of elevation and azimuth: 0 gives only the azimuth 0 (+x) and the elevation
    `options.progressive_elevation`, 1 gives the ranges in `options`.
    """
    n_view = options.n_view
    elevation = _elevation(options, inputs, ramp)
    # one random offset per group, equally spaced cameras
    view = torch.arange(n_view, device=elevation.device)
    turn = (inputs["azimuth"][:, None] + view) / n_view
    azimuth = (_lerp(_ramped((-180.0, 180.0), 0.0, ramp), turn) * (pi / 180)).flatten()
    fov = _lerp(options.fov_range, inputs["fov"]) * (pi / 180)
    distance = _lerp(options.distance_range, inputs["distance"])
    if options.relative_distance:
        distance = distance / torch.tan(0.5 * fov)
    fov = fov * _lerp(options.zoom_range, inputs["zoom"])
    elevation, fov, distance = (values.repeat_interleave(n_view) for values in (elevation, fov, distance))
    shift, center, tilt = (
        inputs[f"{name}_perturb"].repeat_interleave(n_view, dim=0) for name in ("camera", "center", "up")
    )
    position = distance[:, None] * unit_vector(elevation, azimuth)
    position = position + options.camera_perturb * (2 * shift - 1)
    up = position.new_tensor([0.0, 0.0, 1.0]) + options.up_perturb * tilt
    c2w = look_at(position, options.center_perturb * center, up)
    cameras = Cameras(c2w, Projection.perspective(fov, height, width), height, width)
    return Rig(cameras, elevation, azimuth, distance, _light(options, inputs, position), n_view)


def _lerp(bounds: tuple[float, float], weight: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * weight


def _ramped(bounds: tuple[float, float], start: float, ramp: float) -> tuple[float, float]:
    return (1 - ramp) * start + ramp * bounds[0], (1 - ramp) * start + ramp * bounds[1]


def _elevation(options: MultiviewCameraConfig, inputs: Mapping[str, Tensor], ramp: float) -> Tensor:
    # elevations (n_groups,) in radians; the coin selects a distribution that is uniform in angle, or on the sphere
    bounds = _ramped(options.elevation_range, options.progressive_elevation, ramp)
    uniform = inputs["elevation"]
    if float(inputs["elevation_coin"]) < 0.5:
        return _lerp(bounds, uniform) * (pi / 180)
    if options.elevation_reference:
        # threestudio maps angles, not their sines, to [0, 1]: 0..30 degrees become 0..19.5.
        sines = [2 * (degrees + 90) / 180 - 1 for degrees in bounds]
    else:
        sines = torch.sin(torch.tensor(bounds, dtype=torch.float64) * (pi / 180)).tolist()
    return torch.asin(_lerp((sines[0], sines[1]), uniform))


def _light(options: MultiviewCameraConfig, inputs: Mapping[str, Tensor], position: Tensor) -> Tensor:
    # light positions (B, 3), relative to the cameras at `position` (B, 3), with one offset per group
    n_view = options.n_view
    distance = _lerp(LIGHT_DISTANCE_RANGE, inputs["light_distance"])
    distance = distance.repeat_interleave(n_view)[:, None]
    if options.light_sample_strategy == "dreamfusion":
        offset = inputs["light_direction"].repeat_interleave(n_view, dim=0)
        return normalize(position + offset, dim=-1) * distance
    # Magic3D: within 60 degrees of the camera's direction, in a frame whose z axis is that direction.
    # threestudio samples only half of the azimuths, so that its light is never above the camera.
    azimuth = (inputs["light_azimuth"] * (1 if options.light_reference else 2) * pi).repeat_interleave(n_view)
    elevation = (inputs["light_elevation"] * pi / 3 + pi / 6).repeat_interleave(n_view)
    z = normalize(position, dim=-1)
    x = normalize(torch.stack([z[:, 1], -z[:, 0], torch.zeros_like(z[:, 0])], dim=-1), dim=-1)
    y = torch.linalg.cross(z, x, dim=-1)
    frame = torch.stack([x, y, z], dim=-1)
    return (frame @ (unit_vector(elevation, azimuth) * distance)[..., None])[..., 0]
