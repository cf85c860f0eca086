"""Figures of one asset: of its files against the dense mesh, and of the surface rule against a shape's truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from threedgen.export.asset import ExportedAsset
from threedgen.export.files import khronos
from threedgen.export.files.read_glb import Glb, read_glb
from threedgen.export.files.textured import Placement
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.opacity import depth_field
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.topology import topology, weld
from threedgen.export.shape.uv_layout import layout
from threedgen.geometry.raster import rasterise_uv
from threedgen.geometry.texture import fill

from .compare import hull_share, lit_gain, mean_distance, silhouette
from .creature import TAIL, Creature

Array = NDArray[Any]

FEW = 3000
"""Triangles of a second, simpler mesh whose outline is compared."""


def at_home(glb: Glb, asset: ExportedAsset) -> tuple[Array, Array]:
    """A file's mesh, vertices (V, 3) and faces, where the field has it: z up, front +x, moved and scaled back."""
    placed = asset.figures["placement"]
    place = Placement(np.array(placed["pivot"]), placed["scale"])
    return place.back(glb.attributes["POSITION"][:, [2, 0, 1]]), glb.faces


def v_up(glb: Glb) -> Array:
    """uv (V, 2) with v upwards; files count it downwards."""
    uv = glb.attributes["TEXCOORD_0"].astype(np.float64)
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)


def of_asset(asset: ExportedAsset, dense: Mesh, budget: int, height: float) -> dict[str, Any]:
    """Figures of the files, against the dense mesh they were made of."""
    low, *levels = (read_glb(data) for name, data in asset.files.items() if "collision" not in name)
    whole = dense.vertices, dense.faces
    body = topology(*weld(*at_home(low, asset))[:2])
    texture = low.images["baseColorTexture"].shape[0]
    laid = layout(low.attributes["POSITION"], low.faces, v_up(low), texture)
    lowest, highest = low.attributes["POSITION"].min(axis=0), low.attributes["POSITION"].max(axis=0)
    counts = [len(glb.faces) for glb in (low, *levels)]
    bare = ~rasterise_uv(v_up(low), low.faces, texture).mask
    bumps = low.images["normalTexture"]
    return {
        "budget": len(low.faces) / budget,
        "edges": body.open_edges + body.crowded_edges + body.twisted_edges,
        "degenerate": body.degenerate,
        "bodies": body.parts,
        "silhouette": silhouette(at_home(low, asset), whole),
        "silhouette few": silhouette(simplify(*whole, FEW), whole),
        "distance": 100 * mean_distance(at_home(low, asset), whole),
        "volume": 100 * abs(body.volume / topology(*whole).volume - 1),
        "overlap": laid.overlap,
        "coverage": laid.coverage,
        "charts": laid.charts,
        "density low": laid.density[0],
        "density high": laid.density[1],
        "gap": min(laid.gap, float(texture)),
        "background": float((fill(bumps, ~bare) != bumps).any(axis=-1).mean()),
        "normal map": lit_gain(low, at_home(low, asset)[0], dense),
        "blue": bumps[..., 2].mean() / 255,
        "findings": sum(len(found) for found in asset.findings.values()),
        "khronos": _khronos(asset),
        "megabytes": len(next(iter(asset.files.values()))) / (1 << 20),
        "pivot": max(abs(lowest[1]), abs(lowest[0] + highest[0]) / 2, abs(lowest[2] + highest[2]) / 2),
        "height": abs(highest[1] - lowest[1] - height),
        "hull": asset.figures["collision"]["triangles"],
        "hull share": hull_share(asset.files[f"{asset.name}_collision_unreal.glb"], low.attributes["POSITION"]),
        "levels": max(after / before for before, after in zip(counts, counts[1:], strict=False)),
        "level edges": sum(topology(*weld(*at_home(glb, asset))[:2]).open_edges for glb in levels),
        "level maps": sum(not np.array_equal(glb.images[k], low.images[k]) for glb in levels for k in low.images),
    }


def _khronos(asset: ExportedAsset) -> int | None:
    """Errors and warnings of the Khronos validator; None if it is not here."""
    try:
        found, said = khronos.validate({name: data for name, data in asset.files.items() if name.endswith(".glb")})
    except khronos.NoAnswer:
        return None
    return sum(map(len, found.values())) if said.startswith("version") else None


def of_rule(creature: Creature, sigma: Array, coarse: int) -> dict[str, Any]:
    """Figures of the rule that finds the surface, against the truth. sigma (R, R, R): the density on the grid.

    coarse: points along an edge of the grids for densities times 3 and 10, and for worlds of other sizes.
    """
    inside = occupancy(sigma)
    figures: dict[str, Any] = {"truth": iou(inside, grid(creature.distance, len(sigma)) < 0)}
    if creature.shape == "animal":
        line = np.linspace(TAIL[0], TAIL[1], 50)
        index = ((line + 1) / 2 * (len(sigma) - 1)).round().astype(int)
        figures["tail"] = float(inside[tuple(index.T)].mean())
    noisy, truth = grid(creature.density, coarse + 1), grid(creature.distance, coarse + 1) < 0
    figures["mean rule"] = iou(noisy > noisy[noisy > 1e-5].mean(), truth)
    for factor in (3, 10):
        figures[f"times {factor}"] = iou(occupancy(factor * noisy), truth)
    usual = occupancy(noisy)
    step = coarse // 8  # all three grids share their points
    wide = occupancy(grid(creature.density, coarse + 1 + 2 * step, 1.25), 1.25)
    figures["padded"] = iou(usual, wide[step:-step, step:-step, step:-step])
    cut = step // 2
    tight = occupancy(noisy[cut:-cut, cut:-cut, cut:-cut].copy(), 0.875)
    figures["cropped"] = iou(usual[cut:-cut, cut:-cut, cut:-cut], tight)
    return figures


def occupancy(sigma: Array, radius: float = 1.0) -> Array:
    """Where the export sees the object, (R, R, R) bool, from the density on a grid."""
    cell = 2 * radius / (len(sigma) - 1)
    tau, info = depth_field(sigma.copy(), cell, radius)
    return tau > info["level"]


def grid(function: Callable[[torch.Tensor], torch.Tensor], resolution: int, radius: float = 1.0) -> Array:
    """Values (R, R, R) over the cube of `radius`, slab by slab."""
    axis = torch.linspace(-radius, radius, resolution)
    y, z = (c.reshape(-1) for c in torch.meshgrid(axis, axis, indexing="ij"))
    slabs = [function(torch.stack([x.expand_as(y), y, z], dim=1)).view(resolution, resolution) for x in axis]
    return torch.stack(slabs).numpy()


def iou(a: Array, b: Array) -> float:
    """Intersection over union of two sets."""
    return float((a & b).sum() / max((a | b).sum(), 1))
