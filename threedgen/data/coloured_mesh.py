"""Coloured triangle meshes from GLB, glTF, OBJ, PLY and OFF files, and their rendering.

The z axis points up, and the front of the object faces +x. A mesh has parts; each part has vertex colours or a texture.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.geometry import raster
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import to_linear, to_srgb
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.geometry.submesh import Submesh, Wrap
from threedgen.geometry.texture import Texture
from threedgen.run.arrays import Array

logger = logging.getLogger(__name__)
DEFAULT_COLOUR = 1.0
"""Value of all three channels for a mesh without colours: white, as in glTF, which stands out from grey backgrounds."""
SUPERSAMPLE = 2  # supersampling factor of renders along each axis
MAX_LAYERS = 16  # maximum number of transparent surfaces that are rendered behind each other (depth peeling)
OPAQUE = 0.998  # opacity of a pixel from which surfaces behind it are not rendered
MAX_COORDINATE = 1e9  # largest absolute coordinate accepted from a file


class EmptyMesh(ConfigError):
    """Error for a mesh or field that has no surface to render."""


@dataclass(frozen=True)
class Part:
    """Part of a mesh: F triangles that are coloured by their vertices or by one texture.

    Attributes:
        corners: positions (F, 3, 3), as (triangle, corner, xyz), in world units.
        values: (F, 3, K) at the corners. Without a texture: colours in [0, 1], sRGB (K = 3) or RGBA (K = 4). With a
            texture: texture coordinates u, v, with v upwards in the image (K = 2); or u, v and a linear RGB (K = 5) or
            RGBA (K = 6) factor, by which the texture's linear colours and its alpha are multiplied.
        texture: image that u and v refer to; None: `values` are colours.
        wrap: what the texture shows beyond its edges, along u and v: "repeat", "mirror" (repeat, every second copy
            mirrored) or "clamp" (the values at the edge).
        cutoff: points with at least this alpha are opaque, all others invisible; None: alpha is the opacity.
    """

    corners: Array
    values: Array
    texture: Texture | None = None
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")
    cutoff: float | None = None

    @property
    def transparent(self) -> bool:
        return self.values.shape[-1] in (4, 6) or (self.texture is not None and self.texture.table.shape[1] == 4)


@dataclass(frozen=True)
class ColouredMesh:
    """Triangle mesh of several parts.

    Attributes:
        parts: parts of the mesh, each with its own texture or vertex colours.
        plain: True if the file seems to have no colours: the mesh is `flat`, all parts are white, and there are no
            `notes`, such as that a texture is missing.
        flat: True if the file has no vertex colours and no textures, so that each part has one colour. Unlit renders of
            such a mesh do not show its shape.
        notes: texts for the user about the file, such as missing textures.
        side_files: paths of the other files that were read with the mesh file: textures, MTL files and buffers.
    """

    parts: tuple[Part, ...]
    plain: bool = False
    flat: bool = False
    notes: tuple[str, ...] = ()
    side_files: tuple[Path, ...] = ()

    @property
    def corners(self) -> Array:
        """Corners (F, 3, 3) of the triangles of all parts, in the order of the parts."""
        return np.concatenate([part.corners for part in self.parts])

    def map_corners(self, transform: Callable[[Array], Array]) -> "ColouredMesh":
        """Return a copy of the mesh with the corners `transform(corners)` in each part; both arrays are (F, 3, 3)."""
        return replace(self, parts=tuple(replace(part, corners=transform(part.corners)) for part in self.parts))

    def turned(self, degrees: float) -> "ColouredMesh":
        """Return a copy of the mesh that is turned about z, counter-clockwise seen from above."""
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        return self.map_corners(lambda corners: corners @ turn.T) if degrees else self

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """Render square images (V, size, size, 3), sRGB in [0, 1], from V perspective cameras.

        Args:
            c2w: (V, 4, 4), camera-to-world, OpenGL axes.
            fov: vertical field of view of all cameras, radians.
            size: image side, pixels.
            background: grey value in [0, 1].
            light: multiply colours by 0.5 + 0.2 n_z + 0.3 n . v, where n is the unit normal that faces the camera, n_z
                its upward component, and v the unit vector to the camera. False: unlit colours.
        """
        projection = Projection.perspective(torch.full((len(c2w),), fov, dtype=torch.float64), size, size)
        return self.render_views(Cameras(torch.from_numpy(c2w), projection, size, size), background, light)

    def render_views(self, at: Cameras, background: float | None = 0.5, light: bool = False) -> Array:
        """Render images (V, H, W, 3), sRGB in [0, 1], from V perspective or orthographic cameras.

        `background` is a grey value in [0, 1]; None: the images are RGBA (V, H, W, 4) with straight alpha. `light` is
        whether the mesh is lit, from the camera and from above; False: unlit colours.
        """
        fine, soup = at.with_size(at.height * SUPERSAMPLE, at.width * SUPERSAMPLE), self._soup()
        away = MAX_COORDINATE if at.projection.parallel else 0.0  # orthographic: eye far behind the camera
        eyes = (at.position + away * at.c2w[:, :3, 2]).double().numpy()
        corners, images = self.corners, list[Array]()
        layers = MAX_LAYERS if any(part.transparent for part in self.parts) else 1
        for view in range(len(at)):
            behind, image = None, np.zeros((fine.height, fine.width, 4), np.float32)
            for _ in range(layers):  # depth peeling, front to back
                buffers = raster.rasterise_views(*soup, fine.select([view]), behind)
                mask = buffers.mask[0]
                face, weight = buffers.face[0][mask], buffers.bary[0][mask][:, :, None]
                colour = self._colours(face, weight)
                if light:
                    colour[:, :3] *= _light(corners[face], weight, eyes[view])[:, None]
                colour[:, :3] *= colour[:, 3:]
                image[mask] += (1 - image[mask, 3:]) * colour
                unfinished = mask & (image[..., 3] < OPAQUE)
                if not unfinished.any():
                    break
                behind = np.where(unfinished, buffers.z[0], np.inf)[None]
            if background is not None:
                image[..., :3] += background * (1 - image[..., 3:])
            small = raster.box_downsample(image[None, ..., : 4 if background is None else 3], SUPERSAMPLE)[0]
            small[..., :3] /= np.maximum(small[..., 3:], 1e-6) if background is None else 1  # to straight alpha
            images.append(small)
        return np.clip(np.stack(images), 0, 1)

    def surface(self, at: Cameras) -> tuple[Array, Array, Array]:
        """Return the visible surface at the pixel centres of V cameras.

        Returns:
            Points (V, H, W, 3) in world units, unit normals (V, H, W, 3) in world space that face the camera, and the
            bool foreground mask (V, H, W). Points and normals are valid only where the mask is True.
        """
        corners, (points, faces) = self.corners, self._soup()
        buffers = raster.rasterise_views(points, faces, at)
        a, b, c = corners.swapaxes(0, 1)
        normal = np.where(buffers.mask[..., None], raster.unit(np.cross(b - a, c - a))[buffers.face], 0)
        surface = raster.interpolate(points, faces, buffers)
        back = at.c2w[:, None, None, :3, 2].numpy()
        to_eye = back if at.projection.parallel else at.position[:, None, None].numpy() - surface
        backfacing = (normal * to_eye).sum(-1, keepdims=True) < 0
        return surface, np.where(backfacing, -normal, normal).astype(np.float32), buffers.mask

    def _soup(self) -> tuple[Array, Array]:
        points = self.corners.reshape(-1, 3)
        return points, np.arange(len(points)).reshape(-1, 3)

    def _colours(self, face: Array, weight: Array) -> Array:
        # P triangle indices `face`, barycentric `weight` (P, 3, 1)
        colour, starts = np.ones((len(face), 4), np.float32), np.cumsum([0, *(len(p.corners) for p in self.parts)])
        number = np.searchsorted(starts, face, side="right") - 1
        order = np.argsort(number, kind="stable")
        for in_part in np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(face) else ():
            part, first = self.parts[number[in_part[0]]], starts[number[in_part[0]]]
            value = (part.values[face[in_part] - first] * weight[in_part]).sum(1)
            if part.texture is not None:
                uv, tint = value[:, :2], value[:, 2:]
                value = part.texture.sample(np.stack([_wrapped(uv[:, k], part.wrap[k]) for k in range(2)], axis=1))
                if tint.size:
                    value[:, :3] = to_srgb(to_linear(value[:, :3]) * tint[:, :3])
                if tint.shape[1] == 4:
                    alpha = tint[:, 3:] * (value[:, 3:] if value.shape[1] == 4 else 1)
                    value = np.concatenate([value[:, :3], alpha], axis=1)
            if part.cutoff is not None:
                value[:, 3:] = value[:, 3:] >= part.cutoff
            colour[in_part, : value.shape[1]] = value
        return colour


def _wrapped(t: Array, mode: Wrap) -> Array:
    if mode == "clamp":
        return t.clip(0, 1)
    if mode == "mirror":
        return 1 - np.abs(1 - t % 2)
    return np.where((t < 0) | (t > 1), t - np.floor(t), t)


def _light(corners: Array, weight: Array, eye: Array) -> Array:
    # front and back sides are shaded equally
    a, b, c = corners.swapaxes(0, 1)
    normal = raster.unit(np.cross(b - a, c - a))
    facing = (normal * raster.unit(eye - (corners * weight).sum(1))).sum(1)
    return 0.5 + 0.2 * np.sign(facing) * normal[:, 2] + 0.3 * np.abs(facing)


def fit_to_ball(mesh: ColouredMesh, radius: float = 0.8) -> ColouredMesh:
    """Return a copy of a mesh with its bounding box centred at the origin, and its farthest vertex `radius` away."""
    points = mesh.corners.reshape(-1, 3)
    centre = (points.min(0) + points.max(0)) / 2
    scale = radius / np.linalg.norm(points - centre, axis=1).max()
    return mesh.map_corners(lambda corners: (corners - centre) * scale)


def fit_to_cube(mesh: ColouredMesh, half: float) -> ColouredMesh:
    """Return a copy of a mesh with its bounding box centred at the origin, and `half` as its largest |coordinate|."""
    low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
    scale = 2 * half / (high - low).max()
    return mesh.map_corners(lambda corners: (corners - (low + high) / 2) * scale)


# --- sources -----------------------------------------------------------------------------------------------------


def read_mesh(path: Path, up: Literal["y", "z"] = "y", warn: bool = False, turn: float = 0.0) -> ColouredMesh:
    """Read a GLB, glTF, OBJ, PLY or OFF file and convert it to a z-up world in which the front faces +x.

    `up` is the up axis of the file: the front of a y-up file faces +z, and the front of a z-up file faces +x. The mesh
    is then turned by `turn` degrees about z, counter-clockwise seen from above. If `warn` is True, the `notes` of the
    mesh are logged as warnings. Raises ConfigError if the file is unreadable or a coordinate exceeds 1e9
    (MAX_COORDINATE), and EmptyMesh if all triangles have area 0.
    """
    file = read_mesh_file(path)
    parts = tuple(part for part in map(_part, file.submeshes) if len(part.corners))
    if not parts:
        raise EmptyMesh(f"{path} is empty: it has no triangle with an area")
    flat = all(submesh.flat for submesh in file.submeshes)
    white = all(part.values.min() > DEFAULT_COLOUR - 1e-6 for part in parts)
    mesh = ColouredMesh(parts, flat and white and not file.failures, flat, file.failures, file.side_files)
    if (largest := np.abs(mesh.corners).max()) > MAX_COORDINATE:
        raise ConfigError(f"{path} has coordinates of {largest:.3g}; the maximum is {MAX_COORDINATE:.3g}")
    for note in mesh.notes if warn else ():
        logger.warning("%s: %s", path, note)
    mesh = mesh.map_corners(lambda corners: corners[..., [2, 0, 1]]) if up == "y" else mesh
    return mesh.turned(turn)


def drop_degenerate(part: Part) -> Part:
    """Return a mesh part without triangles of area 0, and without those with non-finite `corners` or `values`.

    The values are colours or texture coordinates at the corners, see `Part`.
    """
    a, b, c = (part.corners[:, k] for k in range(3))
    with np.errstate(all="ignore"):
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        keep = np.isfinite(part.corners).all((1, 2)) & np.isfinite(part.values).all((1, 2)) & (area > 0)
    return replace(part, corners=part.corners[keep], values=part.values[keep])


def _part(submesh: Submesh) -> Part:
    arrays = (None if submesh.texture is None else submesh.uv, submesh.colours)
    values = np.column_stack([array for array in arrays if array is not None])[submesh.faces]
    part = Part(submesh.vertices[submesh.faces], values, submesh.texture, submesh.wrap, submesh.cutoff)
    return drop_degenerate(part)
