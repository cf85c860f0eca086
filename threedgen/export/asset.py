"""From a dense surface and its colours to the files of a game asset, all of them in memory and checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from threedgen.config.errors import ConfigError
from threedgen.export.files.check import Expected, Finding, check_collider, check_glb
from threedgen.export.files.glb import plain_glb_bytes, textured_glb_bytes
from threedgen.export.files.khronos import NoAnswer, validate
from threedgen.export.files.obj import obj_zip
from threedgen.export.files.textured import TexturedMesh, stand
from threedgen.export.files.usdz import usdz_bytes
from threedgen.export.options import ENGINES, AssetConfig
from threedgen.export.shape.collider import Part, convex_parts, hull
from threedgen.export.shape.from_field import FieldView
from threedgen.export.shape.mesh import Mesh
from threedgen.export.shape.simplify import BudgetTooSmall, level, simplify
from threedgen.export.shape.topology import topology, weld
from threedgen.export.shape.unwrap import unwrap
from threedgen.export.surface.bake import Maps, bake, wearing_normals
from threedgen.export.surface.pictures import FOV, Pictures, around, pixels
from threedgen.export.surface.refine_texture import refine_texture
from threedgen.export.surface.unseen import fill_unseen, seen_faces
from threedgen.geometry.images import png

FILE_SIZE = 3.0
"""Megabytes that a GLB with maps of 1024 texels should not exceed; larger maps may have more."""
SMALLEST = 64
"""Texels along an edge below which the maps of a level of detail are not halved."""


STEPS = {
    "surface": "surface",
    "simplify": "fewer triangles",
    "unwrap": "unwrapping",
    "bake": "textures",
    "pictures": "pictures for the textures",
    "refine": "fitting the textures",
    "unseen": "filling what no view sees",
    "levels": "levels of detail",
    "write": "files",
    "check": "checks",
    "collision": "collider",
    "khronos": "checks",
}
"""Step: what a person reads, in the order in which they come; not every asset takes all of them."""


@dataclass
class ExportedAsset:
    """files: name -> content, the GLB of the finest level first; what was found about them, and how they were made.

    on_step: called with the name of each step (``STEPS``) as it begins.
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    on_step: Callable[[str], object] = lambda step: None

    @property
    def problems(self) -> list[str]:
        """`file: finding` for everything that the checker found."""
        return [f"{name}: {found.message}" for name, all_found in self.findings.items() for found in all_found]

    @property
    def faults(self) -> list[str]:
        """Those of them that make the asset unusable; the others say only that it could be better."""
        return [f"{n}: {found.message}" for n, every in self.findings.items() for found in every if found.broken]

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        self.on_step(step)
        begun = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - begun, 3)


def make_asset(
    dense: Mesh,
    config: AssetConfig,
    name: str = "mesh",
    view: FieldView | None = None,
    gltf_extras: dict[str, Any] | None = None,
    nearest_budget: bool = False,
    on_step: Callable[[str], object] = lambda step: None,
) -> ExportedAsset:
    """An asset as `config` describes it of a dense surface, with the colours of its field, or without one its own.

    gltf_extras (JSON data) travel in the GLB, with what was found and dropped on the way. If the field has pictures,
    the texture is fitted to them. nearest_budget: a budget below what the shape allows becomes the nearest that it
    does, and a note. Raises BudgetTooSmall, UnwrapError, ConfigError.
    """
    asset = ExportedAsset(name, on_step=on_step)
    low, maps = _textured(asset, dense, config, view, nearest_budget)
    with asset.timed("levels"):
        levels = {name: low}
        for number, (title, count) in enumerate(zip(config.titles(name)[1:], config.levels, strict=True), 1):
            coarser = levels[title] = level(low, count)
            if len(coarser.faces) > count:
                asset.notes.append(  # a texture is cut open at its seams, which a coarser mesh must keep
                    f"level of detail {number} has {len(coarser.faces)} triangles instead of {count}: with fewer the "
                    "texture would no longer fit; it works as it is, or leave it out of lods"
                )
    metadata = {**(gltf_extras or {}), **dense.info, "triangles": len(low.faces), "preset": config.preset}
    place = stand(low.vertices, config.height)
    levels = {title: place.mesh(mesh) for title, mesh in levels.items()}
    with asset.timed("write"):
        pngs = dict(zip(levels, _pictures(maps, len(levels)), strict=True))
        if "glb" in config.formats:
            for title, mesh in levels.items():
                asset.files[f"{title}.glb"] = textured_glb_bytes(mesh, pngs[title], title, metadata)
        if "obj" in config.formats:
            asset.files[f"{name}_obj.zip"] = obj_zip(levels, pngs[name], name)
        if "usdz" in config.formats:
            asset.files[f"{name}.usdz"] = usdz_bytes(levels[name], pngs[name], name)
    with asset.timed("check"):
        _check(asset, levels, config, pngs, metadata)
    with asset.timed("collision"):
        _collide(asset, levels[name], config, metadata)
    with asset.timed("khronos"):
        _ask_khronos(asset)
    asset.figures |= {"levels": {title: len(mesh.faces) for title, mesh in levels.items()}}
    asset.figures["placement"] = {"pivot": place.pivot.tolist(), "scale": place.scale}
    deep, wide, high = np.ptp(levels[name].vertices, axis=0).astype(float).round(4).tolist()  # x, y, z: front, left, up
    asset.figures["size_m"] = {"wide": wide, "high": high, "deep": deep}
    return asset


