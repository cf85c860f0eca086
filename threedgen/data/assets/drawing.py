"""Reader and renderer for user assets.

An asset is scaled into the same ball as the toybox objects and rendered in rings of views. A ring is a circle of
cameras with the same elevation, field of view and distance.
"""

from pathlib import Path

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_array
from threedgen.run.seeding import numpy_generator

from .listing import Asset
from .options import ViewsConfig


def read_asset(folder: Path, asset: Asset) -> ColouredMesh:
    """Read the mesh of an asset, turn its front to +x and scale it into the ball of radius `OBJECT_RADIUS` around the
    origin. `folder` is the folder of all assets. Raises ConfigError for a broken, empty or too large file."""
    path = folder / asset.file
    try:
        mesh = read_mesh(path, asset.up)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), "it", 1)) from None
    c, s = np.cos(np.deg2rad(asset.turn)), np.sin(np.deg2rad(asset.turn))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return fit_to_ball(mesh.map_corners(lambda corners: corners @ turn.T), OBJECT_RADIUS)


def cameras(options: ViewsConfig, seed: int, name: str) -> Cameras:
    """Sample the cameras of the asset `name`, which look at the origin. They are ordered ring by ring.

    A ring is a circle of cameras with the same elevation, field of view and distance. These are random, and depend only
    on the seed and the name. A ring starts at the front of the object (azimuth 0, +x) and continues counter-clockwise
    seen from above.
    """
    o, rng = options, numpy_generator(seed, 0, f"views of {name}")
    fov, elevation = (np.deg2rad(rng.uniform(*bounds, o.rings)) for bounds in (o.fov, o.elevation))
    distance = rng.uniform(*o.relative_distance, o.rings) / np.tan(fov / 2)
    azimuth = np.tile(2 * np.pi * np.arange(o.azimuths) / o.azimuths, o.rings)
    fov, elevation, distance = (np.repeat(part, o.azimuths) for part in (fov, elevation, distance))
    projection = Projection.perspective(torch.from_numpy(fov).float(), o.size, o.size)
    return Cameras(torch.from_numpy(orbit_array(elevation, azimuth, distance)), projection, o.size, o.size)
