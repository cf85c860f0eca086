"""Samples of a prior for an evaluation, written to the run folder so that a killed run resumes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.prior import COARSE_STRENGTH, Prior
from threedgen.run.arrays import Array
from threedgen.run.disk import write_atomic

logger = logging.getLogger(__name__)

RELATIVE_DISTANCE, FOV = 0.95, np.deg2rad(40.0)
"""Camera distance in units of 1 / tan(FOV / 2), and vertical field of view in radians."""
Ring = tuple[np.ndarray, float]
"""Cameras around the origin at one elevation: azimuths (V,) and elevation, in radians."""


def random_ring(rng: np.random.Generator, n_view: int, elevation_range: tuple[float, float]) -> Ring:
    """Return `n_view` evenly spaced cameras. The azimuth of the first camera and the common elevation are random.

    `elevation_range` is in degrees; azimuths (V,) and elevation in the result are in radians.
    """
    azimuth = rng.uniform(0, 2 * np.pi) + 2 * np.pi / n_view * np.arange(n_view)
    return azimuth % (2 * np.pi), float(np.deg2rad(rng.uniform(*elevation_range)))


def ring_poses(ring: Ring) -> Tensor:
    """Return the camera-to-world poses (V, 4, 4), OpenGL axes, of a ring of cameras that look at the origin."""
    azimuth = torch.from_numpy(ring[0]).float()
    distance = RELATIVE_DISTANCE / np.tan(FOV / 2)
    return orbit_c2w(torch.full_like(azimuth, ring[1]), azimuth, torch.full_like(azimuth, distance))


def sample_objects(
    prior: Prior,
    prompts: Sequence[str],
    c2w: Tensor,
    rngs: list[torch.Generator],
    steps: int,
    guidance_scale: float,
    negative_prompt: str = "",
    from_noise: bool = False,
) -> Array:
    """Sample V views of each of N prompts in one batch. Return images (N, V, H, W, 3), uint8.

    Args:
        c2w: camera-to-world poses (N, V, 4, 4).
        rngs: one generator per prompt.
        steps: number of denoising steps.
        from_noise: start from pure noise, even if the prior predicts coarse latents to start from.
    """
    strength = 1.0 if from_noise else COARSE_STRENGTH
    views = prior.sample(prompts, c2w, steps, guidance_scale, negative_prompt, rngs, init_strength=strength)
    return to_uint8(views.unflatten(0, (len(prompts), -1)))


def kept_views(path: Path, metadata: dict[str, str], sample: Callable[[], Array | Tensor]) -> Array:
    """Return the views (..., H, W, 3), uint8, in the file ``path`` if it has this metadata. Otherwise call ``sample``,
    and write the views that it returns to the file."""
    views = read_views(path, metadata)
    if views is None:
        views = to_uint8(sample())
        write_views(path, views, metadata)
    return views


def write_views(path: Path, views: Array | Tensor, metadata: dict[str, str]) -> None:
    """Write views (..., H, W, 3) as uint8 to a file. ``metadata`` describes everything that determines the views."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({"views": torch.from_numpy(to_uint8(views))}, metadata))


def read_views(path: Path, metadata: dict[str, str]) -> Array | None:
    """Read views (..., H, W, 3), uint8, from a file. Return None if it is missing, damaged or has other metadata."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == metadata:
                views: Array = file.get_tensor("views").numpy()
                return views
        logger.warning("%s has views of another prior or other options; sampling them again", path)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); sampling it again", path, str(error).split("\n")[0])
    return None
