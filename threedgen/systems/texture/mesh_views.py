"""Images that the user gives for a mesh: six orthographic sides, or photos with poses.

The outlines of the object in the images are compared with the mesh, to find wrong axes or poses.

The poses of photos should be in the coordinates of the mesh file. Coordinates with another up axis are recognised.
"""

import logging
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree

from threedgen.config import ConfigError
from threedgen.data.posed.convention import check_convention
from threedgen.data.posed.photos import PosedPhotos, open_photos
from threedgen.data.posed.reader import posed_source
from threedgen.export.shape.mesh import TexturedMesh
from threedgen.export.surface.blend import OBJECT_BLEND, SCENE_BLEND, BlendOptions
from threedgen.export.surface.from_views import texture_from_views
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.image_file import MIN_OPAQUE_ALPHA, foreground_mask, load_image
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.views import resize
from threedgen.run.arrays import Array, evenly_spaced
from threedgen.systems.sample.mesh import MeshFrame, six_sides
from threedgen.systems.sample.options import SIDES

from .options import SidesConfig, TextureConfig

logger = logging.getLogger(__name__)

MIN_OVERLAP = 0.8
"""Minimum overlap (intersection over union) of the outlines of an image and of the mesh, as in MV-Adapter."""
OUTLINE_SIZE = 96
"""Longer side in pixels at which outlines are compared. Differences of one pixel do not count."""
CHECKED_PHOTOS, CHECK_TEXELS, MAX_PSNR = 6, 128, 40.0
"""Constants of `place_photos`, which finds the coordinate system of the poses of photos.

CHECKED_PHOTOS photos are compared with the mesh. If the object cannot be separated in them, they are projected onto a
texture with CHECK_TEXELS texels per side. The PSNR of texture and photos counts up to MAX_PSNR, in dB.
"""
MIN_GAIN = 0.05
"""Minimum amount by which the score of another coordinate system must exceed that of the mesh file's system.

The score, in [0, 1], says how well photos fit the mesh. It is the median overlap (intersection over union) of the
outlines or, without outlines, (fraction of the texels that a photo shows) * PSNR / `MAX_PSNR`.

Without outlines, this is also the minimum lead of the chosen system; below it the user is warned. In three scenes with
turned axes the right turn led by 0.41, 0.36 and, in a nearly symmetric room, 0.054. With poses in arbitrary coordinates
of the same scenes, where no turn is right, the best one led by 0.023, 0.006 and 0.002. The limit is near the upper end
of the gap, because a needless warning costs less than a wrong texture without one.
"""
SYMMETRY = 0.02
"""Maximum mean distance of the turned vertices of a mesh to its nearest vertices, for a turn that changes nothing.

The longest side of the mesh is 1.
"""
LARGE = 512  # minimum image side in pixels at which the projection discards a wide margin beside depth edges
PHOTO_ERROR = 0.01
"""Maximum depth difference, as a fraction of the depth, between a texel and the surface visible at its pixel.

A texel with a larger difference counts as hidden in the photo.
"""
Z_TO_Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
AXES = ("+x", "-x", "+y", "-y", "+z", "-z")
TURNS = [(front, up) for front, up in product(AXES, AXES) if front[-1] != up[-1]]
"""The 24 turns of the axes, as the axes that become +x (front) and +z (up)."""


class MeshViews(NamedTuple):
    """N images of an object with their cameras.

    Attributes:
        images: (N, H, W, 3) in [0, 1], float arrays of numpy.
        cameras: N cameras in world coordinates.
        masks: (N, H, W) opacity of the object in [0, 1]; None: unknown.
        names: N names of the images.
    """

    images: Array
    cameras: Cameras
    masks: Array | None = None
    names: tuple[str, ...] = SIDES

    @property
    def blend(self) -> BlendOptions:
        """Rules for the projection of these images onto the mesh: which pixels are used, and with which weights.

        Examples are the width of the margin beside depth edges, and the maximum depth error of a used pixel.
        """
        margin = OBJECT_BLEND.margin if min(self.cameras.height, self.cameras.width) >= LARGE else 1
        sides = replace(OBJECT_BLEND, margin=margin)
        if self.cameras.projection.parallel:
            return sides
        return replace(sides, error=PHOTO_ERROR, jump=SCENE_BLEND.jump, window=True)


def read_views(config: TextureConfig, rig: SidesConfig) -> MeshViews | PosedPhotos | None:
    """Read the images at the path `config.views`. Return None if this option is not set.

    - If the path is or contains a file of photo poses (transforms.json or a COLMAP model), read this file and the image
      headers, and return PosedPhotos, which reads the pixels later. Photos are reduced if their longer side has more
      than `rig.size` pixels.
    - Otherwise read six images with their pixels, and return MeshViews. The files in the folder are front.png,
      right.png, back.png, left.png, top.png and bottom.png.

    Raises ConfigError if a file is missing or cannot be used.
    """
    if config.views is None:
        return None
    folder = Path(config.views).expanduser()
    if not posed_source(folder):
        return read_sides(folder)
    return open_photos(folder, rig.size, config.poses)


