"""FID, KID and surfaces of samples or 3D objects, compared with ground-truth objects of the same captions.

FID and KID use features of the probe, a classifier of toybox images. They are also computed between two sets of
ground-truth objects from the same cameras. This value, the floor, is the distance that random variation alone causes:
the best that a sample can be expected to reach. The floor of other metrics, such as the roughness of surfaces, is their
value for ground-truth objects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from threedgen.evaluation.metrics.distributions import distance_functions
from threedgen.evaluation.metrics.figures import Estimate, Json, jackknife_estimate, median_estimate
from threedgen.evaluation.report import format_estimate, markdown_table
from threedgen.export.shape.from_field import MAX_HALF_LIGHT_DEPTH, FieldView, field_surface, half_light_depth
from threedgen.export.shape.opacity import EmptyField
from threedgen.geometry.raster import rasterise
from threedgen.run.arrays import Array

from .probe import Probe

Views = Sequence[Array]  # images (V, H, W, 3) of each of N objects, floats in [0, 1] or uint8
GROUPS = 20  # maximum number of groups into which jackknife intervals divide the objects


def features(probe: Probe, objects: Views) -> Array:
    """Return the vectors (N * V, D), float32, that the probe computes of V views of each of N objects, for FID and KID.

    The probe is a convolutional classifier of toybox images. A vector has the means and the maxima over all pixels of
    the D / 2 channels before its output layer. ``objects`` has square images (V, H, H, 3) of each object, uint8 or
    floats in [0, 1]. The vectors of the first object come first, then those of the second, and so on.
    """
    probe.eval()
    rows = []
    for views in objects:
        images = torch.from_numpy(np.asarray(views)).float() / (255 if views.dtype == np.uint8 else 1)
        rows.append(probe.features(images).cpu().numpy())
    return np.concatenate(rows)


def distances(probe: Probe, results: Views, truth: Views, other: Views) -> dict[str, Estimate]:
    """Return "fid" and "kid" between views of generated objects ``results`` and of ground-truth objects ``truth``.

    The result also has "floor_fid" and "floor_kid" between ``truth`` and other ground-truth objects ``other``. Each
    metric is a dict with the value under "mean", and its 95 % jackknife interval over objects under "low" and "high";
    these are None for one object. ``results``, ``truth`` and ``other`` have images (V, H, W, 3) of each object, uint8
    or floats in [0, 1].
    """
    ours, first, second = (np.split(features(probe, views), len(views)) for views in (results, truth, other))
    return {
        f"{prefix}{name}": jackknife_estimate(figure, len(first), GROUPS)
        for prefix, rows in (("", ours), ("floor_", second))
        for name, figure in distance_functions(rows, first, 50, sum(map(len, first)) // 2).items()
    }


def roughness(normal: Array, mask: Array) -> float | None:
    """Return the mean angle in degrees between the normals of neighbouring foreground pixels.

    Neighbours are horizontal or vertical. The angle increases with the size of a pixel on the surface, so compare only
    images from the same cameras. ``normal`` are unit normals (V, H, W, 3), which have the same axes (camera or world)
    in all pixels of a view, ``mask`` is the foreground (V, H, W), bool. None: no two foreground pixels are neighbours.
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
    """Measurements of the surface of a generated object.

    Attributes:
        roughness: mean angle between normals of neighbouring pixels in renders, degrees; None: no visible surface.
        translucent: whether light gets deep into the object, because its density is low. Half of the light is left at
            the depth ln 2 / density, with a typical density of the object. True if this depth is more than 2 %
            (`MAX_HALF_LIGHT_DEPTH`) of the longest side of the object.
    """

    roughness: float | None
    translucent: bool


def surface(view: FieldView, c2w: Array, fov: float, size: int, resolution: int) -> Surface | None:
    """Measure the surface that the mesh export extracts from a field: roughness and translucency. None: no surface.

    Args:
        view: trained field (3D object): density and colour as functions of points, and the radius of the scene.
        c2w: camera-to-world poses (V, 4, 4), OpenGL axes, of the renders of normals, from which roughness is measured.
        fov: vertical field of view, radians.
        size: side of the renders, pixels.
        resolution: grid points along each axis of the surface extraction.
    """
    try:
        mesh = field_surface(view, resolution)
    except EmptyField:
        return None
    hit = rasterise(mesh.vertices, mesh.faces, c2w, fov, size)
    normal = (mesh.normals[mesh.faces[hit.face]] * hit.bary[..., None]).sum(-2)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9)
    return Surface(roughness(normal, hit.mask), half_light_depth(mesh) > MAX_HALF_LIGHT_DEPTH)


def surface_figures(surfaces: Sequence[Surface | None], truth: Sequence[float | None]) -> Json:
    """Summarise the surfaces of generated objects as JSON, compared with ground-truth objects.

    The result has the medians "roughness" of the surfaces and "floor_roughness" of ground-truth objects in degrees:
    each a dict with the median under "mean", and its 95 % bootstrap interval under "low" and "high", which may be None.
    It also has the numbers of generated objects that are "translucent" and that are "without_surface".

    Args:
        surfaces: measurements of each generated object: roughness, the mean angle between normals of neighbouring
            pixels, and whether it is translucent (light gets deep into it). None: the object has no surface.
        truth: roughness of each ground-truth object, degrees; None: unknown.
    """
    found = [one for one in surfaces if one is not None]
    return {
        "roughness": median_estimate([one.roughness for one in found]),
        "floor_roughness": median_estimate(truth),
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
    """Return a Markdown table of the metrics of generated objects, beside those of ground-truth objects.

    ``figures`` has the metrics "fid", "kid", "roughness" (angle between normals of neighbouring pixels, degrees) and
    "mottle" (Lab distance of the colours from a palette of four colours, high for patchy surfaces), and their values
    for ground-truth objects ("floor_fid", ...): dicts with the value under "mean", and its 95 % interval, which is
    written in brackets, under "low" and "high". It also has the numbers of "translucent" objects and of those
    "without_surface". Missing metrics have no row.
    """
    shown = {key: name for key, name in NAMES.items() if key in figures}
    rows = [
        [name, format_estimate(figures[key]), format_estimate(figures[f"floor_{key}"])] for key, name in shown.items()
    ]
    rows += [[name, str(figures[key]), "0"] for key, name in COUNTS.items() if key in figures]
    return markdown_table(["distance", "measured", "other true objects"], rows)
