"""Readers of existing views of a scene for the consistency score: photos with poses, or the layout of SRN archives.

A scene of an SRN archive (scene representation networks) has the folders rgb/ and pose/ and the file intrinsics.txt.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from threedgen.config import ConfigError
from threedgen.data.posed.convention import check_convention
from threedgen.data.posed.files import FLIP, focus
from threedgen.data.posed.options import PoseConvention
from threedgen.data.posed.photos import PosedPhotos, open_photos
from threedgen.data.posed.reader import posed_source
from threedgen.data.srn.reader import Instance, open_instance
from threedgen.geometry.views import border_pixels
from threedgen.representations.fit import Bounds, border_colour
from threedgen.run.arrays import Array, evenly_spaced

from .options import MIN_VIEWS, PHOTO_SIZE, FolderSamplerConfig, PosedScenesConfig

SURROUNDINGS, MAX_SURROUNDINGS = 1.5, 4.0
"""Radius of the ball that a neural field covers, in units of the largest camera distance from the scene's centre. The
first value is used if photos have no plain background, no scene cube (Instant-NGP) and no COLMAP points. The second
value is the maximum for photos with COLMAP points."""
BOX_RADIUS = 1.3
"""Radius of the ball that a neural field covers, in units of half the side of Instant-NGP's scene cube. The value would
be 1 for the ball inscribed in the cube, and 1.73 for the ball through its corners."""
MAX_DIFFERENCE, CHECKED_PHOTOS = 0.1, 6
"""Photos have a plain background if at least half of the pixels at their borders differ from one colour by less than
the first value, in [0, 1], in every channel. The second value is the number of photos that are checked."""


class FolderScene(NamedTuple):
    """Existing views of a scene.

    Attributes:
        views: reader of the scene: its attribute ``cameras`` has the cameras of all views, and its method ``views``
            reads the images.
        bounds: (radius, near, far) in world units: radius of the ball around the origin that a neural field of the
            scene covers, and distances from a camera to the two ends of its rays; None: computed from the cameras.
        notes: remarks for the user, such as missing photos.
        origin: point in the world of the files that is moved to the origin.
    """

    views: Instance
    bounds: Bounds | None = None
    notes: tuple[str, ...] = ()
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)


def open_scenes(config: FolderSamplerConfig | PosedScenesConfig) -> dict[str, FolderScene]:
    """Open the scenes of a config (`open_scene`). Return a dict by name. Raises ConfigError if two have one name."""
    scenes = dict[str, FolderScene]()
    for path in config.folders():
        scene = open_scene(path, config)
        if scenes.setdefault(scene.views.name, scene) is not scene:
            raise ConfigError(
                f"has two scenes of one name: {scene.views.name}. Rename the folder of one", "path", config.path
            )
    return scenes


def open_scene(path: Path, config: FolderSamplerConfig | PosedScenesConfig) -> FolderScene:
    """Open the scene at `path` and check its files. Raises ConfigError if a file is missing or unusable.

    `path` is a transforms.json, a folder of photos with poses, or a folder in the layout of the SRN archives (rgb/,
    pose/, intrinsics.txt). `config` states the maximum size and the pose convention of photos (`size`, `poses`), and
    the up axis of an SRN scene (`up`).
    """
    if posed_source(path):
        return open_photo_scene(path, config.size or PHOTO_SIZE, config.poses)
    instance = open_instance(path, config.up, MIN_VIEWS)
    instance.verify()
    return FolderScene(instance)


def open_photo_scene(path: Path, size: int, convention: PoseConvention | None) -> FolderScene:
    """Open photos with poses, check the poses, and move the centre of the scene to the origin.

    The centre (`scene_centre`) is that of the scene cube in the camera file or, without a cube, the point nearest to
    the viewing axes of all cameras. Without such a point (the axes are parallel, or all cameras are at one position),
    it is the median of the COLMAP points or, without points, a point in front of the cameras. `size` is the maximum of
    the longer image side in pixels. `convention` is that of the poses, such as "w2c-opencv" (world-to-camera, OpenCV
    axes); None: that of the file format. Raises ConfigError if a file is unreadable, if there are fewer than 4 photos
    (`MIN_VIEWS`), or if the images show that the poses have another convention (`check_convention`).
    """
    photos = open_photos(path, size, convention)
    if len(photos) < MIN_VIEWS:
        raise ConfigError(f"{photos.posed.source} has {len(photos)} photos, and at least {MIN_VIEWS} are needed")
    notes = photos.posed.notes + check_convention(photos)
    centre, radius = scene_centre(photos)
    c2w = photos.cameras.c2w.clone()
    c2w[:, :3, 3] = torch.from_numpy(photos.poses[:, :3, 3] - centre)  # float64, for positions in map coordinates
    moved = replace(photos, cameras=replace(photos.cameras, c2w=c2w))
    distance = moved.cameras.position.norm(dim=-1)
    near, far = float(distance.min()), float(distance.max())
    if radius is None and not has_plain_background(moved):
        radius = SURROUNDINGS * far
    note = f"{photos.name}: the origin is moved to {(np.round(centre, 3) + 0.0).tolist()}, which the cameras look at"
    if radius is None:
        return FolderScene(moved, None, (*notes, note), tuple(centre))
    note += f". The field is a ball of radius {radius:.3g} in units of the poses; what is outside has one colour"
    bounds = Bounds(radius, max(0.05 * near, near - radius), far + radius)
    return FolderScene(moved, bounds, (*notes, note), tuple(centre))


def has_plain_background(photos: PosedPhotos) -> bool:
    # most border pixels have one colour, as in photos of an object on white
    views = photos.views(evenly_spaced(len(photos), CHECKED_PHOTOS))
    return bool((border_pixels(views.images) - border_colour(views)).abs().amax(-1).median() < MAX_DIFFERENCE)


def scene_centre(photos: PosedPhotos) -> tuple[Array, float | None]:
    """Return the centre (3,) of a scene and the radius of a ball for its neural field, in the world of the poses.

    The centre is the first of these points that exists:
        1. centre of the scene cube in the camera file (Instant-NGP)
        2. point nearest to all viewing axes; there is none if they are parallel, or if all cameras are at one position
        3. median of the points of the COLMAP model
        4. p + s d, with the mean camera position p, the mean d of the unit viewing directions, and the longest side s
           of the bounding box of the camera positions

    The radius is the first of these that applies:
        1. with a scene cube: 1.3 times (`BOX_RADIUS`) half the side of the cube
        2. with COLMAP points: the radius of a ball with 95 % of the points, but at most 4 times (`MAX_SURROUNDINGS`)
           the largest distance of a camera from the centre
        3. otherwise: None
    """
    posed, c2w = photos.posed, photos.poses @ FLIP
    if posed.box is not None:
        return posed.box[0], BOX_RADIUS * posed.box[1]
    (point, agreement), position = focus(c2w), c2w[:, :3, 3]
    if not agreement:
        ahead = position.mean(0) - c2w[:, :3, 2].mean(0) * np.ptp(position, axis=0).max()
        point = ahead if posed.points is None else np.median(posed.points, axis=0)
    if posed.points is None:
        return point, None
    to_points, to_cameras = (np.linalg.norm(part - point, axis=1) for part in (posed.points, position))
    return point, min(float(np.quantile(to_points, 0.95)), MAX_SURROUNDINGS * float(to_cameras.max()))
