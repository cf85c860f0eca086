"""Build the files of a game asset in memory, from a dense mesh and the field (3D representation) of this mesh."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from threedgen.config.errors import ConfigError
from threedgen.export.files.glb import plain_glb_bytes, textured_glb_bytes, validate
from threedgen.export.files.obj_usdz import obj_zip, usdz_bytes
from threedgen.export.options import ENGINES, MATERIALS, AssetConfig
from threedgen.export.palette import to_palette
from threedgen.export.renders import FOV, spiral_cameras
from threedgen.export.shape.from_field import FieldView
from threedgen.export.shape.mesh import Mesh, TexturedMesh, placed, placement
from threedgen.export.shape.simplify import simplify, simplify_level
from threedgen.export.shape.topology import area_vectors, topology, weld
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.bake import Maps, bake, with_dense_normals
from threedgen.export.surface.refine_texture import refine_texture
from threedgen.export.surface.unseen import fill_unseen
from threedgen.geometry.images import png
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree

STEPS = "surface simplify unwrap bake pictures refine unseen palette levels write collision khronos".split()
"""Names of the export steps, in order of execution. Some assets skip steps."""
TOPOLOGY_KEYS = {"non_manifold_edges": "crowded_edges", "inconsistent_edges": "twisted_edges"}
"""Keys in asset.json of attributes of `Topology` that have other names there."""
MIN_LOD_TEXTURE = 64  # smallest texture edge in texels; each further level of detail halves the edge down to it
DIRECTIONS = 64  # maximum number of vertices of the convex hull
MAX_PARTS, MAX_PART_VERTICES, MAX_PARTS_INPUT = 8, 32, 3000
"""Maximum number of convex parts, of vertices per part, and of triangles of the mesh that is decomposed."""

ConvexMesh = tuple[Array, Array]  # convex mesh: vertices (V, 3) float32, outward faces (F, 3) int32


@dataclass
class ExportedAsset:
    """Game asset in memory, the result of `make_asset`.

    `files` maps file names to contents (bytes). `findings` maps the names of GLBs to errors and warnings of the Khronos
    validator. `notes` are remarks for the user. `figures` are the statistics for asset.json, such as "levels" (number
    of triangles of each level of detail). `seconds` maps the names of export steps to durations.
    """

    name: str  # prefix of the file names
    files: dict[str, bytes] = field(default_factory=dict)  # name -> content; if there are GLBs, the finest comes first
    findings: dict[str, list[str]] = field(default_factory=dict)  # GLB name -> findings of the Khronos validator
    notes: list[str] = field(default_factory=list)  # remarks for the user, one sentence each, with the findings
    figures: Tree = field(default_factory=dict)  # statistics that asset.json stores, by name
    seconds: dict[str, float] = field(default_factory=dict)  # step name (`STEPS`) -> duration
    on_step: Callable[[str], object] = lambda step: None  # receives the name of each step when it starts

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Context manager: call `self.on_step(step)`, run the block, add its duration in s to `self.seconds[step]`."""
        self.on_step(step)
        start = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 3)


