"""Measures how near results are to the toybox itself: as pictures (FID, KID on the probe's features) and as surfaces.

Both are figures between sets: results against true renders of the same captions from the same cameras, and beside them
the same between two draws of the truth, which is as near as the luck of a scene lets anything come.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.evaluation.metrics.distributions import fid, kid
from threedgen.evaluation.metrics.figures import median
from threedgen.evaluation.tables import markdown_table
from threedgen.export.run_field import open_run
from threedgen.export.shape.from_field import MAX_HALF_DEPTH, field_surface, half_depth
from threedgen.export.shape.opacity import EmptyField
from threedgen.geometry.raster import rasterise

from .probe import Probe

Views = Sequence[np.ndarray]
"""Pictures (V, H, W, 3) of each object, floats in [0, 1] or uint8."""


def features(probe: Probe, objects: Views) -> np.ndarray:
    """Computes the probe's features (N V, D) of N objects, from pictures of any size."""
    probe.eval()
    rows = []
    for views in objects:
        pictures = torch.from_numpy(np.asarray(views)).float() / (255 if views.dtype == np.uint8 else 1)
        rows.append(probe.features(pictures).cpu().numpy())
    return np.concatenate(rows)


def distances(probe: Probe, results: Views, truth: Views, other: Views) -> dict[str, float]:
    """Measures FID and KID of results and of a second draw of the truth (the ``floor``), both to a first one."""
    ours, first, second = (features(probe, views) for views in (results, truth, other))
    half = len(first) // 2
    figures: dict[str, float] = {}
    for name, rows in (("", ours), ("floor_", second)):
        figures[f"{name}fid"] = fid(rows, first)
        figures[f"{name}kid"] = kid(rows, first, subsets=50, size=half)[0]
    return figures


def roughness(normal: np.ndarray, mask: np.ndarray) -> float | None:
    """Measures the mean angle, degrees, between normals (V, H, W, 3) of neighbouring pixels in the outline (V, H, W);
    None if there are none. It grows with the size of a pixel: compare pictures of the same cameras."""
    angles = []
    for axis in (1, 2):
        count = normal.shape[axis]
        here, there = np.arange(count - 1), np.arange(1, count)
        cosine = (normal.take(here, axis) * normal.take(there, axis)).sum(-1)
        both = mask.take(here, axis) & mask.take(there, axis)
        angles.append(np.degrees(np.arccos(np.clip(cosine[both], -1, 1))))
    found = np.concatenate(angles)
    return float(found.mean()) if len(found) else None


Surface = tuple[float | None, bool]
"""Roughness of the surface from which assets are made, degrees, and whether it would be noted there as translucent."""


def surface(run: Path, c2w: np.ndarray, fov: float, size: int, resolution: int) -> Surface | None:
    """Measures the surface of a generate run as ``size`` pixels of cameras c2w (V, 4, 4), fov in radians, see it.

    None for a field without one. Raises ConfigError for a run that cannot be read.
    """
    view = open_run(run).view
    try:
        mesh = field_surface(view, resolution)
    except EmptyField:
        return None
    hit = rasterise(mesh.vertices, mesh.faces, c2w, fov, size)
    normal = (mesh.normals[mesh.faces[hit.face]] * hit.bary[..., None]).sum(-2)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    return roughness(normal, hit.mask), half_depth(mesh) > MAX_HALF_DEPTH


def surface_figures(found: Sequence[Surface | None], truth: Sequence[float | None]) -> dict[str, Any]:
    """Gives medians of the roughness of results and of the truth; how many results are translucent, or nothing."""
    there = [one for one in found if one is not None]
    return {
        "roughness": median([rough for rough, _ in there]),
        "floor_roughness": median(list(truth)),
        "translucent": sum(translucent for _, translucent in there),
        "without_surface": len(found) - len(there),
    }


WORDS = {
    "fid": "FID to the truth",
    "kid": "KID to the truth",
    "roughness": "roughness of the surface, degrees a pixel",
    "mottle": "mottle: Lab distance of the surface to a palette of four colours",
}


def fidelity_table(figures: dict[str, Any]) -> str:
    """Tabulates distances and surfaces in markdown, beside the same of the truth."""
    rows = [
        [words, *(f"{figures[name]:.3g}" if figures.get(name) is not None else "-" for name in (key, f"floor_{key}"))]
        for key, words in WORDS.items()
        if key in figures
    ]
    for key, words in (("translucent", "translucent objects"), ("without_surface", "objects without a surface")):
        if key in figures:
            rows.append([words, str(figures[key]), "0"])
    return markdown_table(["how near", "measured", "another draw of the truth"], rows)
