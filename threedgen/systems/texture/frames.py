"""Frames of a scene (cameras, depth and prompts) from a camera path or a ScanNet folder, and choice of key frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import keyed
from threedgen.data.scannet import ScanNetWalk
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.cameras_file import read_cameras
from threedgen.geometry.picture_file import image_shape
from threedgen.geometry.poses import Poses
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.warp import check_pose_convention, key_frames, overlap, spread_pairs
from threedgen.systems.draw.mesh import MeshFrame, SourceMesh

from .auto_path import auto_path
from .options import AUTO, PathConfig, TextureConfig

MIN_DEPTH = 0.1
"""Minimum fraction of pixels with known depth; frames below it are left out."""
SCANNET_EVERY = 20
"""Default frame step of a ScanNet folder, as in the reference code of MVDiffusion. ScanNet has 30 frames per second."""
KEY_FILE = "key_frame_0.6.txt"


@dataclass(frozen=True)
class Frames:
    """N views of a scene, for which images are sampled.

    Attributes:
        cameras: N perspective cameras in world coordinates.
        depth: (N, H, W) in metres along the viewing axis; 0 where unknown.
        prompts: prompt of each frame.
        names: file name of each frame without its suffix.
        keys: indices of the key frames that a ScanNet folder lists; None if it lists none.
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
    """Return the frames of the scene that have enough depth, and notes on frames that were left out.

    `source` is the world mesh of the scene; a ScanNet folder needs none. Raises ConfigError if fewer than two frames
    are left, or if a file cannot be used.
    """
    notes = list[str]()
    if rig.scannet is not None:
        key = "rig.scannet"
        with keyed(key):
            frames = scannet_frames(config, rig, Path(rig.scannet).expanduser(), notes)
    else:
        assert source is not None
        key, frames = "rig.poses", path_frames(config, rig, source, frame)
    known = (frames.depth > 0).flatten(1).float().mean(1) >= MIN_DEPTH
    kept = [n for n in range(len(frames)) if known[n]]
    if len(kept) < 2:
        raise ConfigError(
            f"{len(kept)} of {len(frames)} frames have depth in {MIN_DEPTH:.0%} of their pixels, and two are needed; "
            "check the convention and axes of the poses, and the depth",
            key,
        )
    if len(kept) == len(frames):
        return frames, notes
    lost = [frames.names[n] for n in range(len(frames)) if not known[n]]
    notes.append(f"{len(lost)} of {len(frames)} frames have hardly any depth and were left out: {', '.join(lost[:5])}")
    keys = tuple(k for k, n in enumerate(kept) if n in (frames.keys or ()))
    prompts, names = (tuple(part[n] for n in kept) for part in (frames.prompts, frames.names))
    cameras, depth = frames.cameras.select(kept), frames.depth[kept]
    return Frames(cameras, depth, prompts, names, keys if len(keys) > 1 else None), notes


def path_frames(config: TextureConfig, rig: PathConfig, source: SourceMesh, frame: MeshFrame) -> Frames:
    """Return the frames of a camera path through a mesh; their depth is rendered. Raises ConfigError."""
    cameras = auto_path(source, rig) if rig.file == AUTO else read_path(rig, frame)
    prompts, used = config.view_texts(len(cameras)), list(range(0, len(cameras), rig.every or 1))
    if len(used) < 2:
        raise ConfigError(f"{len(used)} of {len(cameras)} cameras are left, and two are needed", "rig.every", rig.every)
    if rig.file != AUTO:
        pairs = [used[n] for n in spread_pairs(len(used))]

        def read(poses: Poses) -> tuple[Tensor, Cameras]:
            at = read_path(rig.model_copy(update={"poses": poses}), frame).select(pairs)
            return depth_of_mesh(source, at), at

        check_pose_convention(read, rig.poses, rig.file, "rig.file")
    cameras = cameras.select(used)
    names = tuple(f"{n:04d}" for n in used)
    return Frames(cameras, depth_of_mesh(source, cameras), tuple(prompts[n] for n in used), names)


