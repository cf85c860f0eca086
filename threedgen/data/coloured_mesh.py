"""Coloured triangle meshes for rendering, from GLB, glTF, OBJ and PLY files.

World axes: z is up, and the front of the object faces +x. A mesh is a list of parts. Each part has vertex colours or a
texture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.geometry import raster
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_srgb
from threedgen.geometry.mesh_file import read_submeshes
from threedgen.geometry.texture import sample
from threedgen.run.arrays import Array

DEFAULT_COLOUR = 1.0
"""Value of all three channels for a mesh without colours: white, as in glTF. Grey would not stand out from the grey
background."""
SUPERSAMPLE = 2
"""Factor by which images are rendered larger along each axis and then averaged."""
MAX_COORDINATE = 1e9
"""Largest absolute coordinate accepted from a file."""


class EmptyMesh(ConfigError):
    """Error for a mesh or field that has no surface to render."""


@dataclass(frozen=True)
class Part:
    """F triangles of a mesh with one kind of colour: vertex colours, or one texture.

    Attributes:
        corners: (F, 3, 3), as (triangle, corner, xyz), in world units.
        values: sRGB colours (F, 3, 3) of the corners, in [0, 1]; with a texture, uv coordinates (F, 3, 2), v upwards.
        texture: (H, W, 3), sRGB in [0, 1]; None: `values` are colours.
    """

    corners: Array
    values: Array
    texture: Array | None = None


@dataclass(frozen=True)
class ColouredMesh:
    """Triangle mesh of several parts. `plain` is True if no part has vertex colours or a texture."""

    parts: tuple[Part, ...]
    plain: bool = False

    @property
    def corners(self) -> Array:
        """Corners (F, 3, 3) of the triangles of all parts, in the order of the parts."""
        return np.concatenate([part.corners for part in self.parts])

    def map_corners(self, transform: Callable[[Array], Array]) -> ColouredMesh:
        """Return a copy in which each part has the corners `transform(corners)`; both arrays are (F, 3, 3)."""
        return replace(self, parts=tuple(replace(part, corners=transform(part.corners)) for part in self.parts))

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """Render square images (V, size, size, 3), sRGB in [0, 1], from perspective cameras.

        Args:
            c2w: (V, 4, 4), camera-to-world, OpenGL axes.
            fov: vertical field of view of all cameras, radians.
            size: image side, pixels.
            background: grey value in [0, 1].
            light: multiply colours by 0.5 + 0.2 n_z + 0.3 n . v, as in the toybox. Here n is the unit normal turned
                towards the camera, and v the unit vector to the camera. False: unlit colours.
        """
        soup = self._soup()
        buffers = (raster.rasterise(*soup, pose[None], fov, size * SUPERSAMPLE) for pose in c2w)
        return self._shade(buffers, background, [pose[:3, 3] for pose in c2w] if light else None)

    def photograph(self, at: Cameras, background: float | None = 0.5, light: bool = False) -> Array:
        """Render images (V, H, W, 3), sRGB in [0, 1], from V perspective or orthographic cameras.

        `background` is a grey value in [0, 1]. If it is None, images are RGBA (V, H, W, 4) with straight alpha. `light`
        turns on the shading that `render` describes.
        """
        fine, soup = at.with_size(at.height * SUPERSAMPLE, at.width * SUPERSAMPLE), self._soup()
        buffers = (raster.rasterise_views(*soup, fine.select([view])) for view in range(len(at)))
        away = MAX_COORDINATE if at.projection.parallel else 0.0  # parallel rays have their eye at infinity
        eyes = (at.position + away * at.c2w[:, :3, 2]).double().numpy()
        return self._shade(buffers, background, list(eyes) if light else None)

    def surface(self, at: Cameras) -> tuple[Array, Array, Array]:
        """Return the visible surface at the pixel centres of V cameras.

        Returns:
            Points (V, H, W, 3) in world units, unit normals (V, H, W, 3) in world space that face the camera, and the
            foreground mask (V, H, W), bool. Points and normals are meaningful only where the mask is True.
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

    def _shade(self, views: Iterable[raster.Buffers], background: float | None, eyes: Sequence[Array] | None) -> Array:
        """Shade rasterised views one by one and average the supersampled pixels.

        Args:
            views: raster buffers of V views, each with a leading axis of length 1 and SUPERSAMPLE x the image size.
            background: grey value in [0, 1]; None: images are RGBA.
            eyes: V camera positions (3,) for the shading; None: unlit colours.

        Returns:
            Images (V, H, W, 3 or 4), in [0, 1].
        """
        corners, images, empty = self.corners, list[Array](), (0.0,) * 4 if background is None else (background,) * 3
        for view, buffers in enumerate(views):
            mask = buffers.mask[0]
            face, weight = buffers.face[0][mask], buffers.bary[0][mask][:, :, None]
            colour = self._colours(face, weight)
            if eyes is not None:
                colour *= _light(corners[face], weight, eyes[view])[:, None]
            image = np.full((*mask.shape, len(empty)), empty, np.float32)
            image[mask, :3] = colour
            image[mask, 3:] = 1
            small = raster.box_downsample(image[None], SUPERSAMPLE)[0]
            small[..., :3] /= np.maximum(small[..., 3:], 1e-6) if background is None else 1  # to straight alpha
            images.append(small)
        return np.clip(np.stack(images), 0, 1)

    def _colours(self, face: Array, weight: Array) -> Array:
        """Return sRGB colours (P, 3) at P points, given by triangle indices `face` (P,) into `corners` and barycentric
        weights `weight` (P, 3, 1)."""
        colour, first = np.zeros((len(face), 3), np.float32), 0
        for part in self.parts:
            in_part = (face >= first) & (face < first + len(part.corners))
            value = (part.values[face[in_part] - first] * weight[in_part]).sum(1)
            if part.texture is not None:
                outside = (value < 0) | (value > 1)  # textures of glTF and OBJ repeat
                value = sample(part.texture, np.where(outside, value - np.floor(value), value))
            colour[in_part] = value
            first += len(part.corners)
        return colour


