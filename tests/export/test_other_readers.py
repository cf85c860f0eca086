"""GLB files read by independent programs: pygltflib, assimp, Blender."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.glb_reader import read_glb
from tests.support.textured_box import files, textured
from threedgen.export.files.glb import textured_glb_bytes, to_gltf_axes

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
