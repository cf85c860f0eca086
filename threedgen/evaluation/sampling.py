"""Samples views of prompts from a prior, on rings of cameras, and keeps what was drawn for a run that goes on.

RUN/samples/00003.safetensors   one batch of objects; a killed run goes on after the last whole one
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from threedgen.geometry.images import to_uint8
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.prior import Prior
from threedgen.run.disk import write_atomic
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.train.task import Task

logger = logging.getLogger(__name__)

RELATIVE_DISTANCE, FOV = 0.95, np.deg2rad(40.0)
Ring = tuple[np.ndarray, float]
"""Azimuth (V,) of its cameras and their elevation, radians."""


def random_ring(rng: np.random.Generator, n_view: int, elevation_range: tuple[float, float]) -> Ring:
    """Draws a ring of cameras, evenly from a random azimuth on; ``elevation_range``: degrees."""
    azimuth = rng.uniform(0, 2 * np.pi) + 2 * np.pi / n_view * np.arange(n_view)
    return azimuth % (2 * np.pi), float(np.deg2rad(rng.uniform(*elevation_range)))


def ring_poses(ring: Ring) -> Tensor:
    """Places the cameras of a ring: (V, 4, 4) camera-to-world."""
    azimuth = torch.from_numpy(ring[0]).float()
    distance = RELATIVE_DISTANCE / np.tan(FOV / 2)
    return orbit_c2w(torch.full_like(azimuth, ring[1]), azimuth, torch.full_like(azimuth, distance))


def sample_rings(prior: Prior, prompts: Sequence[str], rings: Sequence[Ring], options: Any, rngs: Any) -> np.ndarray:
    """Samples all prompts together, each on its ring and with its own generator: uint8 (N, V, H, W, 3).

    ``options``: steps, guidance_scale and, if there are any, negative_prompt and from_noise.
    """
    c2w = torch.stack([ring_poses(ring) for ring in rings])
    how = (options.steps, options.guidance_scale, getattr(options, "negative_prompt", ""))
    start: Any = {"init_strength": 1.0} if getattr(options, "from_noise", False) else {}
    return to_uint8(prior.sample(prompts, c2w, *how, rngs, **start).unflatten(0, (len(prompts), -1)))


def drawn_in_batches(
    task: Task,
    count: int,
    told: Callable[[range], dict[str, str]],
    draw: Callable[[range], np.ndarray],
    folder: str = "samples",
) -> np.ndarray:
    """Draws the views (N, V, H, W, 3), uint8, of ``count`` objects in batches, or reads those that are kept already.

    told: all that decides how a batch looks; draw: makes the views of one. Raises Stopped after Ctrl-C.
    """
    batch, found = task.config.batch, list[np.ndarray]()
    with Interrupts() as interrupts, Count("sampling", count, task.quiet) as progress:
        for start in range(0, count, batch):
            chosen = range(start, min(start + batch, count))
            path, metadata = task.folder / folder / f"{start // batch:05d}.safetensors", told(chosen)
            views = read_views(path, metadata)
            if views is None:
                interrupts.raise_if_stopped()
                views = draw(chosen)
                write_views(path, views, metadata)
            found.append(views)
            progress.add(len(chosen))
    return np.concatenate(found)


def write_views(path: Path, views: Any, metadata: dict[str, str]) -> None:
    """Writes views (..., H, W, 3) as uint8, with ``metadata``: all that decides how they look. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({"views": torch.from_numpy(to_uint8(views))}, metadata))


def read_views(path: Path, metadata: dict[str, str]) -> np.ndarray | None:
    """Reads what ``write_views`` wrote, uint8; None if it is missing, damaged, or of other metadata."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if file.metadata() == metadata:
                return file.get_tensor("views").numpy()
        logger.warning("%s is of another prior or sampler, or of other views; drawing it again", path)
    except (SafetensorError, OSError) as error:
        logger.warning("%s is damaged (%s); drawing it again", path, str(error).split("\n")[0])
    return None