def read_sides(folder: Path) -> MeshViews:
    """Read six views of an object from a folder. Their alpha channels become the masks, their cameras are orthographic.

    The files, in the order of the result, are front.png, right.png, back.png, left.png, top.png and bottom.png. Raises
    ConfigError if an image is missing or not square, or if the sizes differ or all images are transparent.
    """
    images = [np.asarray(load_image(folder / f"{side}.png", key="views").convert("RGBA")) for side in SIDES]
    height, width = images[0].shape[:2]
    if height != width or any(image.shape != images[0].shape for image in images):
        sizes = ", ".join(f"{side} {p.shape[1]} x {p.shape[0]}" for side, p in zip(SIDES, images, strict=True))
        raise ConfigError(f"the images of {folder} should be square and of one size, and are: {sizes}", "views")
    stack = np.stack(images).astype(np.float32) / 255
    if not stack[..., 3].any():
        raise ConfigError(f"the images of {folder} are all transparent", "views")
    return MeshViews(stack[..., :3], six_sides(height), stack[..., 3])


def outlines(views: MeshViews) -> tuple[Array, list[int]]:
    """Return small bool masks (K, h, w), True for the object, to compare outlines, and the indices of the K images.

    The longer side of a mask has `OUTLINE_SIZE` = 96 pixels. Images are left out if the object cannot be separated,
    either by transparency or by a background of one colour.
    """
    at = views.cameras
    scale = OUTLINE_SIZE / max(at.height, at.width)
    size = max(1, round(at.height * scale)), max(1, round(at.width * scale))
    masks, index = list[Array](), list[int]()
    for n, image in enumerate(views.images):
        mask = np.ones(image.shape[:2]) if views.masks is None else views.masks[n]
        mask = foreground_mask(image) if mask.min() > MIN_OPAQUE_ALPHA else mask
        if mask.max() > 0.5 > mask.min():
            masks.append(resize(torch.from_numpy(mask)[None, ..., None].float(), *size)[0, ..., 0].numpy() > 0.5)
            index.append(n)
    return np.array(masks).reshape(-1, *size), index


def overlaps(vertices: Array, faces: Array, cameras: Cameras, masks: Array) -> Array:
    """Return the intersection over union (K,) of object masks (K, h, w) and the silhouettes of a mesh in K cameras.

    `vertices` are the V vertices (V, 3) in world coordinates, `faces` the vertex indices (F, 3) of the F triangles. A
    pixel in only one of mask and silhouette counts as common if it touches a pixel of the other, also diagonally.
    """
    seen = rasterise_views(vertices, faces, cameras.with_size(*masks.shape[1:])).mask
    wide = np.ones((1, 3, 3), bool)
    wrong = seen & ~ndimage.binary_dilation(masks, wide) | masks & ~ndimage.binary_dilation(seen, wide)
    return 1 - wrong.sum((1, 2)) / np.maximum((seen | masks).sum((1, 2)), 1)


def check_sides(views: MeshViews, mesh: TexturedMesh, frame: MeshFrame) -> None:
    """Raise ConfigError if the object in an image has another outline than the mesh from the same side.

    Outlines differ if their intersection over union is below `MIN_OVERLAP` = 0.8. The error names the axes of the mesh
    file, as options `front` and `up`, with which the outlines fit best. `frame` is the coordinate transform from
    the mesh file to the world.
    """
    masks, index = outlines(views)
    if not index:
        return
    cameras = views.cameras.select(index)

    def overlap(front: str, up: str) -> Array:
        turn = MeshFrame(up, front).rotation @ frame.rotation.T
        return overlaps((mesh.vertices @ turn.T).astype(np.float32), mesh.faces, cameras, masks)

    own = overlap(frame.front, frame.up)
    if own.min() >= MIN_OVERLAP:
        return
    turns = sorted(TURNS, key=lambda turn: (turn[1] != frame.up, turn != (frame.front, frame.up)))  # nearest first
    best = max(turns, key=lambda turn: round(float(overlap(*turn).min()), 2))
    side = views.names[index[int(own.argmin())]]
    problem = f"the outlines of {side} and of the mesh overlap by {own.min():.2f}, less than {MIN_OVERLAP}"
    if best == (frame.front, frame.up):
        raise ConfigError(
            f"{problem}, and no turn of the mesh fits better. The mesh should be centred, with its longest side in "
            f"{1 / 1.1:.0%} of the images; compare with preview.png of a run without views",
            "views",
        )
    turn = f"front={best[0]}" + (f" up={best[1]}" if best[1] != frame.up else "")
    raise ConfigError(f"{problem}. With {turn} they overlap by {overlap(*best).min():.2f}", "views")


