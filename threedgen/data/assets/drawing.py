"""Reader and renderer for user assets.

An asset is scaled into the same ball as the toybox objects and rendered in rings of views. A ring is a circle of
cameras with the same elevation, field of view and distance.
"""

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.data.coloured_mesh import ColouredMesh, fit_to_ball, read_mesh
from threedgen.data.options import OBJECT_RADIUS
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.mesh_file import MAX_BYTES, PLY_HEADER, gltf_tree
from threedgen.geometry.poses import orbit_array
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator

from .listing import Asset
from .options import ViewsConfig

MAX_TRIANGLES = 5_000_000
PLAIN, ANIMATED = "no colours: rendered white", "animated: only the first pose is used"
"""Notes to the user about an asset."""


class LoadedAsset(NamedTuple):
    """Mesh in the ball of radius `OBJECT_RADIUS`, with its front at +x, and notes about the asset for the user."""

    mesh: ColouredMesh
    notes: tuple[str, ...]


def read_asset(folder: Path, asset: Asset) -> LoadedAsset:
    """Read an asset, turn its front to +x and fit it into the ball of radius `OBJECT_RADIUS`.

    Raises ConfigError for a broken, empty or too large file.
    """
    path = folder / asset.file
    count, animated = inspect_file(path)
    _check_size(count)
    try:
        mesh = read_mesh(path, asset.up)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), "it", 1)) from None
    _check_size(len(mesh.corners))  # again, because instances multiply the triangles of the file
    c, s = np.cos(np.deg2rad(asset.turn)), np.sin(np.deg2rad(asset.turn))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    mesh = fit_to_ball(mesh.map_corners(lambda corners: corners @ turn.T), OBJECT_RADIUS)
    return LoadedAsset(mesh, tuple(note for note, true in ((PLAIN, mesh.plain), (ANIMATED, animated)) if true))


def _check_size(count: int) -> None:
    if count > MAX_TRIANGLES:
        raise ConfigError(f"too many triangles: {count:,}; the maximum is {MAX_TRIANGLES:,}")


def inspect_file(path: Path) -> tuple[int, bool]:
    """Return the number of triangles of a mesh file (0 if unknown), and whether it has animations or skins. Raises
    ConfigError for an unreadable file."""
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})") from None
    if path.suffix.lower() == ".ply":
        header = data[:PLY_HEADER].partition(b"end_header")[0].split()
        faces = [header[k + 2] for k in range(len(header) - 2) if header[k : k + 2] == [b"element", b"face"]]
        return (int(faces[0]) if faces and faces[0].isdigit() else 0), False
    if path.suffix.lower() == ".obj":
        return sum(line.count(b" ") - 2 for line in data.splitlines() if line.startswith(b"f ")), False
    try:
        tree = gltf_tree(data)
        return _gltf_triangles(tree), bool(tree.get("animations") or tree.get("skins"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return 0, False  # read_mesh raises the error


def _gltf_triangles(tree: Any) -> int:
    instances = Counter(node["mesh"] for node in tree.get("nodes", []) if "mesh" in node)

    def corners(part: Any) -> int:
        return int(tree["accessors"][part.get("indices", part["attributes"]["POSITION"])]["count"])

    return sum(
        count * sum(corners(part) // 3 for part in tree["meshes"][mesh]["primitives"])
        for mesh, count in instances.items()
    )


def cameras(options: ViewsConfig, seed: int, name: str) -> Cameras:
    """Sample the cameras of the asset `name`, which look at the origin. Views are ordered ring by ring.

    Each ring has a random elevation, field of view and distance that depend only on the seed and the name. It starts at
    the front (azimuth 0, +x) and continues counter-clockwise seen from above.
    """
    o, rng = options, numpy_generator(seed, 0, f"views of {name}")
    fov, elevation = (np.deg2rad(rng.uniform(*bounds, o.rings)) for bounds in (o.fov, o.elevation))
    distance = rng.uniform(*o.relative_distance, o.rings) / np.tan(fov / 2)
    azimuth = np.tile(2 * np.pi * np.arange(o.azimuths) / o.azimuths, o.rings)
    fov, elevation, distance = (np.repeat(part, o.azimuths) for part in (fov, elevation, distance))
    projection = Projection.perspective(torch.from_numpy(fov).float(), o.size, o.size)
    return Cameras(torch.from_numpy(orbit_array(elevation, azimuth, distance)), projection, o.size, o.size)


def render_views(mesh: ColouredMesh, at: Cameras, options: ViewsConfig) -> Array:
    """Render a mesh from V cameras: RGBA (V, H, W, 4) in [0, 1], straight alpha; shaded if `options.light`."""
    return mesh.photograph(at, None, options.light)
