"""Triangle meshes of objects and scenes: reading from files, transform to the world (z up), untextured renders."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.export.shape.mesh import TexturedMesh, vertex_normals, vertex_tangents
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.topology import area_vectors, compact, degenerate, weld
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.geometry.raster import box_downsample, interpolate, rasterise_views, unit
from threedgen.geometry.submesh import Submesh
from threedgen.guidance.priors.mvadapter.inputs import GEOMETRY_VIEWS, HALF, cameras_from_angles, geometry_maps
from threedgen.run.arrays import Array
from threedgen.train.plan import plan as train_plan

from .options import SamplingConfig

logger = logging.getLogger(__name__)

MAX_COORDINATE = 1e7  # maximum absolute coordinate in metres
MAX_RELATIVE_DISTANCE = 100
"""Maximum distance from the origin, relative to the size of an object, at which float32 vertices are exact enough."""
MIN_NORMAL_COSINE = 0.5
"""Minimum cosine between a normal of the file and the normal of its triangle; other normals are replaced."""


def axis_vector(name: str) -> Array:
    return np.eye(3)["xyz".index(name[-1])] * (-1 if name[0] == "-" else 1)


@dataclass(frozen=True)
class MeshFrame:
    """Transform of points p in a mesh file to world coordinates (z up): zoom * (scale * rotation @ p - centre).

    `rotation` turns the axes `up` and `front` of the file to +z and +x.

    Attributes:
        up, front: axes of the file that become +z and +x in the world, such as "+y".
        scale: metres per unit of the file.
        centre: (3,) centre of an object in metres, before `zoom`; 0 for a scene.
        zoom: factor that makes the longest side of an object 1; 1 for a scene.
        export_axes: axes of the mesh file that `for_file` turns to up and front of the exported file, in place of `up`
            and `front`. Example: up and front of a GLB file are +y and +z, so ("+y", "+z") exports a mesh with the axes
            that it had in its file. None: `up` and `front`.
    """

    up: str = "+z"
    front: str = "+x"
    scale: float = 1.0
    centre: tuple[float, ...] = (0.0, 0.0, 0.0)
    zoom: float = 1.0
    export_axes: tuple[str, str] | None = None

    @classmethod
    def of(cls, config: SamplingConfig, scale: float = 1.0) -> "MeshFrame":
        """Create the transform from the mesh file of a config to the world. It only turns and scales, without a shift.

        The options `up` and `front` of the config are the axes of the file that become +z and +x in the world. If they
        are "auto", the axes are:

        - `up`: +y for GLB, glTF and OBJ files, else +z.
        - `front`: +z if x or y is up. If z is up: +x for a scene (the prior of the config is MVDiffusion), else -y.

        `scale` is in metres per unit of the file. Raises ConfigError if up and front axis are parallel.
        """
        y_up = config.mesh is not None and Path(config.mesh).suffix.lower() in (".glb", ".gltf", ".obj")
        up = config.up if config.up != "auto" else "+y" if y_up else "+z"
        usual = "+z" if up[-1] != "z" else "-y" if config.of_object else "+x"
        front = usual if config.front == "auto" else config.front
        if front[-1] == up[-1]:
            raise ConfigError(f"is parallel to the up axis {up}. Try {usual}", "front", front)
        export_front = "-y" if up[-1] == "z" and config.mesh is not None else usual  # whether object or scene
        return cls(up, front, scale, export_axes=("+y", "+z") if y_up else (up, export_front))

    @property
    def rotation(self) -> Array:
        """Rotation matrix (3, 3) that maps column vectors from file to world axes."""
        front, up = axis_vector(self.front), axis_vector(self.up)
        return np.stack([front, np.cross(up, front), up])

    def for_file(self, mesh: TexturedMesh) -> TexturedMesh:
        """Convert a mesh from the world to the origin and units of the mesh file, with the axes that file writers take.

        Writers take z up and +x in front, as in the world. So the mesh is turned only if the attribute `export_axes`
        has other axes of the file for these than `up` and `front`. Centring and scaling are undone. The position of a
        vertex is `vertices` plus `offset` (3,), an attribute of the result that the GLB writer stores as a translation.
        `offset` is 0, unless the mesh is farther from the origin than about 100 times its size: then it is the centre
        of the mesh, so that the float32 vertices stay exact.
        """
        points, centre = mesh.vertices.astype(np.float64) / self.zoom, np.array(self.centre)
        far = np.abs(centre).max() > MAX_RELATIVE_DISTANCE * np.abs(points).max()
        offset = centre if far else np.zeros(3)
        vertices, offset = (points + (centre - offset)) / self.scale, offset / self.scale
        turn = np.eye(3) if self.export_axes is None else MeshFrame(*self.export_axes).rotation @ self.rotation.T
        if not np.array_equal(turn, np.eye(3)):
            vertices, offset = vertices @ turn.T, turn @ offset
            normals, directions = (part @ turn.T.astype(np.float32) for part in (mesh.normals, mesh.tangents[:, :3]))
            mesh = replace(mesh, normals=normals, tangents=np.column_stack([directions, mesh.tangents[:, 3]]))
        return replace(mesh, vertices=vertices.astype(np.float32), offset=tuple(offset.tolist()))

    def poses_to_world(self, c2w: Tensor) -> Tensor:
        """Transform camera-to-world poses (N, 4, 4) from the coordinates of the mesh file to the world.

        Positions are turned, scaled and shifted like the mesh; rotations are turned only, and stay orthonormal. The
        axes of the camera itself (such as OpenGL) do not change.
        """
        moved = c2w.clone()
        moved[:, :3] = torch.from_numpy(self.rotation).to(c2w) @ c2w[:, :3]
        moved[:, :3, 3] = (moved[:, :3, 3] * self.scale - moved.new_tensor(self.centre)) * self.zoom
        return moved

    def poses_to_file(self, c2w: Tensor) -> Tensor:
        """Transform camera-to-world poses (N, 4, 4) from the world to the coordinates of the mesh file.

        This is the inverse of `poses_to_world`. In the world the mesh is turned upright, centred and scaled. Rotations
        stay orthonormal, and the axes of the camera itself (such as OpenGL) do not change.
        """
        moved = c2w.clone()
        moved[:, :3, 3] = moved[:, :3, 3] / self.zoom + moved.new_tensor(self.centre)
        moved[:, :3] = torch.from_numpy(self.rotation.T.copy()).to(c2w) @ moved[:, :3]
        moved[:, :3, 3] /= self.scale
        return moved


@dataclass(frozen=True)
class SourceMesh:
    """Triangle mesh of all parts of a file in world coordinates (z up). Its surface may be open or closed.

    A scene is in metres. An object is centred and scaled, so that its longest side is 1.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) vertex indices of the triangles, int.
        uv: (V, 2) texture coordinates, v upwards; None unless all parts of the file have them.
        normals: (V, 3) unit vertex normals in world axes, from the file or, for parts without normals in the file,
            computed from the triangles; None if the mesh was simplified.
        frame: transform from the file to the world.
        notes: texts for the user about changes of the mesh.
    """

    vertices: Array
    faces: Array
    uv: Array | None = None
    normals: Array | None = None
    frame: MeshFrame = MeshFrame()
    notes: tuple[str, ...] = ()


def read_source(path: Path, frame: MeshFrame, dtype: type[np.floating] = np.float32) -> SourceMesh:
    """Read the triangles of all parts of a mesh file and join them to one mesh, turned to z up and scaled to metres.

    The transforms of the file's scene graph are applied, then the rotation of `frame` to world axes and its `scale`,
    the metres per unit of the file. `frame.centre` and `frame.zoom`, which centre an object and make its longest side
    1, are not applied. Triangles without an area are left out. `dtype` is the type of the vertices. Raises ConfigError
    if the file is unreadable, has no triangle with an area, or has an absolute coordinate above MAX_COORDINATE = 1e7
    metres.
    """
    file = read_mesh_file(path, "mesh", colours=False)
    parts = file.submeshes
    for note in file.failures:
        logger.warning("%s: %s", path, note)
    if not any(len(part.faces) for part in parts):
        raise ConfigError(f"{path} has no triangles", "mesh")
    first = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])])
    triangles = np.concatenate([part.faces + offset for part, offset in zip(parts, first, strict=True)])
    points = np.concatenate([part.vertices for part in parts])
    vertices = (frame.scale * points @ frame.rotation.T).astype(dtype)
    if not np.abs(vertices).max() <= MAX_COORDINATE:  # or not finite
        raise ConfigError(f"{path} has coordinates above {MAX_COORDINATE:.0e} m", "mesh")
    keep = ~degenerate(vertices, triangles)
    if not keep.any():
        raise ConfigError(f"{path} has no triangle with an area", "mesh")
    all_triangles = triangles
    vertices, triangles, used = compact(vertices, triangles[keep])
    directions = unit(_normals(parts, points, all_triangles)[used] @ frame.rotation.T).astype(np.float32)
    coordinates = [part.uv for part in parts if part.uv is not None]
    uv = np.concatenate(coordinates)[used] if len(coordinates) == len(parts) else None
    if uv is not None:
        uv = np.where((uv > -1e-4) & (uv < 1 + 1e-4), uv.clip(0, 1), uv).astype(np.float32)
    return SourceMesh(vertices, triangles, uv, directions, frame)


def plan(config: SamplingConfig) -> str:
    """Return the text of --dry-run: weights, device and memory of the run and, for a mesh, its triangles and UVs.

    Raises ConfigError if the mesh is unreadable.
    """
    if config.mesh is None:
        return train_plan(config)
    mesh = read_source(Path(config.mesh).expanduser(), MeshFrame.of(config), np.float64)
    coordinates = "with" if mesh.uv is not None else "without"
    return train_plan(config, [f"mesh: {len(mesh.faces):,} triangles, {coordinates} texture coordinates"])


def _normals(parts: tuple[Submesh, ...], points: Array, triangles: Array) -> Array:
    import trimesh  # computes the normals of parts that have none in the file

    if all(part.normals is not None for part in parts):
        return np.concatenate([part.normals for part in parts if part.normals is not None])
    indices = [part.file_index for part in parts if part.file_index is not None]
    index = np.concatenate(indices) if indices else np.arange(len(points))
    in_file = np.zeros((index.max() + 1, 3))  # without copies of vertices, which would make sharp edges at UV seams
    in_file[index] = points
    found, first = trimesh.Trimesh(in_file, index[triangles], process=False).vertex_normals[index], 0
    for part in parts:
        if part.normals is not None:
            found[first : first + len(part.normals)] = part.normals
        first += len(part.vertices)
    return found


def read_object(config: SamplingConfig, uv: str = "unwrap") -> SourceMesh:
    """Read the mesh of an object, with its bounding box centred at the origin and its longest side scaled to 1.

    A mesh with more triangles than `config.budget` is simplified, which removes its texture coordinates. `uv` says
    whether these are wanted: "own" (required), "auto" or "unwrap" (not wanted). Raises ConfigError if the file cannot
    be used, or if required texture coordinates would be removed.
    """
    frame, notes = MeshFrame.of(config), list[str]()
    source = read_source(Path(str(config.mesh)).expanduser(), frame, np.float64)
    low, high = source.vertices.min(0), source.vertices.max(0)
    centre, zoom = (low + high) / 2, HALF / max(float((high - low).max()) / 2, 1e-30)
    points, faces = ((source.vertices - centre) * zoom).astype(np.float32), source.faces
    source = replace(source, vertices=points)
    if len(faces) > config.budget:
        lost = uv != "unwrap" and source.uv is not None
        if lost and uv == "own":
            problem = f"would remove the texture coordinates of {len(faces):,} triangles"
            raise ConfigError(f"{problem}. Set budget={len(faces)}, or uv=unwrap", "budget", config.budget)
        loss = f", which removed their texture coordinates; budget={len(faces)} keeps them" if lost else ""
        notes.append(f"{len(faces):,} triangles were simplified to {config.budget:,} (budget){loss}")
        logger.warning("%s", notes[0])
        welded, faces, _ = weld(points, faces)
        source = SourceMesh(*simplify(welded, faces, config.budget))
    return replace(source, frame=replace(frame, centre=tuple(centre), zoom=zoom), notes=tuple(notes))


def without_uv(source: SourceMesh) -> TexturedMesh:
    """Convert a mesh to the type that the renderers take, for untextured renders. All texture coordinates are 0.

    Vertex normals are those of the source, or computed from the triangles if the source has none.
    """
    vertices, faces, _ = weld(source.vertices, source.faces)
    normals, uv = vertex_normals(vertices, faces), np.zeros((len(vertices), 2), np.float32)
    mesh = TexturedMesh(vertices, faces, normals, uv, vertex_tangents(vertices, faces, normals, uv))
    return with_file_normals(mesh, source)


def with_file_normals(mesh: TexturedMesh, source: SourceMesh) -> TexturedMesh:
    """Return `mesh` with the vertex normals of `source`, which has the same triangles in the same order.

    Triangles that share a vertex in `mesh` may have different normals there in `source`. Such a vertex is duplicated,
    once per normal. Where a normal of `source` differs too much from the normal of its triangle (cosine of 0.5 or
    less), the normal of `mesh` is kept. If `source` has no normals, `mesh` is returned unchanged.
    """
    if source.normals is None:
        return mesh
    face_normals = area_vectors(mesh.vertices, mesh.faces)[:, None]
    from_file, smooth = source.normals[source.faces], mesh.normals[mesh.faces]
    consistent = (from_file * face_normals).sum(-1) > MIN_NORMAL_COSINE * np.linalg.norm(face_normals, axis=-1)
    corners = np.where(consistent[..., None], from_file, smooth).reshape(-1, 3)
    key = np.column_stack([mesh.faces.reshape(-1), np.round(1000 * corners).astype(np.int64)])
    _, first, index = np.unique(key, axis=0, return_index=True, return_inverse=True)
    old = mesh.faces.reshape(-1)[first]
    faces, normals = index.reshape(-1, 3).astype(np.int32), corners[first].astype(np.float32)
    vertices, uv = mesh.vertices[old], mesh.uv[old]
    return TexturedMesh(vertices, faces, normals, uv, vertex_tangents(vertices, faces, normals, uv))


def six_sides(size: int) -> Cameras:
    """Return six orthographic cameras for images of size x size pixels, as in MV-Adapter.

    The cameras are at +x, +y, -x, -y, +z and -z of the world (z up), and see the sides front, right, back, left, top
    and bottom. Right and left are those of a viewer who faces the front. In the image of the top, the front of the
    object is at the upper edge.
    """
    return cameras_from_angles(GEOMETRY_VIEWS, size, size)


def control_maps(mesh: TexturedMesh, cameras: Cameras) -> Tensor:
    """Render the maps (V, 6, H, W) in [0, 1] that condition MV-Adapter, for V cameras.

    `mesh` is in world coordinates (z up) and must lie in [-0.5, 0.5]^3. Channels 0-2 are the positions + 0.5, channels
    3-5 are (normals + 1) / 2, both after the map (x, y, z) -> (y, -x, z) from world axes to those of MV-Adapter. Pixels
    that do not show the mesh are 0.5 in all channels.
    """
    buffers = rasterise_views(mesh.vertices, mesh.faces, cameras)
    points, normals = (interpolate(part, mesh.faces, buffers) for part in (mesh.vertices, mesh.normals))
    return geometry_maps(torch.from_numpy(points), torch.from_numpy(unit(normals)), torch.from_numpy(buffers.mask))


def preview(mesh: TexturedMesh, size: int = 256) -> Array:
    """Render six sides of a mesh without its texture: front, right, back, left, top, bottom.

    Returns images (6, size, size, 3) in [0, 1]; `size` is in pixels.
    """
    return render_untextured(mesh, six_sides(size))


def render_untextured(mesh: TexturedMesh, cameras: Cameras) -> Array:
    """Render a grey mesh on white for V cameras: images (V, H, W, 3) in [0, 1], lit from the camera and from above.

    Each pixel is the mean of 2 x 2 pixels of a larger render (antialiasing).
    """
    fine = cameras.with_size(2 * cameras.height, 2 * cameras.width)
    buffers = rasterise_views(mesh.vertices, mesh.faces, fine)
    normals = interpolate(mesh.normals, mesh.faces, buffers)
    facing = np.abs((normals * fine.c2w[:, None, None, :3, 2].numpy()).sum(-1))
    light = np.where(buffers.mask, 0.2 + 0.5 * facing + 0.15 * normals[..., 2], 1.0)
    return np.repeat(box_downsample(light[..., None], 2).clip(0, 1), 3, axis=-1)
