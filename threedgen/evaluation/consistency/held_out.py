"""Chooses the views that a field does not see, and warns of cameras from which it cannot be expected to know them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from threedgen.config import ConfigError
from threedgen.geometry.cameras import Cameras
from threedgen.run.seeding import numpy_generator

from .scenes import Scene

logger = logging.getLogger(__name__)

ANGLE, DISTANCE = 30.0, 1.25
"""Further than so many degrees from every fitted camera, or so many times nearer or farther than all: far outside."""
ASIDE = 0.25
"""Of the cameras' distance: so far from the origin the point that they look at is another scene's middle."""


def held_out_places(scene: Scene, share: float, seed: int) -> list[int]:
    """Draws the places of the held-out views: 25 of 251 for 10 %. The same for all scenes with as many views, and for
    all samplers; never a view that was given. Raises ConfigError if nothing is left."""
    count = len(scene.at)
    free = scene.targets
    number = max(1, round(share * count))
    if number > len(free) - 1 or count - number < 2:
        raise ConfigError(f"{scene.name} has {count} views, too few to hold out {number} and fit a field to the others")
    rng = numpy_generator(seed, count, "held-out views")
    return sorted(int(k) for k in rng.choice(free, number, replace=False))


def warn_about(scene: Scene, held: Sequence[int]) -> list[str]:
    """Says what makes a score doubtful: held-out views far from all others, cameras around another point."""
    notes = []
    rest = [k for k in range(len(scene.at)) if k not in held]
    far = far_views(scene.at.select(rest), scene.at.select(list(held)))
    if far:
        notes.append(
            f"{scene.name}: {len(far)} held-out views are far outside the cameras that the field is fitted to, "
            f"such as number {scene.numbers[held[far[0]]]}"
        )
    point = looked_at(scene.at)
    if float(point.norm()) > ASIDE * float(scene.at.position.norm(dim=-1).median()):
        where = ", ".join(f"{x:.3g}" for x in point.tolist())
        notes.append(f"{scene.name}: the cameras look at ({where}), but the field is fitted around the origin")
    for sentence in notes:
        logger.warning("%s", sentence)
    return notes


def far_views(near: Cameras, asked: Cameras) -> list[int]:
    """Finds the places of cameras in ``asked`` that no camera in ``near`` is like, as seen from the origin."""

    def polar(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
        distance = cameras.position.norm(dim=-1)
        return cameras.position / distance.clamp(min=1e-9)[:, None], distance

    (directions, distances), (others, lengths) = polar(near), polar(asked)
    angle = torch.rad2deg(torch.acos((others @ directions.T).amax(1).clamp(-1, 1)))
    outside = (lengths > DISTANCE * distances.max()) | (lengths < distances.min() / DISTANCE)
    return ((angle > ANGLE) | outside).nonzero()[:, 0].tolist()


def looked_at(cameras: Cameras) -> torch.Tensor:
    """Finds the point (3,) nearest to all viewing axes; of parallel axes the one nearest to the origin too."""
    axis = -cameras.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - axis[:, :, None] * axis[:, None, :]
    A, b = across.sum(0), (across @ cameras.position.double()[..., None]).sum(0)
    return (torch.linalg.pinv(A, rtol=1e-6) @ b)[:, 0].float()
