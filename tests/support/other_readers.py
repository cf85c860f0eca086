"""Meshes of exported files as trimesh, Blender and three.js read them, and their differences from what was written.

Blender: set BLENDER_PYTHON to a Python with the package bpy. three.js: set THREE_JS to the folder of the npm package.
Godot: Debian's godot3-server, which has Godot 3 without a window.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image

from threedgen.run.arrays import Array

SUPPORT = Path(__file__).parent
BLENDER = os.environ.get("BLENDER_PYTHON", sys.executable)
THREE = Path(os.environ.get("THREE_JS", "node_modules/three"))
SECONDS = 600  # time limit of a program
GODOT_SECONDS = 60
GODOT_PROJECT = """config_version=4
[importer_defaults]
scene={"materials/storage": 0}
"""
"""Materials stay inside the scenes: without a window, the editor waits for ever for a picture of a material file."""
POINTS = 2000  # number of points of the surface whose colours are compared


@dataclass(frozen=True)
class Mesh:
    """Mesh of a node in metres, y up, front +z, with the values at the three corners of each triangle.

    Attributes:
        vertices: number of vertices; None: the program keeps the corners of each triangle apart.
        corners: (3 F, 3), positions.
        normals: (3 F, 3); None: not read.
        uv: (3 F, 2), v upwards; None: no texture coordinates.
        maps: textures (H, W, 3) uint8, by slot: base_colour, normal, roughness, metallic, occlusion.
        factors: roughness and metallic of the material.
        material: name of the material.
    """

    vertices: int | None
    corners: Array
    normals: Array | None = None
    uv: Array | None = None
    maps: dict[str, Array] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    material: str = ""

    def area(self) -> float:
        a, b, c = self.corners.reshape(-1, 3, 3).swapaxes(0, 1)
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)

    def bounds(self) -> Array:
        return np.stack([self.corners.min(0), self.corners.max(0)])

    def colours(self) -> Array | None:
        """Return the base colours (POINTS, 3) at random points of the surface; None without a texture."""
        if self.uv is None or "base_colour" not in self.maps:
            return None
        rng, image = np.random.default_rng(0), self.maps["base_colour"]
        weights = rng.dirichlet(np.ones(3), POINTS)
        triangles = self.uv.reshape(-1, 3, 2)[rng.integers(0, len(self.uv) // 3, POINTS)]
        u, v = np.einsum("nk,nkc->cn", weights, triangles)
        height, width = image.shape[:2]
        rows = np.clip(((1 - v) * height).astype(int), 0, height - 1)
        return image[rows, np.clip((u * width).astype(int), 0, width - 1)].astype(int)


Meshes = dict[str, dict[str, Mesh]]
"""File name -> name of the node -> mesh."""


def difference(found: Mesh, expected: Mesh) -> dict[str, float]:
    """Return the largest differences between two meshes with the same order of triangles.

    Keys: vertices, triangles (counts), corners and bounds in metres, area relative, uv, normals in degrees, colours and
    maps in levels of 255, factors. Values that one of the two lacks, or arrays of different length, give infinity.
    """
    values = {
        "corners": (found.corners, expected.corners),
        "bounds": (found.bounds(), expected.bounds()),
        "uv": (found.uv, expected.uv),
        "colours": (found.colours(), expected.colours()),
    }
    result: dict[str, float] = {name: _largest(*pair) for name, pair in values.items()}
    result["vertices"] = abs((found.vertices or expected.vertices or 0) - (expected.vertices or 0))
    result["triangles"] = abs(len(found.corners) - len(expected.corners)) / 3
    result["area"] = abs(found.area() / expected.area() - 1)
    result["normals"] = _degrees(found.normals, expected.normals)
    slots = expected.maps.keys()
    result["maps"] = max((_largest(found.maps.get(slot), expected.maps[slot]) for slot in slots), default=0.0)
    factors = (abs(found.factors.get(name, np.inf) - value) for name, value in expected.factors.items())
    result["factors"] = max(factors, default=0.0)
    return result


def _largest(a: Array | None, b: Array | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    return float(np.abs(a.astype(float) - b.astype(float)).max()) if a.shape == b.shape else float("inf")


def _degrees(a: Array | None, b: Array | None) -> float:
    if a is None or b is None or a.shape != b.shape:
        return 0.0 if b is None else float("inf")
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).max())


def read_blender(paths: Sequence[Path], folder: Path) -> Meshes:
    """Read GLB, OBJ, USDZ and PLY files in Blender. `folder` gets the intermediate file."""
    return _recorded([BLENDER, str(SUPPORT / "read_in_blender.py")], paths, folder / "blender.json")


def read_three(paths: Sequence[Path], folder: Path) -> Meshes:
    """Read GLB, OBJ, USDZ and PLY files in three.js. `folder` gets the intermediate file."""
    command = ["node", str(SUPPORT / "read_in_three.mjs"), str(THREE.absolute())]
    return _recorded(command, paths, folder / "three.json")


def read_godot(paths: Sequence[Path], project: Path) -> dict[str, Any]:
    """Import GLB files in Godot. Return a dict from file name to its "meshes" and "convex".

    "meshes" has the triangles, maps and bounds of each node; "convex" the points of each convex shape of each body.
    `project` is the new folder of the Godot project.
    """
    project.mkdir()
    (project / "project.godot").write_text(GODOT_PROJECT)
    for path in (*paths, SUPPORT / "read_in_godot.gd"):
        shutil.copy(path, project)
    out = project / "godot.json"
    for words in (["--editor", "--quit"], ["-s", "read_in_godot.gd"]):
        command = ["godot3-server", "--path", str(project), *words]
        with (project / "output.txt").open("w+") as output:
            try:
                subprocess.run(command, timeout=GODOT_SECONDS, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
                problem = "wrote nothing" if "-s" in words and not out.exists() else ""
                output.seek(0)
                problem = "failed" if "SCRIPT ERROR" in output.read() else problem
            except subprocess.TimeoutExpired:
                problem = f"took more than {GODOT_SECONDS} s"
        assert not problem, f"{' '.join(command)} {problem}:\n{(project / 'output.txt').read_text()}"
    return json.loads(out.read_text())


def _recorded(command: list[str], paths: Sequence[Path], out: Path) -> Meshes:
    subprocess.run([*command, str(out), *map(str, paths)], check=True, timeout=SECONDS)
    tree = json.loads(out.read_text())
    return {file: {name: _mesh(node) for name, node in nodes.items()} for file, nodes in tree.items()}


def _mesh(node: dict[str, Any]) -> Mesh:
    arrays = {k: np.array(node[k], float) if node.get(k) else None for k in ("normals", "uv")}
    maps = {slot: _pixels(image) for slot, image in node.get("maps", {}).items()}
    rest = {"factors": node.get("factors", {}), "material": node.get("material", "")}
    return Mesh(node["vertices"], np.array(node["corners"], float), maps=maps, **arrays, **rest)


def _pixels(image: Any) -> Array:
    if isinstance(image, str):  # an image file
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))
    height, width, data = image
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 3)


def _scene(path: Path) -> dict[str, Mesh]:
    options: Any = {"split_objects": True, "group_material": False} if path.suffix == ".obj" else {}
    scene, found = trimesh.load_scene(path, process=False, **options), dict[str, Mesh]()
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        mesh, turn = scene.geometry[name], matrix[:3, :3]
        corners = mesh.faces.reshape(-1)
        uv, material = getattr(mesh.visual, "uv", None), getattr(mesh.visual, "material", None)
        base = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        packed, other = (getattr(material, f"{kind}Texture", None) for kind in ("metallicRoughness", "normal"))
        images = {"base_colour": base, "roughness": packed, "metallic": packed, "normal": other}
        images["occlusion"] = getattr(material, "occlusionTexture", None)
        factors = {"roughness": getattr(material, "roughnessFactor", None)}
        factors["metallic"] = getattr(material, "metallicFactor", None)
        found[node] = Mesh(
            len(mesh.vertices),
            (mesh.vertices @ turn.T + matrix[:3, 3])[corners],
            (mesh.vertex_normals @ turn.T)[corners],
            None if uv is None else np.asarray(uv)[corners],
            {slot: np.asarray(image.convert("RGB")) for slot, image in images.items() if image is not None},
            {slot: float(value) for slot, value in factors.items() if value is not None},
            getattr(material, "name", "") or "",
        )
    return found


READERS: dict[str, tuple[Callable[[], bool], Callable[[Sequence[Path], Path], Meshes]]] = {
    "trimesh": (lambda: True, lambda paths, _: {p.name: _scene(p) for p in paths if p.suffix != ".usdz"}),
    "Blender": (lambda: BLENDER != sys.executable or find_spec("bpy") is not None, read_blender),
    "three.js": (lambda: shutil.which("node") is not None and THREE.is_dir(), read_three),
}
"""Program -> whether it is installed, and its reader."""
