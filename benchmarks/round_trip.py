"""Compare exported assets, as trimesh, Blender and three.js read them, with the arrays in the GLB files.

The module tests/support/other_readers.py finds and runs these programs. A program that is not installed has no rows.
"""

import re
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.support.other_readers import READERS, Mesh, Meshes, difference
from threedgen.config.errors import ConfigError

from .glb_reader import read_glb
from .table import Row, Table

SLOTS = {
    "base_colour": "baseColorTexture",
    "normal": "normalTexture",
    "roughness": "metallicRoughnessTexture",
    "metallic": "metallicRoughnessTexture",
    "occlusion": "occlusionTexture",
}
COLUMNS = ("nodes", "triangles", "vertices", "area", "corners", "uv", "normals", "colours", "maps")


def table(runs: list[Path] | None) -> Table:
    """Return a row for each program and file in RUN/asset, with the largest differences over the nodes of the file.

    Raises ConfigError if there are no runs, or if a run has no asset.
    """
    if not runs:
        raise ConfigError("is missing. Give --run RUN with RUN/asset, of formats=[glb, obj, usdz]", "run")
    rows = list[Row]()
    for run in runs:
        if not (run / "asset" / "asset.json").is_file():
            problem = "is a run without an asset. Make one with `launch.py --config export run=RUN`"
            raise ConfigError(problem, "run", str(run))
        with tempfile.TemporaryDirectory() as folder:
            rows += _rows(run / "asset", Path(folder))
    notes = [
        "Differences: corners in millimetres, normals in degrees, colours at 2000 points and maps in levels of 255."
    ]
    notes += ["maps: those that the program takes from the format; a file without normals has them computed"]
    return Table("Exported assets in other programs", rows, notes)


def _rows(asset: Path, folder: Path) -> list[Row]:
    paths = sorted(asset.glob("*.glb")) + sorted(asset.glob("*.usdz"))
    for archive in asset.glob("*_obj.zip"):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
    paths += sorted(folder.glob("*.obj"))
    found: dict[str, Meshes] = {name: read(paths, folder) for name, (has, read) in READERS.items() if has()}
    levels = {path.stem: _level(path) for path in paths if path.suffix == ".glb" and "_collision_" not in path.stem}
    rows = list[Row]()
    for program, files in found.items():
        for file, meshes in files.items():
            # expected: a level by its name, the mesh of a USDZ by the asset's name, a collider as trimesh reads it
            plain = levels | {"mesh": levels.get(Path(file).stem)}
            truth: dict[str, Mesh | None] = {name: plain.get(name) for name in meshes}
            if "_collision_" in file:
                truth = {name: replace(mesh, normals=None) for name, mesh in found["trimesh"][file].items()}
            if file.endswith(".obj"):  # all levels have the textures of the finest one
                maps = levels[re.sub(r"_LOD\d+$", "", Path(file).stem)].maps
                truth = {name: mesh and replace(mesh, maps=maps) for name, mesh in truth.items()}
            rows.append({"program": program, "file": file} | _row(meshes, truth))
    return rows


def _level(path: Path) -> Mesh:
    glb = read_glb(path.read_bytes())
    rows = glb.faces.reshape(-1)
    position, normal, uv = (glb.attributes[name][rows] for name in ("POSITION", "NORMAL", "TEXCOORD_0"))
    maps = {slot: glb.images[name] for slot, name in SLOTS.items() if name in glb.images}
    return Mesh(len(glb.attributes["POSITION"]), position, normal, uv * (1, -1) + (0, 1), maps)


def _row(meshes: dict[str, Mesh], truth: dict[str, Mesh | None]) -> Row:
    known = {name: (mesh, truth[name]) for name, mesh in meshes.items() if truth.get(name) is not None}
    pairs = [
        difference(mesh, replace(other, maps={slot: image for slot, image in other.maps.items() if slot in mesh.maps}))
        for mesh, other in known.values()
        if other is not None
    ]
    if not pairs:
        return dict.fromkeys(COLUMNS, "-")
    worst = {key: max(pair[key] for pair in pairs) for key in pairs[0]}
    maps = sum(len(mesh.maps) for mesh in meshes.values())
    return {
        "nodes": f"{len(known)} of {len(truth)}",
        "triangles": str(sum(len(mesh.corners) // 3 for mesh in meshes.values())),
        "vertices": _text(worst["vertices"]),
        "area": _text(worst["area"]),
        "corners": _text(1000 * worst["corners"]),
        "uv": _text(worst["uv"]),
        "normals": _text(worst["normals"]),
        "colours": _text(worst["colours"]),
        "maps": f"{_text(worst['maps'])} ({maps})",
    }


def _text(value: float) -> str:
    return "0" if value == 0 else "-" if np.isinf(value) else f"{value:.1g}"
