"""Build the files of a game asset in memory, from a dense mesh and the field that it was extracted from."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.export.files.glb import plain_glb_bytes, textured_glb_bytes
from threedgen.export.files.khronos import Finding, ValidatorError, validate
from threedgen.export.files.obj import obj_zip
from threedgen.export.files.textured import TexturedMesh, place_on_ground
from threedgen.export.files.usdz import usdz_bytes
from threedgen.export.options import ENGINES, AssetConfig
from threedgen.export.shape.collider import Part, convex_parts, hull
from threedgen.export.shape.from_field import FieldView
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.simplify import BudgetTooSmall, simplify, simplify_level
from threedgen.export.shape.topology import topology, weld
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.bake import Maps, bake, with_dense_normals
from threedgen.export.surface.pictures import FOV, ViewRenderer, image_size, spiral_cameras
from threedgen.export.surface.refine_texture import refine_texture
from threedgen.export.surface.unseen import fill_unseen, visible_faces
from threedgen.geometry.images import png
from threedgen.run.disk import Tree

MIN_LOD_TEXTURE = 64
"""Smallest texture edge in texels. Each further level of detail halves the edge until this size is reached."""


STEPS = {
    "surface": "surface",
    "simplify": "simplification",
    "unwrap": "unwrapping",
    "bake": "textures",
    "pictures": "renders for the textures",
    "refine": "texture refinement",
    "unseen": "hidden texels",
    "levels": "levels of detail",
    "write": "files",
    "collision": "collider",
    "khronos": "checks",
}
"""Internal name of each export step -> text of the progress bar, in order of execution. Some assets skip steps."""


@dataclass
class ExportedAsset:
    """Exported asset: file contents in memory, check results and statistics. `make_asset` returns it.

    Attributes:
        name: prefix of the file names.
        files: file name -> content. If GLB is a requested format, the GLB of the finest level comes first.
        findings: GLB file name -> findings of the Khronos validator; empty if it is not installed.
        notes: remarks for the user, one sentence each.
        figures: statistics that asset.json stores, by name.
        seconds: step name (`STEPS`) -> duration in seconds.
        on_step: callback that receives the name of each step when the step starts.
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: Tree = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    on_step: Callable[[str], object] = lambda step: None

    @property
    def problems(self) -> list[str]:
        """Return all findings of the Khronos validator as `file: message`."""
        return [f"{name}: {found.message}" for name, all_found in self.findings.items() for found in all_found]

    @property
    def errors(self) -> list[str]:
        """Return the findings of severity "error", which make the asset unusable, as `file: message`."""
        return [f"{n}: {found.message}" for n, every in self.findings.items() for found in every if found.is_error]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Report the start of a step to `on_step` and add the duration of the `with` block to `seconds`."""
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
    """Build a game asset from a dense mesh: simplify, unwrap, bake textures, make levels of detail, write files.

    Args:
        dense: mesh of the field's surface, in world units.
        config: options of the export, such as triangle budget, texture size and file formats.
        name: prefix of file names and name of the glTF nodes.
        view: field that provides texture colours, renders for the texture refinement and the range of camera
            elevations. None: bake the vertex colours of `dense`.
        gltf_extras: JSON data for the glTF `extras`. Statistics of the mesh are added to it.
        nearest_budget: if the budget is too small for the shape, use the smallest possible one and add a note.
        on_step: callback that receives the name of each step (`STEPS`) when the step starts.

    Returns:
        The asset, with vertices in metres and the origin at the centre of its bottom.

    Raises:
        BudgetTooSmall: the shape needs more triangles than the budget, and `nearest_budget` is False.
        UnwrapError: no UVs could be made.
        ConfigError: any other unusable input.
    """
    asset = ExportedAsset(name, on_step=on_step)
    low, maps = _textured(asset, dense, config, view, nearest_budget)
    with asset.timed("levels"):
        levels = {name: low}
        for number, (title, count) in enumerate(zip(config.titles(name)[1:], config.levels, strict=True), 1):
            coarser = levels[title] = simplify_level(low, count)
            if len(coarser.faces) > count:
                asset.notes.append(  # a coarser mesh must keep the UV seams
                    f"level of detail {number} has {len(coarser.faces)} triangles instead of {count}: its UV seams "
                    "allow no fewer. Use it as it is, or remove it from lods"
                )
    metadata = {**(gltf_extras or {}), **dense.info, "triangles": len(low.faces), "preset": config.preset}
    placement = place_on_ground(low.vertices, config.height)
    levels = {title: placement.mesh(mesh) for title, mesh in levels.items()}
    with asset.timed("write"):
        pngs = dict(zip(levels, _encode_textures(maps, len(levels)), strict=True))
        if "glb" in config.formats:
            for title, mesh in levels.items():
                asset.files[f"{title}.glb"] = textured_glb_bytes(mesh, pngs[title], title, metadata)
        if "obj" in config.formats:
            asset.files[f"{name}_obj.zip"] = obj_zip(levels, pngs[name], name)
        if "usdz" in config.formats:
            asset.files[f"{name}.usdz"] = usdz_bytes(levels[name], pngs[name], name)
    body = topology(*weld(levels[name].vertices, levels[name].faces)[:2])
    if not body.manifold:
        edges = f"{body.open_edges} edges of holes and {body.crowded_edges} edges with more than two faces"
        asset.notes.append(f"the mesh is not closed: it has {edges}")
    asset.figures["topology"] = asdict(body) | {"volume": round(body.volume, 6)}
    with asset.timed("collision"):
        _add_colliders(asset, levels[name], config, metadata)
    with asset.timed("khronos"):
        _run_khronos(asset)
    asset.figures |= {"levels": {title: len(mesh.faces) for title, mesh in levels.items()}}
    asset.figures["placement"] = {"pivot": placement.pivot.tolist(), "scale": placement.scale}
    deep, wide, high = np.ptp(levels[name].vertices, axis=0).astype(float).round(4).tolist()  # x, y, z: front, left, up
    asset.figures["size_m"] = {"wide": wide, "high": high, "deep": deep}
    return asset


def _textured(
    asset: ExportedAsset, dense: Mesh, config: AssetConfig, view: FieldView | None, nearest_budget: bool
) -> tuple[TexturedMesh, Maps]:
    """Return the simplified mesh with UVs, in the world space of `dense`, and its baked textures."""
    budget = config.triangles
    with asset.timed("simplify"):
        try:
            vertices, faces = simplify(dense.vertices, dense.faces, budget)
        except BudgetTooSmall as error:
            if not nearest_budget:
                raise
            asset.notes.append(f"the shape needs {error.possible} triangles; the budget is {error.budget}")
            budget = error.possible
            vertices, faces = simplify(dense.vertices, dense.faces, budget)
    with asset.timed("unwrap"):
        low, charts = unwrap(vertices, faces, config.texels)
    with asset.timed("bake"):
        low = with_dense_normals(low, dense)
        maps = bake(low, dense, config.texels, None if view is None else view.colours)
    if view is not None and view.renderer is not None and config.refine:
        maps = _refined(asset, low, maps, config, view.renderer, view.radius)
    if view is not None and view.elevations is not None:
        with asset.timed("unseen"):
            visible = visible_faces(low, view.elevations, view.radius)
            colours, asset.figures["unseen"] = fill_unseen(maps.base_colour, low, visible)
            maps = replace(maps, base_colour=colours)
    asset.figures |= {"budget": budget, "charts": charts, "bake": {k: round(v, 6) for k, v in maps.info.items()}}
    return low, maps


def _encode_textures(maps: Maps, levels: int) -> Iterator[dict[str, bytes]]:
    """Yield texture name -> PNG file for each level of detail. Each halves the texture, down to MIN_LOD_TEXTURE."""
    for _ in range(levels):
        yield {kind: png(image) for kind, image in maps.uint8().items()}
        maps = maps.halved() if len(maps.covered) >= 2 * MIN_LOD_TEXTURE else maps


def _refined(
    asset: ExportedAsset, low: TexturedMesh, maps: Maps, config: AssetConfig, renderer: ViewRenderer, radius: float
) -> Maps:
    """Fit the base colour to `config.refine` renders of the field; keep it if no render pixel shows the mesh."""
    with asset.timed("pictures"):
        cameras = spiral_cameras(config.refine, image_size(config.texels), radius)
        colours, opacities = renderer(cameras)
    with asset.timed("refine"):
        try:
            refined = refine_texture(maps.base_colour, low, cameras.c2w.numpy(), FOV, colours, opacities)
        except ConfigError as error:
            asset.figures["refine"] = {"skipped": str(error)}  # no note: the baked texture is only slightly less sharp
            return maps
    asset.figures["refine"] = {
        "views": len(cameras),
        "pixels": refined.pixels,
        "psnr_before": round(refined.psnr_before, 2),
        "psnr_after": round(refined.psnr_after, 2),
    }
    return replace(maps, base_colour=refined.texture)


def _add_colliders(asset: ExportedAsset, mesh: TexturedMesh, config: AssetConfig, metadata: Tree) -> None:
    """Add one collider GLB per engine, with node names that the engine's importer recognises (`ENGINES`)."""
    if config.collision == "none":
        return
    parts: list[Part]
    if config.collision == "hull":
        parts = [hull(mesh.vertices)]
    else:
        points, faces, _ = weld(mesh.vertices, mesh.faces)
        parts = convex_parts(points, faces)
    asset.figures["collision"] = {"parts": len(parts), "triangles": sum(len(faces) for _, faces in parts)}
    for engine, pattern in ENGINES.items():
        file = f"{asset.name}_collision_{engine}.glb"
        nodes = {pattern.format(name=asset.name, number=number): part for number, part in enumerate(parts)}
        asset.files[file] = plain_glb_bytes(nodes, {"collider_of": asset.name} | metadata)


def _run_khronos(asset: ExportedAsset) -> None:
    """Run the Khronos validator on every GLB if it is installed. Store the findings and a sentence on its status."""
    glbs = {name: data for name, data in asset.files.items() if name.endswith(".glb")}
    if not glbs:
        return
    try:
        results, status = validate(glbs)
    except ValidatorError as error:
        results, status = {}, f"failed: {error}"
    asset.findings = results
    asset.figures["khronos"] = status