def read_path(rig: PathConfig, frame: MeshFrame) -> Cameras:
    """Read a cameras.json with poses in the coordinates of the mesh file, and return world cameras. Raises ConfigError.

    The intrinsics are scaled to the image height of `rig`. Its width then crops or widens the images at both sides.
    """
    path, height, width = Path(rig.file).expanduser(), rig.height, rig.width
    found = read_cameras(path, "rig.file", rig.poses, (height, width), rig.fov).cameras
    K = found.K.clone()
    K[:, 0, 2] -= found.width / 2
    K[:, :2] *= height / found.height
    K[:, 0, 2] += width / 2
    return Cameras(frame.poses_to_world(found.c2w), Projection(K), height, width)


def depth_of_mesh(source: SourceMesh, cameras: Cameras) -> Tensor:
    """Render the depth (N, H, W) of a mesh for N cameras, in metres along the viewing axis; 0 where no mesh is."""
    views = (rasterise_views(source.vertices, source.faces, cameras.select([n])).z for n in range(len(cameras)))
    depth = np.concatenate(list(views))
    return torch.from_numpy(np.where(np.isfinite(depth), depth, 0).astype(np.float32))


def scannet_frames(config: TextureConfig, rig: PathConfig, folder: Path, notes: list[str]) -> Frames:
    """Read cameras, depth and captions from a ScanNet folder; its colour images are not needed. Raises ConfigError."""
    key_files = sorted(
        (path.name for path in folder.glob("key_frame_*.txt")), key=lambda name: (name != KEY_FILE, name)
    )
    walk = ScanNetWalk(folder, rig.height, rig.width, key_files[0] if key_files else KEY_FILE, rig.poses)
    numbers, keys, every = walk.depth_frames(), set(walk.keys if key_files else ()), rig.every or SCANNET_EVERY
    if missing := sorted(keys - set(numbers)):
        raise ConfigError(f"{folder / walk.key_file} names frames without depth: {_listed(missing)}")
    if lost := sorted(set(walk.pose_frames()) - set(numbers)):
        notes.append(f"{len(lost)} of {len(lost) + len(numbers)} frames have no depth, left out: {_listed(lost)}")
    wanted = sorted({*numbers[::every], *keys})
    used = [n for n in wanted if walk.has_pose(n)]
    if lost := sorted(set(wanted) - set(used)):
        notes.append(f"{len(lost)} of {len(wanted)} frames have no pose, left out: {_listed(lost)}")
    if len(used) < 2:
        raise ConfigError(f"{folder}: {len(used)} frames have depth and a pose. Set rig.every below {every}")
    rows, columns = image_shape(folder / "depth" / f"{used[0]}.png")
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


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def choose_keys(frames: Frames, min_overlap: float) -> list[int]:
    """Return the indices of the key frames that the ScanNet folder lists, or else of chosen ones and the last frame.

    A chosen key frame overlaps with the next by the fraction `min_overlap` of its pixels, where frames allow it.
    """
    if frames.keys is not None:
        return list(frames.keys)
    keys, last = key_frames(frames.depth, frames.cameras, min_overlap), len(frames) - 1
    return keys if keys[-1] == last else [*keys, last]


def check_overlap(frames: Frames, keys: Sequence[int], min_overlap: float, key: str) -> list[str]:
    """Return at most one note, on consecutive key frames whose fraction of common pixels is at most `min_overlap`.

    Raises ConfigError for the config key `key` if no pair overlaps enough.
    """
    found = [overlap(frames.depth, frames.cameras, *pair) for pair in zip(keys, keys[1:], strict=False)]
    apart = [n for n, share in enumerate(found) if share <= min_overlap]
    if len(apart) == len(found):
        raise ConfigError(
            f"no two consecutive key frames overlap by {min_overlap:.0%} ({max(found):.0%} at most). Use cameras "
            "closer to each other, and check that poses and depth belong together",
            key,
        )
    names = ", ".join(f"{frames.names[keys[n]]} and {frames.names[keys[n + 1]]}" for n in apart[:3])
    return [f"{len(apart)} of {len(found)} consecutive key frames hardly overlap: {names}"] if apart else []