def lead_warning(mesh: TexturedMesh, placed: dict[str, Cameras], scores: dict[str, float], best: str) -> list[str]:
    """Return [a warning] if photos fit the mesh in the coordinates `best` hardly better than in others; else [].

    `placed` has the cameras in world coordinates, and `scores` says how well the photos then fit, by the coordinates of
    the poses. Coordinates in which a symmetric mesh looks the same as in `best` do not count as others.
    """
    tree, inverse = cKDTree(mesh.vertices), placed[best].c2w[0].double().inverse().numpy()

    def differs(world: str) -> bool:
        turn = placed[world].c2w[0].double().numpy() @ inverse
        return tree.query(mesh.vertices @ turn[:3, :3].T + turn[:3, 3])[0].mean() > SYMMETRY

    second = max((score for world, score in scores.items() if differs(world)), default=0.0)
    if scores[best] >= second + MIN_GAIN:
        return []
    text = f"the axes of the photos are uncertain: score={scores[best]:.3f}, with other axes {second:.3f}"
    return [f"{text}. Look at after.png; if the texture is wrong, give poses in coordinates of the mesh"]


def place_photos(photos: PosedPhotos, mesh: TexturedMesh, frame: MeshFrame) -> tuple[MeshViews, list[str]]:
    """Read photos, and transform their cameras to world coordinates. Return images with cameras, and notes to print.

    The poses may be in the coordinates of the mesh file, in the same coordinates with other axes (24 turns), or in the
    coordinates before the transform that nerfstudio has applied (applied_transform). Of these, the coordinates are used
    in which the renders of the mesh fit the photos best: by the overlap of the outlines if most photos show an outline,
    else by the colours. If none stands out by the colours, one of the notes is a warning.

    Args:
        photos: photos with camera poses.
        mesh: mesh in world coordinates.
        frame: transform from the mesh file to the world.

    Raises:
        ConfigError: the mesh fits the photos in none of the coordinates (outlines hardly overlap, or no photo shows the
            mesh), or the poses do not have the convention that `photos` names, such as "c2w-opengl".
    """
    notes = photos.posed.notes + check_convention(photos)
    rgba = np.stack([photos.rgba(k) for k in range(len(photos))])
    views = MeshViews(rgba[..., :3], photos.cameras, rgba[..., 3], photos.names)
    worlds = {"": np.eye(4), "turned from z up to y up": Z_TO_Y_UP, "turned from y up to z up": Z_TO_Y_UP.T}
    if photos.posed.applied is not None:
        worlds["that before applied_transform"] = np.linalg.inv(photos.posed.applied)
    for front, up in TURNS:
        turn = np.eye(4)
        turn[:3, :3] = MeshFrame(up, front).rotation
        if not any(np.array_equal(turn, other) for other in worlds.values()):
            worlds[f"turned so that its {front} and {up} are +x and +z of the mesh file"] = turn
    c2w = opencv_axes(torch.from_numpy(photos.poses))
    placed = {
        world: replace(photos.cameras, c2w=frame.poses_to_world(torch.from_numpy(turn) @ c2w).float())
        for world, turn in worlds.items()
    }
    some = evenly_spaced(len(photos), CHECKED_PHOTOS)
    masks, index = outlines(views._replace(images=views.images[some], masks=rgba[some, ..., 3]))
    with_outlines, size = 2 * len(index) > len(some), masks.shape[1:]
    images = resize(torch.from_numpy(views.images[some]), *size).numpy()

    def score(cameras: Cameras) -> float:
        at = cameras.select(some).with_size(*size)
        if with_outlines:
            return float(np.median(overlaps(mesh.vertices, mesh.faces, at.select(index), masks)))
        with suppress(ConfigError):  # no photo shows the mesh
            made = texture_from_views(mesh, CHECK_TEXELS, at, images, views._replace(cameras=at).blend)
            return made.share * min(made.psnr, MAX_PSNR) / MAX_PSNR
        return 0.0

    scores = {world: score(cameras) for world, cameras in placed.items()}
    best = max(scores, key=lambda world: round(scores[world], 2))  # of equal ones the most usual, which is first
    best = "" if scores[best] < scores[""] + MIN_GAIN else best
    if not scores[best] or with_outlines and scores[best] < MIN_OVERLAP:
        found = f"the overlap of their outlines is {scores[best]:.2f}" if with_outlines else "they do not show it"
        raise ConfigError(f"the photos do not fit the mesh: {found}. Give poses in coordinates of the mesh", "views")
    notes += [f"the world of the photos is {best}, which fits the mesh"] if best else []
    notes += [] if with_outlines else lead_warning(mesh, placed, scores, best)
    for note in notes:
        logger.warning("%s", note)
    return views._replace(cameras=placed[best]), notes
