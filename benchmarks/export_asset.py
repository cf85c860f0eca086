"""Export an asset of the acceptance table and compare it with its field, the dense mesh and the ground truth."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from threedgen.export.asset import ExportedAsset, make_asset
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import load_run_field
from threedgen.export.shape.from_field import FieldView, dense_surface
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.opacity import depth_field
from threedgen.export.shape.simplify import simplify
from threedgen.export.shape.topology import signed_volume
from threedgen.geometry.images import psnr
from threedgen.geometry.raster import rasterise
from threedgen.geometry.rigs import orbit
from threedgen.run.arrays import Array

from .export_fields import Creature, Voxels, grid
from .glb_check import check_asset, layout
from .glb_reader import Glb, read_glb
from .mesh_render import render

Body = tuple[Array, Array]  # triangle mesh: vertices (V, 3) and faces (F, 3)

VIEWS, PIXELS, ANGLE, TURNTABLE = 8, 256, 0.75, 24
"""Renders that compare two meshes: number, side in pixels, vertical field of view in radians. Number of renders that
compare mesh and field."""
SAMPLES = 240_000
"""Number of points sampled per surface. Distances below the spacing of these points cannot be measured."""
LOW_POLY = 3000  # number of triangles of a second, coarser mesh whose silhouette is compared
OPAQUE = 0.95


@dataclass(frozen=True)
class Job:
    """Asset to measure, from the run in the folder `run` or, if `run` is None, from a synthetic field.

    `shape` and `seed` determine the synthetic field. `grid` is the number of grid points per edge for the surface
    extraction, and `asset` has the export options.
    """

    name: str
    grid: int = 256
    shape: str = "animal"
    seed: int = 0
    run: Path | None = None
    asset: AssetConfig = AssetConfig(budget=15_000, texture=1024, lods=(5000, 1500), height=0.5)


def measure(job: Job) -> dict[str, float]:
    """Export an asset, compare it with its field, and return the values of the metrics by key (`export.METRICS`).

    Raises ConfigError if no asset can be made from the field.
    """
    creature = None if job.run else Creature(job.shape, job.seed)
    voxels = None if creature is None else Voxels(creature, job.grid)
    view = load_run_field(Path(str(job.run))).view if voxels is None else voxels.view()
    start = time.perf_counter()
    dense, _ = dense_surface(view, job.grid)
    surface = time.perf_counter() - start
    baked, asset = (
        make_asset(dense, job.asset.model_copy(update={"refine": renders}), job.name, view)
        for renders in (0, job.asset.refine)
    )  # the first export also compiles the kernels, so that the time of the second one is valid
    figures = {"time": surface / (surface + sum(asset.seconds.values()))}
    figures |= against_dense(asset, dense, job.asset) | against_field(view, asset, baked)
    if creature is not None and voxels is not None:
        figures |= against_truth(creature, voxels.sigma[0, 0].numpy())
    return figures


def against_dense(asset: ExportedAsset, dense: Mesh, config: AssetConfig) -> dict[str, float]:
    """Compare the exported files with the dense mesh. Return metric -> value, with keys of `export.METRICS`."""
    low = read_glb(asset.files[f"{asset.name}.glb"])
    body, whole = field_coordinates(low, asset), (dense.vertices, dense.faces)
    points = low.attributes["POSITION"]
    laid = layout(points, low.faces, v_up(low), low.images["baseColorTexture"].shape[0])
    collider = read_glb(asset.files[f"{asset.name}_collision_unreal.glb"])
    hull = signed_volume(collider.attributes["POSITION"], collider.faces)
    return {
        "budget": len(low.faces) / config.sizes.budget,
        "silhouette": silhouette(body, whole),
        "silhouette few": silhouette(simplify(*whole, LOW_POLY), whole),
        "distance": 100 * mean_distance(body, whole),
        "volume": 100 * abs(signed_volume(*body) / signed_volume(*whole) - 1),
        "coverage": laid.coverage,
        "charts": laid.charts,
        "density low": laid.density[0],
        "density high": laid.density[1],
        "findings": sum(len(items) for items in check_asset(asset, config).values()),
        "hull share": hull / float(trimesh.convex.convex_hull(points).volume),
    }


def field_coordinates(glb: Glb, asset: ExportedAsset) -> Body:
    """Return the mesh of an exported file in field space: z up, front +x, position and scale as before the export."""
    placed = asset.figures["placement"]
    points = glb.attributes["POSITION"][:, [2, 0, 1]] / placed["scale"] + np.array(placed["pivot"])
    return points.astype(np.float32), glb.faces


def v_up(glb: Glb) -> Array:
    """Return the uv (V, 2) of the mesh in a file with v upwards; v in the file is downwards."""
    return glb.attributes["TEXCOORD_0"].astype(np.float64) * (1, -1) + (0, 1)


def silhouette(one: Body, other: Body) -> float:
    """Return the mean IoU of the silhouettes of two meshes in VIEWS views around the object, in [0, 1]."""
    poses = orbit(VIEWS, 0.25, 3.0, ANGLE, PIXELS, PIXELS).c2w.numpy()
    return mean_iou(*(rasterise(*body, poses, ANGLE, PIXELS).mask for body in (one, other)))


def mean_distance(one: Body, other: Body) -> float:
    """Return the symmetric mean distance of two surfaces, divided by the bounding-box diagonal of the first one."""
    bodies = (trimesh.Trimesh(*body, process=False) for body in (one, other))
    a, b = (trimesh.sample.sample_surface(body, SAMPLES, seed=seed)[0] for seed, body in enumerate(bodies))
    there, back = cKDTree(b).query(a)[0].mean(), cKDTree(a).query(b)[0].mean()
    return float((there + back) / 2 / np.linalg.norm(np.ptp(one[0], axis=0)))


def against_field(view: FieldView, asset: ExportedAsset, baked: ExportedAsset) -> dict[str, float]:
    """Compare renders of an asset with renders of its field. Return metric -> value, with keys of `export.METRICS`.

    `asset` has a refined texture, and `baked` is the same asset with only a baked texture.
    """
    file, before = (read_glb(export.files[f"{asset.name}.glb"]) for export in (asset, baked))
    textures = {
        name: glb.images["baseColorTexture"].astype(np.float32) / 255
        for name, glb in (("baked", before), ("refined", file))
    }
    figures = similarity(view, field_coordinates(file, asset), v_up(file), textures)
    return figures | {"gain": figures["inside refined"] - figures["inside baked"]}


def similarity(view: FieldView, body: Body, uv: Array, textures: dict[str, Array]) -> dict[str, float]:
    """Compare renders of a mesh and of a field from TURNTABLE cameras that were not used to refine a texture.

    Args:
        view: field.
        body: mesh in field space.
        uv: (V, 2), with v upwards.
        textures: name -> texture (T, T, 3) in [0, 1].

    Returns:
        "outline": mean IoU of the silhouettes; "inside NAME": PSNR in dB where mesh and field are opaque.
    """
    angle = math.radians(40)
    cameras = orbit(TURNTABLE, math.radians(15), 2.6 * view.radius, angle, PIXELS, PIXELS)
    assert view.renderer is not None
    colours, opacity = view.renderer(cameras)
    figures: dict[str, float] = {}
    for name, texture in textures.items():
        renders = render(*body, cameras.c2w.numpy(), angle, PIXELS, uv, texture)
        inside = (renders.alpha == 1) & (opacity >= OPAQUE)
        figures[f"inside {name}"] = psnr(renders.rgb[inside], colours[inside]) if inside.any() else -math.inf
        figures["outline"] = mean_iou(renders.alpha >= 0.5, opacity >= 0.5)
    return figures


def against_truth(creature: Creature, sigma: Array) -> dict[str, float]:
    """Return the IoU of the solid inside the extracted surface with the true solid of a synthetic shape, `creature`.

    The key "truth" has the IoU for the density `sigma` (R, R, R), on a grid over [-1, 1]^3. "times 3" and "times 10"
    are for 3 and 10 times larger densities, on a grid with half as many points per edge.
    """
    figures = {"truth": iou(occupied(sigma), grid(creature.distance, len(sigma))[..., 0].numpy() < 0)}
    coarse, distance = (grid(f, len(sigma) // 2 + 1)[..., 0].numpy() for f in (creature.density, creature.distance))
    return figures | {f"times {factor}": iou(occupied(factor * coarse), distance < 0) for factor in (3, 10)}


def occupied(sigma: Array) -> Array:
    """Return the mask (R, R, R) of voxels inside the extracted surface, from the density on a grid over [-1, 1]^3."""
    tau, info = depth_field(sigma.copy(), 2 / (len(sigma) - 1), 1.0)
    return tau > info["level"]


def iou(a: Array, b: Array) -> float:
    """Return the intersection over union of two boolean arrays of equal shape; 0 if no element of both is True."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def mean_iou(a: Array, b: Array) -> float:
    """Return the mean over V views of the IoU of two stacks of masks, each (V, H, W)."""
    return float(np.mean([iou(*pair) for pair in zip(a, b, strict=True)]))
