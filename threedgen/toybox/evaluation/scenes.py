"""Toybox scenes of the consistency score: held-out captions, and renders of true objects as original views."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from threedgen.evaluation.consistency.scenes import Scene
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.toybox.world.raycast import render

from .held_out import Case, held_out_cases
from .options import ToyboxScenesConfig

BACKGROUND = 0.5
"""Grey value of the background of toybox objects, equal to that of samples of the prior."""


def toybox_scenes(config: ToyboxScenesConfig, sampler: object, seed: int) -> list[Scene]:
    """Return scenes of held-out captions. The original views show a true object that no training uses."""
    fov, elevation = float(np.deg2rad(config.fov)), float(np.deg2rad(config.elevation))
    distance = config.relative_distance / float(np.tan(fov / 2))
    cameras = orbit(config.views, elevation, distance, fov, config.size, config.size)

    def original(case: Case, indices: Sequence[int]) -> Views:
        chosen = cameras.select(list(indices))
        asset, fovs = np.zeros(len(chosen), np.int64), np.full(len(chosen), fov)
        image = render([case.truth(seed)], asset, chosen.c2w.numpy(), fovs, config.size, BACKGROUND, 3)
        return Views(torch.from_numpy(image.rgb), chosen)

    numbers = tuple(range(len(cameras)))
    return [
        Scene(f"{k:03d}-{case.caption.replace(' ', '-')}", cameras, numbers, (), case.caption, partial(original, case))
        for k, case in enumerate(held_out_cases(config.count, seed, spread=True))
    ]
