"""The frames of a scene that are to be drawn: cameras, depth, prompts; and whether they overlap as frames should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.overlap import key_frames, overlap
from threedgen.geometry.raster import rasterise_views

from .scene import SceneMesh

SEEN = 0.1
"""Share of a frame's pixels whose depth has to be known."""
POSES = "are they camera-to-world, in the coordinates of the scene, and the axes the right ones?"
"""What is asked where hardly any frame sees the scene."""


@dataclass(frozen=True)
class Shots:
    """N frames: depth (N,H,W) in metres along the viewing axis, 0 where it is unknown; a prompt each; names of their
    files; keys: indices of key frames, if someone has chosen them already."""

    cameras: Cameras
    depth: Tensor
    prompts: tuple[str, ...]
    names: tuple[str, ...]
    keys: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.cameras)


def depth_of_mesh(scene: SceneMesh, at: Cameras) -> Tensor:
    """Depth (N,H,W) of a mesh, 0 where there is none."""
    depth = np.concatenate([rasterise_views(scene.vertices, scene.faces, at.select([n])).z for n in range(len(at))])
    return torch.from_numpy(np.where(np.isfinite(depth), depth, 0).astype(np.float32))


def check_seen(depth: Tensor, names: Sequence[str], key: str = "poses", doubt: str = POSES) -> list[int]:
    """The frames that see enough of the scene. Raises ConfigError, with a ``doubt``, if not two of them do."""
    shares = (depth > 0).flatten(1).float().mean(1)
    good = [n for n, share in enumerate(shares.tolist()) if share >= SEEN]
    if len(good) < 2:
        known = f"{len(good)} of {len(names)} frames know the depth of {SEEN:.0%} of their pixels or more"
        raise ConfigError(f"{known}, and two are the least: {doubt}", key)
    return good


def choose_keys(shots: Shots, least: float) -> list[int]:
    """The key frames, of which each overlaps the next by ``least``, and the very last frame."""
    keys, last = key_frames(shots.depth, shots.cameras, least), len(shots) - 1
    return keys if keys[-1] == last else [*keys, last]


def check_overlap(shots: Shots, keys: Sequence[int], least: float, key: str) -> list[str]:
    """A note if some consecutive key frames overlap by less than ``least``. Raises ConfigError if none does more."""
    found = [overlap(shots.depth, shots.cameras, *pair) for pair in zip(keys, keys[1:], strict=False)]
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