def make_asset(
    dense: Mesh,
    config: AssetConfig,
    name: str = "mesh",
    view: FieldView | None = None,
    gltf_extras: Tree | None = None,
    nearest_budget: bool = False,
    on_step: Callable[[str], object] = lambda step: None,
) -> ExportedAsset:
    """Build a game asset in memory: simplify a dense mesh, unwrap it, bake textures, make levels of detail and files.

    The asset is in metres, `config.height` high (None: one world unit is one metre), and its origin is the centre of
    the bottom of its bounding box.

    Args:
        dense: mesh of the field's surface, in world units.
        config: options of the export, among them the triangle budget.
        name: prefix of file names and name of the glTF nodes.
        view: trained field. Its colours are baked, and its renders refine the texture. Texels that its training
            cameras hardly saw are recoloured. None: bake the vertex colours of `dense`, without these two steps.
        gltf_extras: JSON data for the glTF `extras`. Statistics of the mesh are added to them in the files.
        nearest_budget: if the shape needs more triangles than the budget, use as few as possible and add a note to
            `notes` of the result.
        on_step: callback that receives the name of each step, one of `STEPS`, when it starts.

    Raises:
        ConfigError: if no UVs or no collider can be made, or if the shape needs more triangles than the budget and
            `nearest_budget` is False.
    """
    asset = ExportedAsset(name, on_step=on_step)
    low, maps = _textured(asset, dense, config, view, nearest_budget)
    with asset.timed("levels"):
        levels = {name: low}
        for number, (title, count) in enumerate(zip(config.titles(name)[1:], config.sizes.lods, strict=True), 1):
            coarser = levels[title] = simplify_level(low, count)
            if len(coarser.faces) > count:
                asset.notes.append(  # a coarser mesh must keep the UV seams
                    f"level of detail {number} has {len(coarser.faces)} triangles instead of {count}: its UV seams "
                    "allow no fewer. Use it as it is, or remove it from lods"
                )
    metadata = {**(gltf_extras or {}), **dense.info, "triangles": len(low.faces), "preset": config.preset}
    pivot, scale = placement(low.vertices, config.height)
    levels = {title: placed(mesh, pivot, scale) for title, mesh in levels.items()}
    finest = levels[name]
    with asset.timed("write"):
        pngs = dict[str, dict[str, bytes]]()
        for number, title in enumerate(levels):
            if number and len(maps.covered) >= 2 * MIN_LOD_TEXTURE:
                maps = maps.halved()
            pngs[title] = {kind: png(image) for kind, image in maps.uint8().items()}
        if "glb" in config.formats:
            for title, mesh in levels.items():
                asset.files[f"{title}.glb"] = textured_glb_bytes(mesh, pngs[title], title, metadata)
        if "obj" in config.formats:
            asset.files[f"{name}_obj.zip"] = obj_zip(levels, pngs[name], name)
        if "usdz" in config.formats:
            asset.files[f"{name}.usdz"] = usdz_bytes(finest, pngs[name], name)
    welded, faces, _ = weld(finest.vertices, finest.faces)
    body = topology(welded, faces)
    if not body.manifold:
        edges = f"{body.open_edges} edges of holes and {body.non_manifold_edges} edges with more than two faces"
        asset.notes.append(f"the mesh is not closed: it has {edges}")
    with asset.timed("collision"):
        if config.collision != "none":
            parts = [hull(finest.vertices)] if config.collision == "hull" else convex_parts(welded, faces)
            asset.figures["collision"] = {"parts": len(parts), "triangles": sum(len(faces) for _, faces in parts)}
            for engine, pattern in ENGINES.items():
                nodes = {pattern.format(name=name, number=number): part for number, part in enumerate(parts)}
                data = plain_glb_bytes(nodes, {"collider_of": name} | metadata)
                asset.files[f"{name}_collision_{engine}.glb"] = data
    with asset.timed("khronos"):
        if glbs := {file: data for file, data in asset.files.items() if file.endswith(".glb")}:
            asset.findings, asset.figures["khronos"] = validate(glbs)
            asset.notes += [f"{file}: {found}" for file, part in asset.findings.items() for found in part]
    deep, wide, high = np.ptp(finest.vertices, axis=0).astype(float).round(4).tolist()  # x, y, z: front, left, up
    asset.figures |= {
        "topology": {TOPOLOGY_KEYS.get(key, key): value for key, value in asdict(body).items()}
        | {"volume": round(body.volume, 6)},
        "levels": {title: len(mesh.faces) for title, mesh in levels.items()},
        "placement": {"pivot": pivot.tolist(), "scale": scale},
        "size_m": {"wide": wide, "high": high, "deep": deep},
    }
    return asset


