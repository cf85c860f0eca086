"""Coloured triangles to look at: read from GLB, OBJ and PLY files, or made of toybox objects.

Axes are the world's: z up, front +x. A mesh is a list of parts, each with colours or with a texture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.data.toybox.primitives import Asset
from threedgen.geometry import raster
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_srgb
from threedgen.geometry.mesh_file import read_pieces
from threedgen.geometry.texture import sample
from threedgen.run.arrays import Array

PLAIN = 1.0
"""What has no colour of its own is white, as glTF's materials are unless they say another one: in light it is brighter
than the grey behind it almost everywhere, where grey would vanish, and its shades differ most."""
SUPERSAMPLE = 2
FARTHEST = 1e9
"""The largest coordinate in a file."""


class Empty(ConfigError):
    """What was read shows nothing."""


@dataclass(frozen=True)
class Part:
    """F triangles: corners (F, 3, 3); values (F, 3, 3), colours of the corners in sRGB, or with a texture (H, W, 3)
    (F, 3, 2), their uv with v up."""

    corners: Array
    values: Array
    texture: Array | None = None


@dataclass(frozen=True)
class ColouredMesh:
    """``plain``: no part has a colour of its own, so only light tells its sides apart."""

    parts: tuple[Part, ...]
    plain: bool = False

    @property
    def corners(self) -> Array:
        """Of all parts, (F, 3, 3)."""
        return np.concatenate([part.corners for part in self.parts])

    def moved(self, move: Callable[[Array], Array]) -> ColouredMesh:
        """The mesh whose corners (F, 3, 3) are what ``move`` makes of them, part by part."""
        return replace(self, parts=tuple(replace(part, corners=move(part.corners)) for part in self.parts))

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """(V, size, size, 3) in [0, 1] from c2w (V, 4, 4). ``light``: the toybox's, 0.5 + 0.2 n_z + 0.3 n . v; else
        colours as they are."""
        soup = self._soup()
        seen = (raster.rasterise(*soup, pose[None], fov, size * SUPERSAMPLE) for pose in c2w)
        return self._pictures(seen, background, [pose[:3, 3] for pose in c2w] if light else None)

    def photograph(self, at: Cameras, background: float | None = 0.5, light: bool = False) -> Array:
        """The same (V, H, W, 3) by any cameras, of parallel rays too; without a ``background`` RGBA (V, H, W, 4), whose
        colours are not multiplied by their opacity."""
        fine, soup = at.with_size(at.height * SUPERSAMPLE, at.width * SUPERSAMPLE), self._soup()
        seen = (raster.rasterise_views(*soup, fine.select([view])) for view in range(len(at)))
        away = FARTHEST if at.projection.parallel else 0.0  # as if they looked from very far
        eyes = (at.position + away * at.c2w[:, :3, 2]).double().numpy()
        return self._pictures(seen, background, list(eyes) if light else None)

    def surface(self, at: Cameras) -> tuple[Array, Array, Array]:
        """What the pixel centres see: points (V, H, W, 3), unit normals (V, H, W, 3) of the triangles on the side that
        is seen, and where there are any (V, H, W)."""
        corners, (points, faces) = self.corners, self._soup()
        buffers = raster.rasterise_views(points, faces, at)
        a, b, c = corners.swapaxes(0, 1)
        normal = np.where(buffers.mask[..., None], raster.unit(np.cross(b - a, c - a))[buffers.face], 0)
        place = raster.interpolate(points, faces, buffers)
        back = at.c2w[:, None, None, :3, 2].numpy()
        to_eye = back if at.projection.parallel else at.position[:, None, None].numpy() - place
        behind = (normal * to_eye).sum(-1, keepdims=True) < 0
        return place, np.where(behind, -normal, normal).astype(np.float32), buffers.mask

    def _soup(self) -> tuple[Array, Array]:
        """Points (3 F, 3) and faces (F, 3), no two of which share a point."""
        points = self.corners.reshape(-1, 3)
        return points, np.arange(len(points)).reshape(-1, 3)

    def _pictures(
        self, seen: Iterable[raster.Buffers], background: float | None, eyes: Sequence[Array] | None
    ) -> Array:
        """Pictures (V, H, W, 3 or 4) of what is seen, one view at a time, with light from the eyes (3,) or as it is."""
        corners, pictures, empty = self.corners, list[Array](), (0.0,) * 4 if background is None else (background,) * 3
        for view, buffers in enumerate(seen):
            mask = buffers.mask[0]
            face, weight = buffers.face[0][mask], buffers.bary[0][mask][:, :, None]
            colour = self._colours(face, weight)
            if eyes is not None:
                colour *= _light(corners[face], weight, eyes[view])[:, None]
            picture = np.full((*mask.shape, len(empty)), empty, np.float32)
            picture[mask, :3] = colour
            picture[mask, 3:] = 1
            small = raster.shrink(picture[None], SUPERSAMPLE)[0]
            small[..., :3] /= np.maximum(small[..., 3:], 1e-6) if background is None else 1  # a mean of what is there
            pictures.append(small)
        return np.clip(np.stack(pictures), 0, 1)

    def _colours(self, face: Array, weight: Array) -> Array:
        """Colours (P, 3) of points on faces (P,), counted through all parts, at barycentrics (P, 3, 1)."""
        colour, first = np.zeros((len(face), 3), np.float32), 0
        for part in self.parts:
            mine = (face >= first) & (face < first + len(part.corners))
            value = (part.values[face[mine] - first] * weight[mine]).sum(1)
            if part.texture is not None:
                beyond = (value < 0) | (value > 1)  # glTF's and OBJ's textures go on by repeating themselves
                value = sample(part.texture, np.where(beyond, value - np.floor(value), value))
            colour[mine] = value
            first += len(part.corners)
        return colour


def _light(corners: Array, weight: Array, eye: Array) -> Array:
    """Shade (P,) of points at barycentrics (P, 3, 1) of triangles (P, 3, 3), whose normals point to the eye."""
    a, b, c = corners.swapaxes(0, 1)
    normal = raster.unit(np.cross(b - a, c - a))
    facing = (normal * raster.unit(eye - (corners * weight).sum(1))).sum(1)
    return 0.5 + 0.2 * np.sign(facing) * normal[:, 2] + 0.3 * np.abs(facing)


def centred(mesh: ColouredMesh, radius: float = 0.8) -> ColouredMesh:
    """Moved and scaled so that its bounding box is about the origin and its farthest corner ``radius`` away."""
    points = mesh.corners.reshape(-1, 3)
    middle = (points.min(0) + points.max(0)) / 2
    scale = radius / np.linalg.norm(points - middle, axis=1).max()
    return mesh.moved(lambda corners: (corners - middle) * scale)


def fitted(mesh: ColouredMesh, half: float) -> ColouredMesh:
    """Moved and scaled so that its bounding box is about the origin and its largest coordinate is ``half``."""
    low, high = mesh.corners.min((0, 1)), mesh.corners.max((0, 1))
    scale = 2 * half / (high - low).max()
    return mesh.moved(lambda corners: (corners - (low + high) / 2) * scale)


# --- where they come from ----------------------------------------------------------------------------------------


def toybox_mesh(asset: Asset, segments: int = 32) -> ColouredMesh:
    """The solids of a toybox asset as triangles, unlit."""
    vertices, faces, colours, _ = asset.mesh(segments)
    return ColouredMesh((Part(vertices[faces], np.repeat(colours[:, None], 3, axis=1)),))


def read_mesh(path: Path, up: Literal["y", "z"] = "y") -> ColouredMesh:
    """A GLB, glTF, OBJ or PLY file. With ``up`` y the front is +z, as glTF has it, with z the axes are ours already.

    Raises ConfigError, naming the file, for what cannot be read, and Empty for what has no triangle with an area.
    """
    gltf, plain = path.suffix.lower() in (".glb", ".gltf"), True

    def part(piece: Any, place: Array) -> Part:
        nonlocal plain
        made, coloured = _part(piece, gltf)
        plain = plain and not coloured
        return sound(replace(made, corners=made.corners @ place[:3, :3].T + place[:3, 3]))

    parts = read_pieces(path, part)
    mesh = ColouredMesh(tuple(made for made in parts if len(made.corners)), plain)
    if not mesh.parts:
        raise Empty(f"{path} is empty: it has no triangle with an area")
    if (farthest := np.abs(mesh.corners).max()) > FARTHEST:
        raise ConfigError(f"{path} has coordinates of {farthest:.3g}, and {FARTHEST:.3g} is the most")
    return mesh.moved(lambda corners: corners[..., [2, 0, 1]]) if up == "y" else mesh


def sound(part: Part) -> Part:
    """Without triangles that are not finite or have no area."""
    a, b, c = (part.corners[:, k] for k in range(3))
    with np.errstate(all="ignore"):
        area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        keep = np.isfinite(part.corners).all((1, 2)) & np.isfinite(part.values).all((1, 2)) & (area > 0)
    return replace(part, corners=part.corners[keep], values=part.values[keep])


def _part(piece: Any, gltf: bool) -> tuple[Part, bool]:
    """A piece of a file, and whether it has colours of its own, beside that of its material.

    Colours of corners and of materials are linear light in glTF, and multiply each other; pictures never are linear.
    Beside a picture, colours of corners are left out, and of an OBJ file those of the material: few programs that write
    one mean it.
    """
    corners, visual, colours = np.asarray(piece.vertices, np.float64)[piece.faces], piece.visual, None
    shape, material = corners.shape, getattr(visual, "material", None)
    if visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors, np.float64)[:, :3][piece.faces] / 255
    elif visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors, np.float64)[:, None, :3] / 255, 3, axis=1)
    elif visual.kind != "texture":
        return Part(corners, np.full(shape, PLAIN)), False
    else:
        picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if picture is not None and visual.uv is not None:
            factor = to_srgb(_factor(material)) if gltf else 1.0
            texture = np.asarray(picture.convert("RGB"), np.float32) / 255 * factor
            return Part(corners, np.asarray(visual.uv, np.float64)[piece.faces], texture), True
        beside = getattr(visual, "vertex_attributes", {}).get("color")  # as they are in the file
        if beside is not None and len(beside) == len(piece.vertices):
            whole = np.iinfo(beside.dtype).max if beside.dtype.kind in "ui" else 1
            colours = (np.asarray(beside, np.float64)[:, :3] / whole)[piece.faces]
        painted = np.broadcast_to(_factor(material), shape) * (1.0 if colours is None else colours)
        return Part(corners, to_srgb(painted) if gltf else painted), colours is not None
    return Part(corners, to_srgb(colours) if gltf else colours), True


def _factor(material: Any) -> Array:
    """The colour (3,) by which a material multiplies, as it is in the file."""
    for name in ("baseColorFactor", "diffuse"):
        value = getattr(material, name, None)
        if value is not None:
            return np.asarray(value, np.float64)[:3] / (255 if np.asarray(value).dtype.kind == "u" else 1)
    return np.ones(3)
