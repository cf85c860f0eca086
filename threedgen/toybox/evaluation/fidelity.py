"""Distance between results and true toybox objects: FID and KID on the features of the probe, roughness of surfaces.

The truth is a set of renders of toybox objects with the same captions and cameras. Each metric is also computed for a
second set of true objects. This value is the floor: the distance that random variation alone causes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from threedgen.evaluation.metrics.distributions import fid, kid
from threedgen.evaluation.metrics.figures import Json, median
from threedgen.evaluation.report import markdown_table
from threedgen.export.run_field import load_run_field
from threedgen.export.shape.from_field import MAX_HALF_DEPTH, field_surface, half_depth
from threedgen.export.shape.opacity import EmptyField
from threedgen.geometry.raster import rasterise
from threedgen.run.arrays import Array

from .probe import Probe

Views = Sequence[Array]
"""Images (V, H, W, 3) of each of N objects, floats in [0, 1] or uint8."""


def features(probe: Probe, objects: Views) -> Array:
    """Return the features (N V, D) of the last layer of the probe for V views of each of N objects."""
    probe.eval()
    rows = []
    for views in objects:
        images = torch.from_numpy(np.asarray(views)).float() / (255 if views.dtype == np.uint8 else 1)
        rows.append(probe.features(images).cpu().numpy())
    return np.concatenate(rows)


def distances(probe: Probe, results: Views, truth: Views, other: Views) -> dict[str, float]:
    """Return FID and KID to the truth, of the results ("fid", "kid") and of other true objects ("floor_fid", ...)."""
    ours, first, second = (features(probe, views) for views in (results, truth, other))
    half = len(first) // 2
    figures: dict[str, float] = {}
    for prefix, rows in (("", ours), ("floor_", second)):
        figures[f"{prefix}fid"] = fid(rows, first)
        figures[f"{prefix}kid"] = kid(rows, first, subsets=50, size=half)[0]
    return figures


def roughness(normal: Array, mask: Array) -> float | None:
    """Return the mean angle in degrees between the normals of neighbouring foreground pixels; None without such pairs.

    The angle increases with the size of a pixel on the surface, so compare only images from the same cameras.

    Args:
        normal: unit normals (V, H, W, 3).
        mask: foreground (V, H, W), bool.
    """
    angles = []
    for axis in (1, 2):
        count = normal.shape[axis]
        first, second = np.arange(count - 1), np.arange(1, count)
        cosine = (normal.take(first, axis) * normal.take(second, axis)).sum(-1)
        both = mask.take(first, axis) & mask.take(second, axis)
        angles.append(np.degrees(np.arccos(np.clip(cosine[both], -1, 1))))
    found = np.concatenate(angles)
    return float(found.mean()) if len(found) else None


class Surface(NamedTuple):
    """Properties of the surface of a field: roughness in degrees, and whether the field is translucent."""

    roughness: float | None
    translucent: bool


def surface(run: Path, c2w: Array, fov: float, size: int, resolution: int) -> Surface | None:
    """Measure the surface that the export extracts from the field of a generate run; None if there is no surface.

    Args:
        run: folder of the run.
        c2w: camera-to-world poses (V, 4, 4) of the renders of normals.
        fov: vertical field of view, radians.
        size: side of the renders, pixels.
        resolution: grid resolution of the surface extraction.

    Raises:
        ConfigError: if the run cannot be read.
    """
    view = load_run_field(run).view
    try:
        mesh = field_surface(view, resolution)
    except EmptyField:
        return None
    hit = rasterise(mesh.vertices, mesh.faces, c2w, fov, size)
    normal = (mesh.normals[mesh.faces[hit.face]] * hit.bary[..., None]).sum(-2)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    return Surface(roughness(normal, hit.mask), half_depth(mesh) > MAX_HALF_DEPTH)


def surface_figures(surfaces: Sequence[Surface | None], truth: Sequence[float | None]) -> Json:
    """Summarise the surfaces of results (None: no surface) and the roughness of true objects in degrees, as JSON."""
    found = [one for one in surfaces if one is not None]
    return {
        "roughness": median([one.roughness for one in found]),
        "floor_roughness": median(list(truth)),
        "translucent": sum(one.translucent for one in found),
        "without_surface": len(surfaces) - len(found),
    }


NAMES = {
    "fid": "FID to the truth",
    "kid": "KID to the truth",
    "roughness": "roughness of the surface, degrees per pixel",
    "mottle": "mottle: Lab distance of the surface to a palette of four colours",
}
COUNTS = {"translucent": "translucent objects", "without_surface": "objects without a surface"}


def fidelity_table(figures: Json) -> str:
    """Return a Markdown table of `distances` and `surface_figures`, with their floors in the last column."""
    rows = []
    for key, name in NAMES.items():
        if key in figures:
            values = (figures.get(key), figures.get(f"floor_{key}"))
            rows.append([name, *("-" if value is None else f"{value:.3g}" for value in values)])
    rows += [[name, str(figures[key]), "0"] for key, name in COUNTS.items() if key in figures]
    return markdown_table(["distance", "measured", "other true objects"], rows)
