"""Shows one caption four times, from the same two sides: truth, sampled views, 3D object, asset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from threedgen.data.coloured_mesh import fit_to_ball, read_mesh
from threedgen.data.toybox.raycast import RenderResult
from threedgen.evaluation.tables import thumbnails
from threedgen.geometry.poses import orbit_array
from threedgen.run.torch_file import read_safetensors
from threedgen.systems.generate.options import GenerateConfig
from threedgen.systems.generate.outputs import view_azimuths
from threedgen.systems.generate.result import Run

SIDES = 2
"""Sides of each; neighbours among the views that the prior samples, the first of which is the front."""
FILLS = 0.85
"""The radius that an asset, which stands on the ground in metres, is scaled to."""


def strip(config: GenerateConfig, truth: RenderResult, views: np.ndarray, size: int) -> np.ndarray:
    """Lays truth, sample, object and asset of a finished run side by side: (4 SIDES, size, size, 3) uint8, grey where
    the run has no such thing.

    truth, views: (8, H, W, 3) from the run's own turntable cameras. Raises ConfigError for files that cannot be read.
    """
    folder, table = Path(str(config.out)), config.result.turntable
    azimuth = np.deg2rad(config.preview.azimuth) + np.arange(SIDES) * 2 * np.pi / config.views_per_scene
    nearest = [int(np.argmax(np.cos(view_azimuths(table) - side))) for side in azimuth]
    c2w = orbit_array(np.deg2rad(table.elevation), azimuth, table.distance)
    preview, asset, grey = folder / "preview.safetensors", Run(folder, "").asset, np.full((SIDES, size, size, 3), 0.5)
    pictures = (
        truth.rgb[nearest],
        read_safetensors(preview)["views"][:SIDES].numpy() if preview.exists() else grey,
        views[nearest],
        fit_to_ball(read_mesh(asset), FILLS).render(c2w, float(np.deg2rad(table.fov)), size) if asset else grey,
    )
    return np.concatenate([thumbnails(part, size) for part in pictures])
