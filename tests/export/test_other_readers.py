"""Exported files read by independent programs: pygltflib, assimp, Blender, three.js."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from benchmarks.glb_reader import read_glb
from tests.support import janus_stub
from tests.support.textured_box import files, textured
from threedgen.export.files.glb import plain_glb_bytes, save_glb, textured_glb_bytes, to_gltf_axes
from threedgen.export.files.obj_usdz import obj_zip, usdz_bytes
from threedgen.export.options import ENGINES

SUPPORT = Path(__file__).parents[1] / "support"
BLENDER = os.environ.get("BLENDER_PYTHON", sys.executable)  # Python with the package bpy
THREE = Path(os.environ.get("THREE_JS", "node_modules/three"))  # folder of the npm package three
MESH, TEXTURES = textured()
PNGS = files(TEXTURES)
EXTRAS = {"prompt": "a ball \u00e9 </script>", "seed": 3}
DATA = textured_glb_bytes(MESH, PNGS, "ball", EXTRAS)


def test_pygltflib_reads_arrays_and_textures() -> None:
    pygltflib = pytest.importorskip("pygltflib")
    gltf = pygltflib.GLTF2.load_from_bytes(DATA)
    blob, expected = gltf.binary_blob(), read_glb(DATA)

    def part(index: int) -> bytes:
        view = gltf.bufferViews[index]
        return blob[view.byteOffset : view.byteOffset + view.byteLength]

    (primitive,) = gltf.meshes[0].primitives
    for name, values in expected.attributes.items():
        accessor = gltf.accessors[getattr(primitive.attributes, name)]
        assert accessor.count == len(values) and accessor.componentType == pygltflib.FLOAT
        assert np.array_equal(np.frombuffer(part(accessor.bufferView), "<f4").reshape(values.shape), values)
    tangents = expected.attributes["TANGENT"]
    assert np.allclose(tangents[:, :3], to_gltf_axes(MESH.tangents[:, :3]))
    assert np.array_equal(tangents[:, 3], MESH.tangents[:, 3])
    indices = gltf.accessors[primitive.indices]
    assert np.array_equal(np.frombuffer(part(indices.bufferView), "<u2"), expected.faces.reshape(-1))
    assert [part(image.bufferView) for image in gltf.images] == list(PNGS.values())
    material = gltf.materials[primitive.material]
    maps = material.pbrMetallicRoughness.baseColorTexture, material.normalTexture, material.occlusionTexture
    assert [gltf.textures[used.index].source for used in maps] == [0, 1, 2]
    assert material.occlusionTexture.index == material.pbrMetallicRoughness.metallicRoughnessTexture.index
    assert gltf.asset.extras == gltf.nodes[0].extras == EXTRAS


def test_assimp_reads_mesh_and_textures(tmp_path: Path) -> None:
    """Assimp is the importer of many engines; its bitangents show how it uses the tangent sign."""
    assimp: Any = pytest.importorskip("assimp_py")
    (tmp_path / "ball.glb").write_bytes(DATA)
    scene = assimp.import_file(str(tmp_path / "ball.glb"), assimp.Process_Triangulate)
    assert (scene.num_meshes, scene.root_node.name) == (1, "ball")
    (mesh,) = scene.meshes
    order = MESH.faces.reshape(-1)  # assimp reorders vertices, so compare face corners

    def corners(values: Any, columns: int = 3) -> np.ndarray:
        return np.asarray(values).reshape(-1, columns)[np.asarray(mesh.indices)]

    assert mesh.num_vertices == len(MESH.vertices) and mesh.num_faces == len(MESH.faces)
    assert np.array_equal(corners(mesh.vertices), to_gltf_axes(MESH.vertices)[order])
    normals, tangents = to_gltf_axes(MESH.normals), to_gltf_axes(MESH.tangents[:, :3])
    assert np.allclose(corners(mesh.normals), normals[order], atol=1e-6)
    assert np.allclose(corners(mesh.tangents), tangents[order], atol=1e-6)
    bitangents = np.cross(normals, tangents) * MESH.tangents[:, 3:]
    assert np.allclose(corners(mesh.bitangents), bitangents[order], atol=1e-6)
    uv = corners(mesh.texcoords[0], mesh.num_uv_components[0])[:, :2]
    assert np.allclose(uv, MESH.uv[order], atol=1e-6), "v upwards"
    textures = scene.materials[mesh.material_index]["TEXTURES"]
    kinds = assimp.TextureType_DIFFUSE, assimp.TextureType_NORMALS, assimp.TextureType_LIGHTMAP
    assert len({textures[kind][0] for kind in kinds}) == 3, "base colour, normal map, occlusion"


def _exports(folder: Path) -> dict[str, dict[str, Any]]:
    """Write a level of detail, colliders of both engines, vertex colours, OBJ and USDZ to `folder`.

    Returns {file: {node: expected mesh}}; colliders are pairs of vertices and faces.
    """
    box, _ = textured(trimesh.creation.box((1, 2, 3)), 64)
    parts = [(janus_stub.box().vertices + np.float32(k), janus_stub.box().faces) for k in range(2)]
    found: dict[str, dict[str, Any]] = {"ball_LOD1.glb": {"ball_LOD1": MESH}, "plain.glb": {"plain": parts[0]}}
    (folder / "ball_LOD1.glb").write_bytes(textured_glb_bytes(MESH, PNGS, "ball_LOD1", EXTRAS))
    save_glb(janus_stub.box(), folder / "plain.glb")
    for engine, pattern in ENGINES.items():
        nodes = {pattern.format(name="ball", number=number): part for number, part in enumerate(parts)}
        found[f"{engine}.glb"] = nodes
        (folder / f"{engine}.glb").write_bytes(plain_glb_bytes(nodes))
    with zipfile.ZipFile(io.BytesIO(obj_zip({"ball": MESH, "ball_LOD1": box}, PNGS, "ball"))) as archive:
        archive.extractall(folder)
    found["ball.obj"] = {"ball": MESH, "ball_LOD1": box}
    if find_spec("pxr"):
        (folder / "ball.usdz").write_bytes(usdz_bytes(MESH, PNGS, "ball"))
        found["ball.usdz"] = {"mesh": MESH}
    return found


def _assert_equal(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]]) -> None:
    assert {file: set(meshes) for file, meshes in found.items()} == {file: set(m) for file, m in expected.items()}
    for file, meshes in expected.items():
        for name, mesh in meshes.items():
            ours, their = isinstance(mesh, tuple), found[file][name]
            vertices, faces = mesh if ours else (mesh.vertices, mesh.faces)
            assert their["vertices"] == len(vertices), name
            corners = to_gltf_axes(vertices)[faces].reshape(-1, 3)
            np.testing.assert_allclose(their["corners"], corners, atol=1e-5, err_msg=f"{file} {name}")
            if not ours:
                np.testing.assert_allclose(their["uv"], mesh.uv[mesh.faces].reshape(-1, 2), atol=1e-5, err_msg=file)
                assert their["material"] == (
                    "material" if file.endswith("usdz") else "ball_LOD1" if file.endswith("glb") else "ball"
                )
                image = their["image"]
                if isinstance(image, str):
                    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB"))
                else:
                    pixels = np.frombuffer(base64.b64decode(image[2]), np.uint8).reshape(*image[:2], 3)
                assert np.array_equal(pixels, TEXTURES.base_colour), file


@pytest.mark.slow
def test_blender_reads_exports(tmp_path: Path) -> None:
    if BLENDER == sys.executable and not find_spec("bpy"):
        pytest.skip("no Blender here: set BLENDER_PYTHON to a Python with bpy")
    expected = _exports(tmp_path)
    paths = [str(tmp_path / name) for name in expected]
    script = str(SUPPORT / "read_in_blender.py")
    subprocess.run([BLENDER, script, str(tmp_path / "out.json"), *paths], check=True, timeout=600)
    _assert_equal(json.loads((tmp_path / "out.json").read_text()), expected)


@pytest.mark.slow
def test_three_js_reads_exports(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None or not THREE.is_dir():
        pytest.skip("no three.js here: npm install three, or set THREE_JS to its folder")
    expected = {name: meshes for name, meshes in _exports(tmp_path).items() if name.endswith(".glb")}
    paths = [str(tmp_path / name) for name in expected]
    script = str(SUPPORT / "read_in_three.mjs")
    subprocess.run([node, script, str(tmp_path / "out.json"), str(THREE.absolute()), *paths], check=True, timeout=600)
    _assert_equal(json.loads((tmp_path / "out.json").read_text()), expected)
