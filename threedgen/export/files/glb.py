"""Write a mesh as GLB (glTF 2.0 binary) with one buffer and one JSON chunk; check it with the Khronos validator.

No library is used, because the files need 16-bit linear vertex colours and the tangents with which the normal map was
baked, and because equal input must give equal bytes.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from threedgen.export.shape.mesh import Mesh, TexturedMesh
from threedgen.geometry.images import to_linear
from threedgen.run.arrays import Array
from threedgen.run.disk import Tree, write_atomic

if TYPE_CHECKING:
    from threedgen.export.files.splats import SplatArrays  # at run time, this import would load the representation

_COMPONENTS = {"<f4": 5126, "<u2": 5123, "<u4": 5125}
_VERTICES, _INDICES = 34962, 34963
UNLIT, SPLATS = "KHR_materials_unlit", "KHR_gaussian_splatting"
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


def to_gltf_axes(vectors: Array) -> Array:
    """Rotate vectors (N, 3) from world axes (z up, front +x) to glTF axes (y up, front +z): x' = y, y' = z, z' = x."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]])


GLTF_AXES = to_gltf_axes(np.eye(3)).T
"""Rotation matrix R (3, 3) of `to_gltf_axes`: the column vector x in world axes is R x in glTF axes."""


class _Buffer:
    """Builder of the binary chunk of a GLB: its bytes, and the glTF buffer views and accessors that describe them.

    `blob` appends bytes, `add` an array, `positions` vertices in world axes. Each returns an index for the glTF JSON.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[Tree] = []
        self.accessors: list[Tree] = []

    def blob(self, raw: bytes, **fields: object) -> int:
        """Append bytes, padded with zeros to a multiple of 4, as a new glTF buffer view. Return the index of the view.

        `fields` are further keys of the buffer view, such as `target`.
        """
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(raw)} | fields)
        self.data += raw + bytes(-len(raw) % 4)
        return len(self.views) - 1

    def add(self, array: Array, **fields: object) -> int:
        """Append an array as a new glTF accessor. Return the index of the accessor.

        The array is a vertex attribute (V,), (V, 2), (V, 3) or (V, 4), float32 or uint16, or the corner indices (3 F,),
        uint16 or uint32, of F triangles. `fields` are further keys, such as `normalized`.
        """
        flat = array.ndim == 1
        accessor = {
            "bufferView": self.blob(
                array.tobytes(), target=_INDICES if flat and array.dtype.kind == "u" else _VERTICES
            ),
            "componentType": _COMPONENTS[array.dtype.str],
            "count": len(array),
            "type": "SCALAR" if flat else f"VEC{array.shape[1]}",
        }
        self.accessors.append(accessor | fields)
        return len(self.accessors) - 1

    def positions(self, vertices: Array) -> int:
        """Convert vertices (V, 3) from world to glTF axes and append them; return the index of the accessor.

        The accessor has the minimum and maximum of each coordinate, which glTF requires.
        """
        positions = to_gltf_axes(vertices).astype("<f4")
        bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
        return self.add(positions, **bounds)


def glb_bytes(mesh: Mesh, name: str = "mesh", gltf_extras: Tree | None = None) -> bytes:
    """Return the bytes of a GLB of `mesh` with vertex colours, without textures.

    `name` is the name of the glTF mesh, node and material. `gltf_extras` is JSON data for the `extras` of the glTF
    asset and of the node.
    """
    colours = np.column_stack([to_linear(np.clip(mesh.colours, 0, 1)), np.ones(len(mesh.vertices))])
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.positions(mesh.vertices),
        "NORMAL": buffer.add(to_gltf_axes(mesh.normals).astype("<f4")),
        "COLOR_0": buffer.add(np.round(colours * 65535).astype("<u2"), normalized=True),
    }
    meshes = [_mesh(buffer, name, attributes, mesh.faces, material=0)]
    return _pack(buffer, meshes, gltf_extras, materials=[_material(name, {})])


def textured_glb_bytes(
    mesh: TexturedMesh | dict[str, TexturedMesh],
    pngs: dict[str, bytes],
    name: str = "mesh",
    gltf_extras: Tree | None = None,
    scene: bool = False,
    double_sided: bool = False,
) -> bytes:
    """Return the bytes of a GLB with embedded textures.

    Args:
        mesh: mesh in world axes (z up, front +x), which is converted to glTF axes; or several, node name -> mesh, with
            one material.
        pngs: texture name -> bytes of a PNG file; the names are base_colour (required), normal (in tangent space) and
            orm (red: occlusion, green: roughness, blue: metallic).
        name: name of the material, and of node and mesh if there is only one.
        gltf_extras: JSON data for the `extras` of the glTF asset and of the nodes.
        scene: True for the mesh of a scene: use an unlit (KHR_materials_unlit), double-sided material.
        double_sided: True for a mesh with holes or reversed faces: use a double-sided material.
    """
    buffer, meshes, nodes = _Buffer(), list[Tree](), list[Tree]()
    for title, part in (mesh if isinstance(mesh, dict) else {name: mesh}).items():
        tangents = np.column_stack([to_gltf_axes(part.tangents[:, :3]), part.tangents[:, 3]])
        attributes = {
            "POSITION": buffer.positions(part.vertices),
            "NORMAL": buffer.add(to_gltf_axes(part.normals).astype("<f4")),
            "TANGENT": buffer.add(tangents.astype("<f4")),
            "TEXCOORD_0": buffer.add((part.uv * (1, -1) + (0, 1)).astype("<f4")),  # glTF's v runs downwards
        }
        meshes.append(_mesh(buffer, title, attributes, part.faces, material=0))
        offset = to_gltf_axes(np.array([part.offset]))[0].tolist()
        nodes.append({"translation": offset} if any(offset) else {})
    names = [f"{name}_{kind}" for kind in pngs]
    views = [buffer.blob(data) for data in pngs.values()]
    material = _material(name, {kind: number for number, kind in enumerate(pngs)})
    material |= {"doubleSided": True} if scene or double_sided else {}
    material |= {"extensions": {UNLIT: {}}} if scene else {}
    return _pack(
        buffer,
        meshes,
        gltf_extras,
        nodes,
        **({"extensionsUsed": [UNLIT]} if scene else {}),
        materials=[material],
        images=[{"name": n, "mimeType": "image/png", "bufferView": v} for n, v in zip(names, views, strict=True)],
        textures=[{"source": number, "sampler": 0, "name": n} for number, n in enumerate(names)],
        samplers=[{"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}],
    )


def plain_glb_bytes(parts: dict[str, tuple[Array, Array]], gltf_extras: Tree | None = None) -> bytes:
    """Return the bytes of a GLB with one node per collider, without materials.

    `parts`: node name -> vertices (V, 3) and faces (F, 3) of a collider, in world axes; the GLB has glTF axes.
    `gltf_extras`: JSON data for the `extras` of the glTF asset.
    """
    buffer = _Buffer()
    meshes = [_mesh(buffer, name, {"POSITION": buffer.positions(x)}, faces) for name, (x, faces) in parts.items()]
    return _pack(buffer, meshes, gltf_extras)


def splat_glb_bytes(splats: SplatArrays, name: str = "splats", gltf_extras: Tree | None = None) -> bytes:
    """Return the bytes of a GLB with 3D Gaussians, in the extension KHR_gaussian_splatting without compression.

    Viewers without the extension show coloured points. `name` is the name of the glTF mesh and node. `gltf_extras` is
    JSON data for the `extras` of the glTF asset and of the node.
    """
    buffer, turned = _Buffer(), splats.rotated(GLTF_AXES)
    linear = np.column_stack([to_linear(np.clip(splats.colours, 0, 1)), splats.opacities])
    attributes = {
        "POSITION": buffer.positions(splats.means),
        "COLOR_0": buffer.add(np.round(linear * 65535).astype("<u2"), normalized=True),
        f"{SPLATS}:ROTATION": buffer.add(turned.quaternions[:, [1, 2, 3, 0]].astype("<f4")),
        f"{SPLATS}:SCALE": buffer.add(turned.scales.astype("<f4")),
        f"{SPLATS}:OPACITY": buffer.add(turned.opacities.astype("<f4")),
    }
    for k, coefficients in enumerate(np.moveaxis(turned.harmonics, 1, 0)):
        key = f"{SPLATS}:SH_DEGREE_{min(k, 1)}_COEF_{max(k - 1, 0)}"
        attributes[key] = buffer.add(np.ascontiguousarray(coefficients).astype("<f4"))
    extension = {SPLATS: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}}
    primitive = {"attributes": attributes, "mode": 0, "extensions": extension}
    return _pack(buffer, [{"name": name, "primitives": [primitive]}], gltf_extras, extensionsUsed=[SPLATS])


def _mesh(buffer: _Buffer, name: str, attributes: dict[str, int], faces: Array, **fields: object) -> Tree:
    small = buffer.accessors[attributes["POSITION"]]["count"] < 65535
    indices = buffer.add(faces.astype("<u2" if small else "<u4").reshape(-1))
    return {"name": name, "primitives": [{"attributes": attributes, "indices": indices} | fields]}


def _material(name: str, textures: dict[str, int]) -> Tree:
    # without an orm texture the material is rough and non-metallic
    pbr: Tree = {}
    material: Tree = {"name": name, "pbrMetallicRoughness": pbr}
    if "base_colour" in textures:
        pbr["baseColorTexture"] = {"index": textures["base_colour"]}
    if "orm" in textures:
        pbr["metallicRoughnessTexture"] = material["occlusionTexture"] = {"index": textures["orm"]}
    pbr |= {"metallicFactor": int("orm" in textures), "roughnessFactor": 1}
    if "normal" in textures:
        material["normalTexture"] = {"index": textures["normal"]}
    return material


def _pack(
    buffer: _Buffer,
    meshes: list[Tree],
    gltf_extras: Tree | None,
    more: list[Tree] | None = None,
    **lists: Sequence[object],
) -> bytes:
    """Return the bytes of a GLB with one node for each glTF mesh object in `meshes`.

    Args:
        buffer: binary chunk, with its buffer views and accessors.
        meshes: glTF mesh objects, as JSON data. A node has the name of its mesh.
        gltf_extras: JSON data for the `extras` of the glTF asset. Each node gets them too, except in a GLB of
            colliders, which is recognised by its missing `lists`.
        more: for each mesh a dict of further keys of its node, such as `translation`; None: no further keys.
        lists: further lists at the top level of the glTF JSON. `materials=[...]` becomes its key "materials".
    """
    extras = gltf_extras or {}
    own = {"extras": extras} if lists else {}
    nodes = [{"mesh": k, "name": mesh["name"]} | own | (more[k] if more else {}) for k, mesh in enumerate(meshes)]
    tree = {
        "asset": {"version": "2.0", "generator": "threedgen", "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        **lists,
        "buffers": [{"byteLength": len(buffer.data)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    chunks = (b"JSON", text), (b"BIN\0", buffer.data)
    body = b"".join(struct.pack("<I4s", len(data), kind) + data for kind, data in chunks)
    return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body


def save_glb(mesh: Mesh, path: Path, gltf_extras: Tree | None = None) -> Path:
    """Write a GLB of `mesh` with vertex colours atomically to `path`; return `path`.

    The glTF `extras` are `gltf_extras` and the statistics `mesh.info`. If both have a key, the statistic is used.
    """
    write_atomic(path, glb_bytes(mesh, path.stem, {**(gltf_extras or {}), **mesh.info}))
    return path


TIMEOUT_S = 120  # maximum run time of the validator in seconds. A file usually takes less than one second.
_SEVERITY = {0: "error", 1: "warning"}  # not reported: 2 (information), 3 (hint)
_SCRIPT = """
const { readFileSync } = require("fs"), { dirname, join } = require("path");
const globally = [join(dirname(process.execPath), "..", "lib"), join(process.env.APPDATA || "/", "npm")];
const validator = require(require.resolve("gltf-validator", { paths: [process.cwd(), ...globally] }));
const validate = (path) =>
  validator.validateBytes(new Uint8Array(readFileSync(path)), { format: "glb", maxIssues: 0 });