def _textured(
    asset: ExportedAsset, dense: Mesh, config: AssetConfig, view: FieldView | None, nearest_budget: bool
) -> tuple[TexturedMesh, Maps]:
    # returns the simplified mesh with UVs, in the world units of `dense`, and its baked textures
    budget, texture = config.sizes.budget, config.sizes.texture
    with asset.timed("simplify"):
        vertices, faces = simplify(dense.vertices, dense.faces, budget, nearest_budget)
        if len(faces) > budget:
            asset.notes.append(f"the shape needs {len(faces)} triangles; the budget is {budget}")
            budget = len(faces)
    with asset.timed("unwrap"):
        low, charts = unwrap(vertices, faces, texture)
    with asset.timed("bake"):
        low = with_dense_normals(low, dense)
        material = MATERIALS[config.material or "matte"]
        maps = bake(low, dense, texture, None if view is None else view.colours, material)
    asset.figures |= {"budget": budget, "charts": charts, "bake": {k: round(v, 6) for k, v in maps.info.items()}}
    if view is not None and view.renderer is not None and config.refine:
        with asset.timed("pictures"):
            cameras = spiral_cameras(config.refine, min(max(texture // 4, 64), 512), view.radius)
            targets, opacities = view.renderer(cameras)
        with asset.timed("refine"):
            try:
                refined = refine_texture(maps.base_colour, low, cameras.c2w.numpy(), FOV, targets, opacities)
                maps = replace(maps, base_colour=refined.texture)
                before, after = round(refined.psnr_before, 2), round(refined.psnr_after, 2)
                figures: Tree = {"views": len(cameras), "pixels": refined.pixels}
                figures |= {"psnr_before": before, "psnr_after": after}
            except ConfigError as error:  # no note: the baked texture is only slightly less sharp
                figures = {"skipped": str(error)}
            asset.figures["refine"] = figures
    if view is not None and view.elevations is not None:
        with asset.timed("unseen"):
            colours, asset.figures["unseen"] = fill_unseen(maps.base_colour, low, view.elevations, view.radius)
            maps = replace(maps, base_colour=colours)
    if config.palette is not None:
        with asset.timed("palette"):
            maps = replace(maps, base_colour=to_palette(maps.base_colour, maps.covered, config.palette))
        asset.figures["palette"] = config.palette.split(",")
    return low, maps


def hull(vertices: Array) -> ConvexMesh:
    """Return a simplified convex hull of vertices (V, 3), with fewer than 128 triangles.

    Only the farthest vertex in each of 64 directions (DIRECTIONS: the six axis directions and a Fibonacci lattice on
    the sphere) is used, so the volume is about 90 % of the exact hull's. Returns vertices (N, 3) float32 and outward
    faces (F, 3) int32. Raises ConfigError if the vertices are coplanar.
    """
    n = np.arange(DIRECTIONS) + 0.5
    height, azimuth = 1 - 2 * n / DIRECTIONS, np.pi * (1 + 5**0.5) * n
    ring = np.sqrt(1 - height**2)
    lattice = np.stack([ring * np.cos(azimuth), ring * np.sin(azimuth), height], axis=1)
    axes = np.concatenate([np.eye(3), -np.eye(3)])  # keep the mesh's bounding box
    points = vertices.astype(np.float64)
    scaled = points / np.maximum(np.ptp(points, axis=0), 1e-30)
    extreme = np.unique((np.concatenate([axes, lattice])[:DIRECTIONS] @ scaled.T).argmax(axis=1))
    return _convex(points[extreme])


def _convex(points: Array) -> ConvexMesh:
    try:
        result = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise ConfigError("the shape is flat and has no convex hull; set collision=none", "collision") from error
    faces = result.simplices.astype(np.int64)
    inward = (area_vectors(points, faces) * result.equations[:, :3]).sum(axis=1) < 0
    faces[inward] = faces[inward, ::-1]
    used, index = np.unique(faces, return_inverse=True)
    return points[used].astype(np.float32), index.reshape(-1, 3).astype(np.int32)


def convex_parts(vertices: Array, faces: Array) -> list[ConvexMesh]:
    """Decompose a closed mesh into at most 8 (MAX_PARTS) convex meshes with CoACD (Wei et al. 2022).

    Takes vertices (V, 3) at distinct positions and faces (F, 3). A mesh with more than 3000 triangles
    (MAX_PARTS_INPUT) is simplified first. Each returned mesh is a pair of vertices (N, 3) float32 and outward faces
    (M, 3) int32.
    """
    import coacd

    vertices, faces = simplify(vertices, faces, MAX_PARTS_INPUT, nearest=True)  # CoACD takes minutes on fine meshes
    coacd.set_log_level("error")
    parts = coacd.run_coacd(
        coacd.Mesh(vertices.astype(np.float64), faces),
        threshold=0.1,
        max_convex_hull=MAX_PARTS,
        preprocess_mode="off",
        mcts_iterations=50,
        mcts_nodes=10,
        resolution=1000,
        decimate=True,
        max_ch_vertex=MAX_PART_VERTICES,
    )
    return [_convex(np.asarray(points, np.float64)) for points, _ in parts]