def _textured(
    asset: ExportedAsset, dense: Mesh, config: AssetConfig, view: FieldView | None, nearest_budget: bool
) -> tuple[TexturedMesh, Maps]:
    """The simple mesh in the field's world, with its maps."""
    budget = config.triangles
    with asset.timed("simplify"):
        try:
            vertices, faces = simplify(dense.vertices, dense.faces, budget)
        except BudgetTooSmall as error:
            if not nearest_budget:
                raise
            asset.notes.append(f"the shape needs {error.possible} triangles, more than the budget of {error.budget}")
            budget = error.possible
            vertices, faces = simplify(dense.vertices, dense.faces, budget)
    with asset.timed("unwrap"):
        low, charts = unwrap(vertices, faces, config.texels)
    with asset.timed("bake"):
        low = wearing_normals(low, dense)
        maps = bake(low, dense, config.texels, None if view is None else view.colours)
    if view is not None and view.pictures is not None and config.refine:
        maps = _refined(asset, low, maps, config, view.pictures, view.radius)
    if view is not None and view.elevations is not None:
        with asset.timed("unseen"):
            seen = seen_faces(low, view.elevations, view.radius)
            colours, asset.figures["unseen"] = fill_unseen(maps.base_colour, low, seen)
            maps = replace(maps, base_colour=colours)
    asset.figures |= {"budget": budget, "charts": charts, "bake": {k: round(v, 6) for k, v in maps.info.items()}}
    return low, maps


def _pictures(maps: Maps, levels: int) -> Iterator[dict[str, bytes]]:
    """The files of the maps for each level: of half the texels along an edge each time, but not below SMALLEST."""
    for _ in range(levels):
        files = {kind: png(pixels) for kind, pixels in maps.uint8().items()}
        yield files
        maps = maps.halved() if len(maps.covered) >= 2 * SMALLEST else maps


def _refined(
    asset: ExportedAsset, low: TexturedMesh, maps: Maps, config: AssetConfig, pictures: Pictures, radius: float
) -> Maps:
    """The maps with the colours that make the mesh look most like the pictures; as they are if nothing compares."""
    with asset.timed("pictures"):
        cameras = around(config.refine, pixels(config.texels), radius)
        colours, opacities = pictures(cameras)
    with asset.timed("refine"):
        try:
            better = refine_texture(maps.base_colour, low, cameras.c2w.numpy(), FOV, colours, opacities)
        except ConfigError as error:
            asset.figures["refine"] = {"skipped": str(error)}  # no note: they are only a little less sharp
            return maps
    asset.figures["refine"] = {
        "views": len(cameras),
        "pixels": better.pixels,
        "psnr_before": round(better.psnr_before, 2),
        "psnr_after": round(better.psnr_after, 2),
    }
    return replace(maps, base_colour=better.texture)


def _check(
    asset: ExportedAsset,
    levels: dict[str, TexturedMesh],
    config: AssetConfig,
    pngs: dict[str, dict[str, bytes]],
    metadata: dict[str, Any],
) -> None:
    """The checker on every level, written or not: a fault of the mesh is in the other formats as well."""
    room = FILE_SIZE * max(1.0, (config.texels / 1024) ** 2)
    for number, (title, mesh) in enumerate(levels.items()):
        file = f"{title}.glb"
        data = asset.files.get(file) or textured_glb_bytes(mesh, pngs[title], title, metadata)
        first = number == 0
        expected = Expected(
            triangles=asset.figures["budget"] if first else None,
            texture=max(config.texels >> number, min(config.texels, SMALLEST)),
            height=config.height if first else None,
            megabytes=room,
            gltf_extras=tuple(metadata),
            layout=first,
        )
        asset.findings[file] = check_glb(data, expected)
    body = topology(*weld(levels[asset.name].vertices, levels[asset.name].faces)[:2])
    asset.figures["topology"] = asdict(body) | {"volume": round(body.volume, 6)}


def _collide(asset: ExportedAsset, mesh: TexturedMesh, config: AssetConfig, metadata: dict[str, Any]) -> None:
    """The collider, once for each engine's way of naming."""
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
        named = {pattern.format(name=asset.name, number=number): part for number, part in enumerate(parts)}
        asset.files[file] = plain_glb_bytes(named, {"collider_of": asset.name} | metadata)
        asset.findings[file] = check_collider(parts, mesh.vertices)


def _ask_khronos(asset: ExportedAsset) -> None:
    """The Khronos validator on every GLB, where it is; asset.json tells whether it looked: nobody is no clean bill."""
    glbs = {name: data for name, data in asset.files.items() if name.endswith(".glb")}
    if not glbs:
        return
    try:
        found, answer = validate(glbs)
    except NoAnswer as error:
        found, answer = {}, f"did not answer: {error}"
    for name, findings in found.items():
        asset.findings.setdefault(name, []).extend(findings)
    asset.figures["khronos"] = answer