def _light(corners: Array, weight: Array, eye: Array) -> Array:
    """Return the shading factor (P,) at P points, the same for front and back sides of triangles.

    Args:
        corners: (P, 3, 3), corners of the triangle of each point.
        weight: (P, 3, 1), barycentric weights of each point.
        eye: (3,), camera position.
    """
    a, b, c = corners.swapaxes(0, 1)
    normal = raster.unit(np.cross(b - a, c - a))
    facing = (normal * raster.unit(eye - (corners * weight).sum(1))).sum(1)
    return 0.5 + 0.2 * np.sign(facing) * normal[:, 2] + 0.3 * np.abs(facing)


def fit_to_ball(mesh: ColouredMesh, radius: float = 0.8) -> ColouredMesh:
    """Move the centre of the bounding box to the origin, and scale the mesh into a ball of the given radius."""
    points = mesh.corners.reshape(-1, 3)
    centre = (points.min(0) + points.max(0)) / 2
    scale = radius / np.linalg.norm(points - centre, axis=1).max()
    return mesh.map_corners(lambda corners: (corners - centre) * scale)


def fit_to_cube(mesh: ColouredMesh, half: float) -> ColouredMesh:
    """Move the centre of the bounding box to the origin, and scale so that the largest coordinate is `half`."""
    low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
    scale = 2 * half / (high - low).max()
    return mesh.map_corners(lambda corners: (corners - (low + high) / 2) * scale)


# --- sources -----------------------------------------------------------------------------------------------------


def read_mesh(path: Path, up: Literal["y", "z"] = "y") -> ColouredMesh:
    """Read a GLB, glTF, OBJ or PLY file and convert it to a z-up world in which the front faces +x.

    `up` is the up axis of the file. The front of a y-up file faces +z, as in glTF; the front of a z-up file faces +x.

    Raises ConfigError for an unreadable file, EmptyMesh if no triangle has an area.
    """
    gltf, plain = path.suffix.lower() in (".glb", ".gltf"), True

    def convert(piece: Any, transform: Array) -> Part:
        nonlocal plain
        part, coloured = _part(piece, gltf)
        plain = plain and not coloured
        return drop_degenerate(replace(part, corners=part.corners @ transform[:3, :3].T + transform[:3, 3]))

    parts = read_submeshes(path, convert)
    mesh = ColouredMesh(tuple(part for part in parts if len(part.corners)), plain)
    if not mesh.parts:
        raise EmptyMesh(f"{path} is empty: it has no triangle with an area")
    if (largest := np.abs(mesh.corners).max()) > MAX_COORDINATE:
        raise ConfigError(f"{path} has coordinates of {largest:.3g}; the maximum is {MAX_COORDINATE:.3g}")
    return mesh.map_corners(lambda corners: corners[..., [2, 0, 1]]) if up == "y" else mesh


def drop_degenerate(part: Part) -> Part:
    """Remove triangles that have no area, or coordinates or values that are not finite."""
    a, b, c = (part.corners[:, k] for k in range(3))
    with np.errstate(all="ignore"):
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        keep = np.isfinite(part.corners).all((1, 2)) & np.isfinite(part.values).all((1, 2)) & (area > 0)
    return replace(part, corners=part.corners[keep], values=part.values[keep])


def _part(piece: Any, gltf: bool) -> tuple[Part, bool]:
    """Convert a trimesh mesh to a part. Return the part, and whether it has vertex colours, face colours or a texture.

    Vertex colours and material colours of glTF are linear and are multiplied; textures are sRGB. If there is a texture,
    vertex colours are ignored. In OBJ files the material colour is then ignored too, because most exporters write an
    arbitrary one.
    """
    corners, visual, colours = np.asarray(piece.vertices, np.float64)[piece.faces], piece.visual, None
    shape, material = corners.shape, getattr(visual, "material", None)
    if visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors, np.float64)[:, :3][piece.faces] / 255
    elif visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors, np.float64)[:, None, :3] / 255, 3, axis=1)
    elif visual.kind != "texture":
        return Part(corners, np.full(shape, DEFAULT_COLOUR)), False
    else:
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None and visual.uv is not None:
            factor = to_srgb(_factor(material)) if gltf else 1.0
            texture = np.asarray(image.convert("RGB"), np.float32) / 255 * factor
            return Part(corners, np.asarray(visual.uv, np.float64)[piece.faces], texture), True
        raw = getattr(visual, "vertex_attributes", {}).get("color")  # not normalised by trimesh
        if raw is not None and len(raw) == len(piece.vertices):
            scale = np.iinfo(raw.dtype).max if raw.dtype.kind in "ui" else 1
            colours = (np.asarray(raw, np.float64)[:, :3] / scale)[piece.faces]
        product = np.broadcast_to(_factor(material), shape) * (1.0 if colours is None else colours)
        return Part(corners, to_srgb(product) if gltf else product), colours is not None
    return Part(corners, to_srgb(colours) if gltf else colours), True


def _factor(material: Any) -> Array:
    """Return the RGB factor (3,) of a material, linear in glTF files and sRGB in OBJ files; ones if it has none."""
    for name in ("baseColorFactor", "diffuse"):
        value = getattr(material, name, None)
        if value is not None:
            return np.asarray(value, np.float64)[:3] / (255 if np.asarray(value).dtype.kind == "u" else 1)
    return np.ones(3)
