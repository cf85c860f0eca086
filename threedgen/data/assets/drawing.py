"""An asset is read, put into the ball that the toybox's objects fill, and rendered in rings of views."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.data.coloured_mesh import ColouredMesh, centred, read_mesh
from threedgen.data.toybox.builder import RADIUS
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.mesh_file import LARGEST, PLY_HEADER, gltf_tree
from threedgen.geometry.poses import orbit_array
from threedgen.run.arrays import Array
from threedgen.run.seeding import numpy_generator

from .listing import Asset
from .options import ViewsConfig

MOST = 5_000_000
"""Triangles of an asset."""
PLAIN, ANIMATED = "it has no colours: it is white", "it is animated: its first pose is taken"


class Read(NamedTuple):
    """A mesh in the ball of ``RADIUS``, its front at +x, and what is to be said of it."""

    mesh: ColouredMesh
    notes: tuple[str, ...]


def read_asset(folder: Path, asset: Asset) -> Read:
    """Raises ConfigError, one sentence, for a file that is broken, empty or enormous."""
    path = folder / asset.file
    count, animated = look_into(path)
    if count > MOST:
        raise ConfigError(f"it has {count:,} triangles, and {MOST:,} are the most: simplify it first")
    try:
        mesh = read_mesh(path, asset.up)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), "it", 1)) from None
    if (count := len(mesh.corners)) > MOST:  # of parts that are there many times
        raise ConfigError(f"it has {count:,} triangles, and {MOST:,} are the most: simplify it first")
    c, s = np.cos(np.deg2rad(asset.turn)), np.sin(np.deg2rad(asset.turn))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    mesh = centred(mesh.moved(lambda corners: corners @ turn.T), RADIUS)
    return Read(mesh, tuple(note for note, true in ((PLAIN, mesh.plain), (ANIMATED, animated)) if true))


def look_into(path: Path) -> tuple[int, bool]:
    """The number of triangles that a file tells of, 0 if it cannot be told, and whether they move. Raises ConfigError
    for a file that cannot be read at all."""
    try:
        data = read_bytes(path, LARGEST)
    except OSError as error:
        raise ConfigError(f"it cannot be read ({error.strerror})") from None
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
        return 0, False  # whoever reads it will say what is wrong


def _gltf_triangles(tree: Any) -> int:
    """Of all meshes, as often as nodes show them."""
    shown = Counter(node["mesh"] for node in tree.get("nodes", []) if "mesh" in node)

    def corners(part: Any) -> int:
        return int(tree["accessors"][part.get("indices", part["attributes"]["POSITION"])]["count"])

    return sum(
        times * sum(corners(part) // 3 for part in tree["meshes"][mesh]["primitives"]) for mesh, times in shown.items()
    )


def cameras(options: ViewsConfig, seed: int, name: str) -> Cameras:
    """Those of an asset: ring after ring, the first view of each from the front. Distances are of the ball of radius 1,
    as for the toybox."""
    o, rng = options, numpy_generator(seed, 0, f"views of {name}")
    fov, elevation = (np.deg2rad(rng.uniform(*bounds, o.rings)) for bounds in (o.fov, o.elevation))
    distance = rng.uniform(*o.relative_distance, o.rings) / np.tan(fov / 2)
    azimuth = np.tile(2 * np.pi * np.arange(o.azimuths) / o.azimuths, o.rings)
    fov, elevation, distance = (np.repeat(part, o.azimuths) for part in (fov, elevation, distance))
    projection = Projection.perspective(torch.from_numpy(fov).float(), o.size, o.size)
    return Cameras(torch.from_numpy(orbit_array(elevation, azimuth, distance)), projection, o.size, o.size)


def draw(mesh: ColouredMesh, at: Cameras, options: ViewsConfig) -> Array:
    """RGBA (V, H, W, 4) in [0, 1], colours not multiplied by their opacity."""
    return mesh.photograph(at, None, options.light)
