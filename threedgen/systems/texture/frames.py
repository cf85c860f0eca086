"""Frames of a scene (cameras, depth and prompts) from a camera path or a ScanNet folder, and choice of key frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi, radians
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy import ndimage
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import errors_default_to_key
from threedgen.data.scannet import ScanNetWalk
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.image_file import image_shape
from threedgen.geometry.poses import Poses, look_at, unit_vector
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.warp import check_pose_convention, key_frames, overlap, spread_pairs
from threedgen.run.arrays import Array
from threedgen.systems.sample.mesh import MeshFrame, SourceMesh

from .options import AUTO, PathConfig, TextureConfig

MIN_DEPTH = 0.1  # minimum fraction of pixels with known depth; frames below it are left out
SCANNET_EVERY = 20
"""Default frame step of a ScanNet folder, as in the reference code of MVDiffusion. ScanNet has 30 frames per second."""
KEY_FILE = "key_frame_0.6.txt"  # preferred list of key frames in a ScanNet folder
GRID, POINTS = 64, 400_000
"""Voxel grid of `interior`: voxels along the longest side of the scene, and number of random surface points.

A voxel with a surface point is full.
"""
EYE_HEIGHT = (0.35, 0.65)  # range of camera heights as a fraction of the room height: 0 is the floor, 1 the ceiling
RADIUS, MAX_RADIUS = 0.35, 0.8
"""Radius of the camera circle of `auto_path`: fraction of the distance from centre to surface, maximum in metres."""
TURNS, TILT = 2.0, 15.0
"""Turns of `auto_path` around its circle, and camera pitch in degrees: down at the first frame, up at the last."""


@dataclass(frozen=True)
class Frames:
    """N camera views (frames) of a scene, for which images are sampled.

    Attributes:
        cameras: N perspective cameras in world coordinates.
        depth: (N, H, W) in metres along the viewing axis; 0 where unknown.
        prompts: N prompts, one per frame.
        names: N file names of the frames without suffix, such as "0012".
        keys: indices of the key frames (frames that are sampled first) if a ScanNet folder lists two or more, else
            None: `choose_keys` then selects key frames.
    """

    cameras: Cameras
    depth: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    keys: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.cameras)


def read_frames(
    config: TextureConfig, rig: PathConfig, source: SourceMesh | None, frame: MeshFrame
) -> tuple[Frames, list[str]]:
    """Read the frames of a ScanNet folder, or create them along a camera path. Return them and a list of warnings.

    A frame has a camera, a depth map, a prompt and a name. If the option `rig.scannet` names a folder, frames are read
    from it. Otherwise the cameras are those in the file `rig.file` or, if this is "auto", on a circle inside the mesh,
    and their depth is rendered from the mesh. Frames with known depth in less than 10 % of their pixels are left out,
    with a warning.

    Args:
        config: options of the task, which have the prompts. Without any, the captions of the ScanNet folder are used.
        rig: options of the cameras: ScanNet folder or path, frame step and image size.
        source: the scene's mesh in world coordinates. It must not be None for a path, and is not used with a ScanNet
            folder.
        frame: coordinate transform from the mesh file to the world. The poses of a ScanNet folder are turned like the
            mesh.

    Raises:
        ConfigError: a file cannot be used, or fewer than two frames have enough depth.
    """
    notes = list[str]()
    if rig.scannet is not None:
        key = "rig.scannet"
        with errors_default_to_key(key):
            frames = scannet_frames(config, rig, Path(rig.scannet).expanduser(), notes)
        c2w = replace(frame, scale=1.0).poses_to_world(frames.cameras.c2w)  # the poses are in metres already
        frames = replace(frames, cameras=replace(frames.cameras, c2w=c2w))
    else:
        assert source is not None
        key, frames = "rig.poses", path_frames(config, rig, source, frame)
    known = (frames.depth > 0).flatten(1).float().mean(1) >= MIN_DEPTH
    kept = [n for n in range(len(frames)) if known[n]]
    if len(kept) < 2:
        found = f"{len(kept)} of {len(frames)} frames have depth in {MIN_DEPTH:.0%} of their pixels"
        raise ConfigError(f"{found}, and two are needed. Check the depth, rig.every and the axes of the poses", key)
    if len(kept) == len(frames):
        return frames, notes
    lost = [name for name, enough in zip(frames.names, known, strict=True) if not enough]
    notes.append(f"{len(lost)} of {len(frames)} frames have hardly any depth, left out: {', '.join(lost[:5])}")
    keys = tuple(k for k, n in enumerate(kept) if n in (frames.keys or ()))
    prompts, names = (tuple(part[n] for n in kept) for part in (frames.prompts, frames.names))
    cameras, depth = frames.cameras.select(kept), frames.depth[kept]
    return Frames(cameras, depth, prompts, names, keys if len(keys) > 1 else None), notes


def path_frames(config: TextureConfig, rig: PathConfig, source: SourceMesh, frame: MeshFrame) -> Frames:
    """Return every `rig.every`-th view of a camera path through a mesh: camera, rendered depth, prompt and name.

    Args:
        config: has the prompts: one for each camera of the path, or one for all.
        rig: options of the path. The cameras are in the file `rig.file`; "auto": on a circle in the free space inside
            the mesh.
        source: the mesh in world coordinates, whose depth is rendered.
        frame: coordinate transform from the mesh file to the world, applied to the poses in `rig.file`.

    Raises:
        ConfigError: the file cannot be read, the mesh has no free interior, the number of prompts is wrong, or the
            poses in the file are obviously not of the kind `rig.poses`: camera-to-world ("c2w") or world-to-camera
            ("w2c").
    """
    cameras = auto_path(source, rig) if rig.file == AUTO else read_path(rig, frame)
    prompts, used = config.view_texts(len(cameras)), list(range(0, len(cameras), rig.every or 1))
    if rig.file != AUTO and len(used) > 1:
        pairs = [used[n] for n in spread_pairs(len(used))]

        def read(poses: Poses) -> tuple[Tensor, Cameras]:
            at = read_path(rig.model_copy(update={"poses": poses}), frame).select(pairs)
            return depth_of_mesh(source, at), at

        check_pose_convention(read, rig.poses, rig.file, "rig.file")
    cameras = cameras.select(used)
    names = tuple(f"{n:04d}" for n in used)
    return Frames(cameras, depth_of_mesh(source, cameras), tuple(prompts[n] for n in used), names)


def read_path(rig: PathConfig, frame: MeshFrame) -> Cameras:
    """Read the cameras in the JSON file `rig.file` (format: `geometry.cameras_file`); return them in world coordinates.

    The file has poses in coordinates of the mesh file, which `frame` transforms to the world. The intrinsics are scaled
    to the image height of `rig`. If the aspect ratios differ, the images are cropped or widened equally on the left and
    right. Raises ConfigError if the file cannot be used.
    """
    path, height, width = Path(rig.file).expanduser(), rig.height, rig.width
    found = read_cameras(path, "rig.file", rig.poses, (height, width), rig.fov).cameras
    K = found.K.clone()
    K[:, 0, 2] -= found.width / 2
    K[:, :2] *= height / found.height
    K[:, 0, 2] += width / 2
    return Cameras(frame.poses_to_world(found.c2w), Projection(K), height, width)


def depth_of_mesh(source: SourceMesh, cameras: Cameras) -> Tensor:
    """Render the depth (N, H, W) of a mesh for N cameras, in metres along the viewing axis, float32.

    The depth of pixels that do not show the mesh is 0.
    """
    views = (rasterise_views(source.vertices, source.faces, cameras.select([n])).z for n in range(len(cameras)))
    depth = np.concatenate(list(views))
    return torch.from_numpy(np.where(np.isfinite(depth), depth, 0).astype(np.float32))


def scannet_frames(config: TextureConfig, rig: PathConfig, folder: Path, notes: list[str]) -> Frames:
    """Read frames (cameras, depth and captions) from a ScanNet folder. Warnings are appended to `notes`.

    The frames are the key frames that a file of the folder lists, and every `rig.every`-th (None: every 20th) of all
    frames with depth. Those without a pose are left out. Prompts of the config replace the captions of the folder.
    Raises ConfigError if the folder cannot be used.
    """
    key_files = [path.name for path in sorted(folder.glob("key_frame_*.txt"))]
    key_file = KEY_FILE if KEY_FILE in key_files or not key_files else key_files[0]
    walk = ScanNetWalk(folder, rig.height, rig.width, key_file, rig.poses)
    numbers, keys, every = walk.numbers("depth/*.png"), set(walk.keys if key_files else ()), rig.every or SCANNET_EVERY
    if missing := sorted(keys - set(numbers)):
        raise ConfigError(f"{folder / walk.key_file} names frames without depth: {missing[:5]}")
    wanted = sorted({*numbers[::every], *keys})
    used = [n for n in wanted if walk.has_pose(n)]
    if lost := sorted({*walk.numbers("pose/*.txt")} - {*numbers} | {*wanted} - {*used}):
        notes.append(f"{len(lost)} frames have no depth or no pose, left out: {', '.join(map(str, lost[:5]))}")
    if len(used) < 2:
        raise ConfigError(f"{folder}: {len(used)} frames have depth and a pose. Set rig.every below {every}")
    rows, columns = image_shape(walk.path("depth", used[0], "png"))
    if abs(columns / rows * rig.height / rig.width - 1) > 0.02:
        best = round(rig.height * columns / rows)
        raise ConfigError(f"does not fit depth images of {columns} x {rows} pixels. Try {best}", "rig.width", rig.width)
    walk.check_pose_convention(used)
    depth, cameras = walk.geometry(used)
    try:
        prompts = config.view_texts(len(used)) if config.texts() else list(map(walk.caption, used))
    except ConfigError as error:
        raise ConfigError(f"{error.problem}. Give prompt=TEXT for all frames", error.key or "prompt") from None
    indices = tuple(k for k, n in enumerate(used) if n in keys)
    return Frames(cameras, depth, tuple(prompts), tuple(map(str, used)), indices if len(indices) > 1 else None)


def choose_keys(frames: Frames, min_overlap: float) -> list[int]:
    """Return the ascending indices of the key frames, which are sampled before the other frames.

    They are `frames.keys`, the key frames listed in a ScanNet folder. If this is None, they are selected here: the
    first frame, the last frame, and frames between them. Each key frame then overlaps the next one by at least
    `min_overlap`, or is the frame directly before it.

    The overlap of frames A and B is the fraction of A's pixels that reproject into the image of B, or the same with A
    and B exchanged, whichever is smaller.
    """
    if frames.keys is not None:
        return list(frames.keys)
    keys, last = key_frames(frames.depth, frames.cameras, min_overlap), len(frames) - 1
    return keys if keys[-1] == last else [*keys, last]


def check_overlap(frames: Frames, keys: Sequence[int], min_overlap: float, key: str) -> list[str]:
    """Return a list with one warning, which names consecutive key frames with little overlap; [] if there are none.

    The overlap of two frames is the smaller of two fractions: of the pixels of each frame, those that reproject into
    the image of the other frame. It is little if it is at most `min_overlap`. `keys` are the indices of the key frames.
    If all pairs have little overlap, ConfigError is raised instead, for the config key `key`.
    """
    found = [overlap(frames.depth, frames.cameras, *pair) for pair in zip(keys, keys[1:], strict=False)]
    apart = [n for n, share in enumerate(found) if share <= min_overlap]
    if len(apart) == len(found):
        problem = f"no two consecutive key frames overlap by {min_overlap:.0%} ({max(found):.0%} at most)"
        raise ConfigError(f"{problem}. Use closer cameras, and check that poses and depth belong together", key)
    names = ", ".join(f"{frames.names[keys[n]]} and {frames.names[keys[n + 1]]}" for n in apart[:3])
    return [f"{len(apart)} of {len(found)} consecutive key frames hardly overlap: {names}"] if apart else []


def auto_path(source: SourceMesh, rig: PathConfig) -> Cameras:
    """Return `rig.frames` perspective cameras on a small circle in the free space inside a mesh.

    The centre of the circle is far from all surfaces (`interior`). Each camera looks across the centre to the other
    side. The pitch changes evenly, from downwards at the first camera to upwards at the last. Raises ConfigError if the
    mesh has no free interior.
    """
    centre, free = interior(source)
    n = torch.arange(rig.frames, dtype=torch.float32)
    azimuth = 2 * pi * TURNS * n / rig.frames
    tilt = radians(TILT) * (2 * n / max(1, rig.frames - 1) - 1)
    backwards = -unit_vector(torch.zeros_like(n), azimuth)
    position = torch.from_numpy(centre).float() + min(RADIUS * free, MAX_RADIUS) * backwards
    c2w = look_at(position, position + unit_vector(tilt, azimuth), torch.tensor([[0.0, 0, 1]]).expand(len(n), 3))
    projection = Projection.perspective(torch.full((len(n),), radians(rig.fov)), rig.height, rig.width)
    return Cameras(c2w, projection, rig.height, rig.width)


def interior(source: SourceMesh) -> tuple[Array, float]:
    """Find the point inside the mesh, at eye height (35 to 65 % of the room height), that is farthest from any surface.

    The search is on a voxel grid. A voxel is inside if it is empty and there is a surface below it and in each of the
    four horizontal directions. The ceiling of a room without one is at the height of the mesh's top. If no inside voxel
    at eye height is two voxels or more away from all surfaces, all heights are searched.

    Returns the world coordinates (3,) of the point, and its distance to the nearest surface in metres. Raises
    ConfigError if no inside voxel is two voxels or more away from all surfaces.
    """
    mesh = trimesh.Trimesh(source.vertices, source.faces, process=False)
    points = np.concatenate([trimesh.sample.sample_surface(mesh, POINTS, seed=0)[0], source.vertices])
    low, high = source.vertices.min(0), source.vertices.max(0)
    cell = float((high - low).max()) / GRID
    shape = np.maximum(np.ceil((high - low) / cell).astype(int), 1) + 2  # one layer of air all around
    full = np.zeros(shape, bool)
    full[tuple((((points - low) / cell).astype(int) + 1).clip(0, shape - 1).T)] = True
    levels = np.arange(shape[2])
    floor = np.maximum.accumulate(np.where(full, levels, -1), 2)  # highest full cell below each cell; -1: none
    top = levels[full.any((0, 1))].max()  # ceiling of cells with nothing above them
    ceiling = np.flip(np.minimum.accumulate(np.flip(np.where(full, levels, top), 2), 2), 2)
    sides = [np.maximum.accumulate(full, axis) for axis in (0, 1)]
    sides += [np.flip(np.maximum.accumulate(np.flip(full, axis), axis), axis) for axis in (0, 1)]
    inside = ~full & (floor >= 0) & np.logical_and.reduce(sides)
    height = (levels - floor) / np.maximum(ceiling - floor, 1)
    free = ndimage.distance_transform_edt(~full) * inside
    at_eyes = np.where((height >= EYE_HEIGHT[0]) & (height <= EYE_HEIGHT[1]), free, 0)
    chosen = at_eyes if at_eyes.max() >= 2 else free
    if chosen.max() < 2:
        raise ConfigError("the mesh has no free interior for a camera. Give rig.file=FILE.json", "rig.file")
    best = np.argwhere(chosen >= 0.999 * chosen.max())
    place = best[np.abs(best - best.mean(0)).sum(1).argmin()]
    return low + (place - 0.5) * cell, float(chosen.max() * cell)