Promise.all(process.argv.slice(1).map(validate)).then((reports) => console.log(JSON.stringify(reports)));
"""
_MISSING = "Cannot find module 'gltf-validator'"


def validate(glbs: dict[str, bytes]) -> tuple[dict[str, list[str]], str]:
    """Run the Khronos glTF validator on GLB files, given as file name -> content.

    Returns:
        File name -> list of errors and warnings, each as "error CODE: message (place)". Empty if the validator is not
            installed or fails.
        Sentence with the validator's version and the counts of errors and warnings, or with the reason of the failure.
    """
    node = shutil.which("node")
    if node is None:
        return {}, "not installed: node is not on the PATH"
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.glb" for number in range(len(glbs))]
        for path, data in zip(paths, glbs.values(), strict=True):
            path.write_bytes(data)
        command = [node, "-e", _SCRIPT, *map(str, paths)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return {}, f"failed: timeout after {TIMEOUT_S} s"
        except OSError as error:
            return {}, f"failed: {error}"
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace")
        if _MISSING in message:
            return {}, "not installed: node has no package gltf-validator (npm install -g gltf-validator)"
        reason = next((line for line in message.split("\n") if "Error" in line), message.strip())
        return {}, f"failed: node exited with code {done.returncode}: {reason}"
    try:
        reports = json.loads(done.stdout)
        results = {
            name: [
                f"{_SEVERITY[found['severity']]} {found['code']}: {found['message']} ({found.get('pointer', 'file')})"
                for found in report["issues"]["messages"]
                if found["severity"] in _SEVERITY
            ]
            for name, report in zip(glbs, reports, strict=True)
        }
        version = reports[0]["validatorVersion"]
    except (LookupError, TypeError, ValueError) as error:
        return {}, f"failed: its report is invalid ({type(error).__name__}: {error})"
    counts = [sum(f.startswith(kind) for part in results.values() for f in part) for kind in _SEVERITY.values()]
    return results, f"version {version}: {counts[0]} errors and {counts[1]} warnings in {len(glbs)} files"
