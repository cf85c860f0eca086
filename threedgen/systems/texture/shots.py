"""The frames of a scene that are to be drawn: cameras, depth, prompts; and whether they overlap as frames should."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.poses import world_to_camera
from threedgen.geometry.raster import rasterise_views
from threedgen.geometry.warp import inside, look_up, of_cameras, pixel_grid, reproject

from .scene import SceneMesh

SEEN = 0.1
"""Share of a frame's pixels whose depth has to be known."""
AGREES = 0.1
"""Depths are the same if they differ by less than this share."""
PAIRS = 12
"""Pairs of frames that are tried to tell poses from their inverse."""


@dataclass(frozen=True)
class Shots:
    """N frames: depth (N,H,W) in metres along the viewing axis, 0 where it is unknown; a prompt each; names of their
    files; keys: indices of key frames, if someone has chosen them already."""

    at: Cameras
    depth: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    keys: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.at)

    def overlap(self, one: int, other: int) -> float:
        """Share of the picture that two frames have in common, the lesser of both ways.

        Unlike ``overlap_fractions``, which is as released weights know it, what is behind a camera does not count: of
        a path that turns around, opposite frames have nothing in common.
        """
        at, depth = self.at.select([one, other]), self.depth[[one, other]]
        return min(float(seen_by(depth, at, *pair)[2].double().mean()) for pair in ((0, 1), (1, 0)))


def depth_of_mesh(scene: SceneMesh, at: Cameras) -> Tensor:
    """Depth (N,H,W) of a mesh, 0 where there is none."""
    z = [
        rasterise_views(scene.vertices, scene.faces, one.c2w.numpy(), one.K.numpy(), (at.height, at.width)).z
        for one in (at.select([n]) for n in range(len(at)))
    ]
    depth = np.concatenate(z)
    return torch.from_numpy(np.where(np.isfinite(depth), depth, 0).astype(np.float32))


def check_seen(depth: Tensor, names: Sequence[str]) -> list[int]:
    """The frames that see enough of the scene. Raises ConfigError if not two of them do."""
    shares = (depth > 0).flatten(1).float().mean(1)
    good = [n for n, share in enumerate(shares.tolist()) if share >= SEEN]
    if len(good) < 2:
        raise ConfigError(
            f"{len(good)} of {len(names)} frames know the depth of {SEEN:.0%} of their pixels or more, and two are the "
            "least: are the poses camera-to-world, in the coordinates of the scene, and the axes the right ones?"
        )
    return good


def check_poses(at: Cameras, depth_at: Callable[[Cameras], Tensor], key: str, said: str) -> None:
    """Raises ConfigError for poses that make sense only if they are inverted.

    depth_at: cameras -> depth (N,H,W). said: what the poses were taken for, c2w or w2c.
    """
    step = max(1, (len(at) - 1) // PAIRS)
    first = [n for n in range(0, len(at) - 1, step)]
    tried = at.select(sorted({n for one in first for n in (one, one + 1)}))
    pairs = [(k, k + 1) for k in range(len(tried) - 1) if len(tried) == len(at) or k % 2 == 0]
    inverted = replace(tried, c2w=world_to_camera(tried.c2w))
    here, other = (agreement(depth_at(cameras), cameras, pairs) for cameras in (tried, inverted))
    if here < 0.3 and other > 2 * here + 0.1:
        right = {"c2w": "w2c", "w2c": "c2w"}[said]
        raise ConfigError(
            f"the poses are {'world-to-camera' if right == 'w2c' else 'camera-to-world'}, it seems: inverted, "
            f"consecutive frames agree on {other:.0%} of their pixels, as they are on {here:.0%}; give poses={right}",
            key,
        )


def agreement(depth: Tensor, at: Cameras, pairs: Sequence[tuple[int, int]]) -> float:
    """Mean share of the pixels of frames that another sees at the depth where they are; pairs of (one, other)."""
    shares = []
    for one, other in pairs:
        there, z, seen = seen_by(depth, at, one, other)
        found = look_up(depth[other].double(), there)
        shares.append(float((seen & (found > 0) & ((found - z).abs() < AGREES * z)).double().mean()))
    return sum(shares) / max(1, len(shares))


def seen_by(depth: Tensor, at: Cameras, one: int, other: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pixels of a frame are in another (P,2), how far (P,), and which of them lie in its picture (P,)."""
    K, c2w = (part.double() for part in of_cameras(at))
    pixels, here = pixel_grid(at.height, at.width).flatten(0, 1), depth[one].double().flatten()
    there, z = reproject(pixels, here, K[one], c2w[one], K[other], c2w[other])
    return there, z, inside(there, at.height, at.width) & (z > 0)


def key_frames(shots: Shots, overlap: float) -> list[int]:
    """Frames of which each is the last that overlaps the key frame before by so much, the very last frame included.

    Raises ConfigError if hardly any two consecutive frames overlap.
    """
    keys = [0]
    for n in range(1, len(shots)):
        if n - 1 > keys[-1] and shots.overlap(keys[-1], n) < overlap:
            keys.append(n - 1)
    return keys if keys[-1] == len(shots) - 1 else [*keys, len(shots) - 1]


def check_overlap(shots: Shots, keys: Sequence[int], least: float, key: str) -> list[str]:
    """A note if some consecutive key frames overlap by less than ``least``. Raises ConfigError if none does more."""
    found = [shots.overlap(one, other) for one, other in zip(keys, keys[1:], strict=False)]
    apart = [n for n, share in enumerate(found) if share <= least]
    if len(apart) == len(found):
        raise ConfigError(
            f"no two consecutive key frames have {least:.0%} of their pictures in common ({max(found):.0%} at most), "
            "so nothing ties them together: put the cameras closer to each other, and look whether poses and depth "
            "belong together",
            key,
        )
    if not apart:
        return []
    names = ", ".join(f"{shots.names[keys[n]]} and {shots.names[keys[n + 1]]}" for n in apart[:3])
    return [f"{len(apart)} of {len(found)} consecutive key frames hardly overlap: {names}"]
