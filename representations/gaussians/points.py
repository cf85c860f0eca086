"""Points with colours at which 3D Gaussians start: in a ball, from a file, or on another representation's surface."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import max_pool3d, normalize

from threedgen.config import ConfigError
from threedgen.config.errors import printable
from threedgen.config.plain_file import read_bytes
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.geometry.ply_file import read_vertices
from threedgen.geometry.submesh import check_text, in_unit_range
from threedgen.representations.base import Representation
from threedgen.run.arrays import Array
from threedgen.run.seeding import generator

NEIGHBOURS = 3  # number of nearest points whose mean distance is the spacing, as in 3D Gaussian Splatting
MAX_BYTES, MAX_TEXT_BYTES = 2 << 30, 1 << 29  # largest size of a PLY file, and of a point cloud as text
MESHES = (".glb", ".gltf", ".obj", ".off", ".stl")  # read as meshes, whose vertices are the points
GRID = 96  # grid points per axis on which the surface of a density is found
COLOUR_NOISE = 0.02  # standard deviation of the initial colours around grey
PLY_AXES = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # world (z up, front x) to splat files (y down, front z)
SH_0 = 0.28209479177387814  # spherical harmonic of degree 0: colours are 0.5 + SH_0 * f_dc


class Points(NamedTuple):
    """N points at which Gaussians start.

    Attributes:
        positions: (N, 3) in world units.
        colours: (N, 3) sRGB in [0, 1].
        spacing: (N,) typical distance to the nearest other points in world units; it sets the size of the Gaussians.
    """

    positions: Tensor
    colours: Tensor
    spacing: Tensor


def with_spacing(positions: Tensor, colours: Tensor) -> Points:
    """Create `Points` from positions (N, 3) in world units and sRGB colours (N, 3), and measure their spacing.

    The spacing of a point is its mean distance to the three nearest other points. A single point gets 0.05.
    """
    count = min(NEIGHBOURS, len(positions) - 1)
    if count < 1:
        return Points(positions, colours, torch.full((len(positions),), 0.05))
    distances, _ = cKDTree(positions.numpy()).query(positions.numpy(), k=count + 1)
    spacing = torch.from_numpy(distances[:, 1:].mean(axis=1)).float()
    return Points(positions, colours, spacing.clamp(min=1e-7))


def ball(count: int, radius: float, rng: torch.Generator | None = None) -> Points:
    """Return `count` random points in a ball around the origin, uniformly distributed, at which Gaussians start.

    The result has positions and nearly grey colours (count, 3), and the spacing (count,), which sets the size of the
    Gaussians. It is equal for all points: the cube root of (volume of the ball / `count`). `rng` is a CPU generator;
    None: torch's global one.
    """
    directions = normalize(torch.randn(count, 3, generator=rng), dim=-1)
    positions = directions * radius * torch.rand(count, 1, generator=rng) ** (1 / 3)
    colours = 0.5 + COLOUR_NOISE * torch.randn(count, 3, generator=rng)
    spacing = (4 / 3 * torch.pi * radius**3 / count) ** (1 / 3)
    return Points(positions, colours.clamp(0, 1), torch.full((count,), spacing))


def read_points(path: Path, max_count: int, radius: float) -> Points:
    """Read the points of a point cloud (PLY, XYZ), mesh (vertices) or Gaussian splatting file (PLY).

    Splatting files (y down) and glTF files (y up, front +z) are turned to the world axes (z up, front +x); other
    coordinates are kept. Points without a colour of their own, such as vertices of a textured mesh, become grey (0.5).
    If the file has more than `max_count` points, a random subset of `max_count` points is returned. Raises ConfigError
    if the file cannot be read or has no points, or if a point is not finite or farther than `radius` from the origin.
    """
    kind = path.suffix.lower()
    try:
        if kind in (".ply", ".xyz"):
            data = read_bytes(path, MAX_BYTES if kind == ".ply" else MAX_TEXT_BYTES)
            vertices, stored = _ply_points(data) if kind == ".ply" else _text_points(data)
        elif kind in MESHES:
            vertices, stored = _mesh_points(path)
        else:
            raise ConfigError(f"should be a run or a file in one of the formats .ply, .xyz, {', '.join(MESHES)}")
    except Exception as error:  # damaged files raise errors of many classes
        reason = error.problem if isinstance(error, ConfigError) else printable(error)
        raise ConfigError(f"{path} cannot be read as a point cloud: {reason}", "start", str(path)) from error
    positions = torch.from_numpy(vertices).float()
    if not len(positions):
        raise ConfigError("has no points", "start", str(path))
    if not positions.isfinite().all():
        raise ConfigError("has points that are not finite. Remove them", "start", str(path))
    far = float(positions.norm(dim=-1).max())
    if far > radius:
        problem = f"has points up to {far:.3g} from the origin. Set field.radius and march.radius to {1.1 * far:.2g}"
        raise ConfigError(problem, "start", str(path))
    colours = np.full((len(positions), 3), 0.5) if stored is None else stored
    rng = generator(0, 0, "points")
    index = torch.randperm(len(positions), generator=rng)[:max_count] if len(positions) > max_count else slice(None)
    return with_spacing(positions[index], torch.from_numpy(colours).float().clamp(0, 1)[index])


def _ply_points(data: bytes) -> tuple[Array, Array | None]:
    # positions (N, 3) and colours (N, 3), or None for a file without colours
    vertex, colours = read_vertices(data)
    positions = np.column_stack([vertex[axis] for axis in "xyz"]).astype(np.float32)
    if "f_dc_0" not in vertex:
        return positions, colours
    harmonics = np.column_stack([vertex[f"f_dc_{k}"] for k in range(3)])
    return positions @ PLY_AXES.astype(np.float32), 0.5 + SH_0 * harmonics


def _mesh_points(path: Path) -> tuple[Array, Array]:
    # vertices (N, 3) of a mesh in world axes, and their colours (N, 3); grey where they are a texture
    points, colours = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for part in read_mesh_file(path).submeshes:
        own = np.full((len(part.vertices), 3), 0.5) if part.texture or part.colours is None else part.colours
        points.append(part.vertices)
        colours.append(own[:, :3])
    axes = [2, 0, 1] if path.suffix.lower() in (".glb", ".gltf") else [0, 1, 2]  # only glTF defines its axes
    return np.concatenate(points)[:, axes].astype(np.float32), np.concatenate(colours)


def _text_points(data: bytes) -> tuple[Array, Array | None]:
    # positions (N, 3) and colours (N, 3) or None from lines "x y z" or "x y z r g b"
    text = check_text(data.replace(b",", b" ").strip())
    width = len(text.split(b"\n", 1)[0].split())
    rows = np.fromstring(text, np.float64, sep=" ").reshape(-1, width)
    return rows[:, :3].astype(np.float32), in_unit_range(rows[:, 3:6]) if width >= 6 else None


@torch.no_grad()
def points_of(field: Representation, count: int, radius: float) -> Points:
    """Sample `count` points on the surface of a trained mesh or field, with its colours and the spacing of the points.

    On a mesh, the points are uniform by area. On a field, they are random points of a grid with 96^3 points (GRID) over
    [-radius, radius]^3. With alpha = 1 - exp(-density * grid spacing), the probability of a grid point is proportional
    to its alpha minus the smallest alpha of its 26 neighbours. This difference is large at a surface, and about 0
    inside the object and in empty space. Each chosen point is shifted at random within its grid cell.

    Raises ConfigError if the mesh or field is empty, or if the representation has neither a mesh nor a density.
    """
    rng, mesh = generator(0, 0, "points"), getattr(field, "mesh", None)
    if mesh is None and type(field).density is Representation.density:
        raise ConfigError(f"{type(field).__name__} has no density to start from", "start")
    device = next(field.parameters()).device
    if mesh is not None:
        vertices, faces = mesh()
        if not len(faces):
            raise ConfigError("the mesh of the previous run is empty. Train it longer", "start")
        sampled, _ = trimesh.sample.sample_surface(trimesh.Trimesh(vertices, faces, process=False), count, seed=0)
        positions = torch.from_numpy(np.asarray(sampled, np.float32))
    else:
        axis, cell = torch.linspace(-radius, radius, GRID), 2 * radius / (GRID - 1)
        grid = torch.cartesian_prod(axis, axis, axis)
        density = torch.cat([field.density(part).float() for part in grid.to(device).split(1 << 16)]).cpu()
        alpha = (1 - torch.exp(-cell * density)).view(1, 1, GRID, GRID, GRID)
        surface = (alpha + max_pool3d(-alpha, 3, stride=1, padding=1)).clamp(min=0)  # excess over the lowest neighbour
        if not surface.sum() > 0:
            raise ConfigError("the field of the previous run is empty. Train it longer", "start")
        chosen = surface.flatten().multinomial(count, replacement=True, generator=rng)
        positions = grid[chosen] + cell * (torch.rand(count, 3, generator=rng) - 0.5)
    colours = torch.cat([field(part)[1][:, :3].sigmoid().float() for part in positions.to(device).split(1 << 16)])
    return with_spacing(positions, colours.cpu())
