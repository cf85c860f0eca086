"""Round trips through programs that share no code with this one: what they read is what was written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textured_box import files, textured

from threedgen.cameras import orbit
from threedgen.export.check import Expected, check_glb
from threedgen.export.glb import textured_glb_bytes, to_gltf_axes
from threedgen.export.read_glb import read_glb
from threedgen.raster import render

MESH, TEXTURES = textured()
PNGS = files(TEXTURES)
EXTRAS = {"prompt": "a ball \u00e9 </script>", "seed": 3}
DATA = textured_glb_bytes(MESH, PNGS, "ball", EXTRAS)


def test_pygltflib_reads_every_array_and_map() -> None:
    pygltflib = pytest.importorskip("pygltflib")
    gltf = pygltflib.GLTF2.load_from_bytes(DATA)
    blob, here = gltf.binary_blob(), read_glb(DATA)

    def part(view: int) -> bytes:
        where = gltf.bufferViews[view]
        return blob[where.byteOffset : where.byteOffset + where.byteLength]

    (primitive,) = gltf.meshes[0].primitives
    for name, values in here.attributes.items():
        accessor = gltf.accessors[getattr(primitive.attributes, name)]
        assert accessor.count == len(values) and accessor.componentType == pygltflib.FLOAT
        assert np.array_equal(np.frombuffer(part(accessor.bufferView), "<f4").reshape(values.shape), values)
    tangents = here.attributes["TANGENT"]
    assert np.allclose(tangents[:, :3], to_gltf_axes(MESH.tangents[:, :3]))
    assert np.array_equal(tangents[:, 3], MESH.tangents[:, 3])
    indices = gltf.accessors[primitive.indices]
    assert np.array_equal(np.frombuffer(part(indices.bufferView), "<u2"), here.faces.reshape(-1))
    assert [part(image.bufferView) for image in gltf.images] == list(PNGS.values())
    material = gltf.materials[primitive.material]
    maps = material.pbrMetallicRoughness.baseColorTexture, material.normalTexture, material.occlusionTexture
    assert [gltf.textures[used.index].source for used in maps] == [0, 1, 2]
    assert material.occlusionTexture.index == material.pbrMetallicRoughness.metallicRoughnessTexture.index
    assert gltf.asset.extras == gltf.nodes[0].extras == EXTRAS


def test_what_pygltflib_writes_again_is_the_same_asset() -> None:
    pygltflib = pytest.importorskip("pygltflib")
    here = read_glb(DATA)
    again = b"".join(pygltflib.GLTF2.load_from_bytes(DATA).save_to_bytes())
    assert check_glb(again, Expected(320, 256, extras=("prompt", "seed"))) == []
    there = read_glb(again)
    assert np.array_equal(there.faces, here.faces) and there.extras == EXTRAS
    assert all(np.array_equal(there.attributes[name], values) for name, values in here.attributes.items())
    assert all(np.array_equal(there.images[name], pixels) for name, pixels in here.images.items())


def test_assimp_reads_the_same_mesh(tmp_path: Path) -> None:
    """The library behind many engines' importers; its bitangent shows what it makes of the sign of a tangent."""
    assimp: Any = pytest.importorskip("assimp_py")
    (tmp_path / "ball.glb").write_bytes(DATA)
    scene = assimp.import_file(str(tmp_path / "ball.glb"), assimp.Process_Triangulate)
    assert (scene.num_meshes, scene.root_node.name) == (1, "ball")
    (mesh,) = scene.meshes

    def rows(values: Any, columns: int) -> np.ndarray:
        return np.asarray(values).reshape(-1, columns)

    assert np.array_equal(rows(mesh.indices, 3), MESH.faces)
    assert np.array_equal(rows(mesh.vertices, 3), to_gltf_axes(MESH.vertices))
    normals, tangents = to_gltf_axes(MESH.normals), to_gltf_axes(MESH.tangents[:, :3])
    assert np.allclose(rows(mesh.normals, 3), normals) and np.allclose(rows(mesh.tangents, 3), tangents)
    bitangents = np.cross(normals, tangents) * MESH.tangents[:, 3:]
    assert np.allclose(rows(mesh.bitangents, 3), bitangents, atol=1e-6)
    assert np.allclose(rows(mesh.texcoords[0], mesh.num_uv_components[0])[:, :2], MESH.uv, atol=1e-6), "v upwards"
    material = scene.materials[mesh.material_index]
    kinds = {assimp.TextureType_DIFFUSE: "*0", assimp.TextureType_NORMALS: "*1"}
    textures = {kind: names for kind, names in material["TEXTURES"].items() if kind in kinds}
    assert textures == {kind: [name] for kind, name in kinds.items()}


@pytest.mark.slow
def test_blender_shows_what_the_rasteriser_shows(tmp_path: Path) -> None:
    """Its importer, its own tangents (MikkTSpace), and a picture by Cycles: pip install bpy, some hundred megabytes."""
    bpy: Any = pytest.importorskip("bpy")
    path = tmp_path / "ball.glb"
    path.write_bytes(DATA)
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.ops.import_scene.gltf(filepath=str(path))
    (body,) = [thing for thing in bpy.data.objects if thing.type == "MESH"]
    bpy.context.view_layer.update()
    world = np.array([body.matrix_world @ vertex.co for vertex in body.data.vertices])
    turned = MESH.vertices[:, [1, 0, 2]] * (1, -1, 1)  # z up as here, but the front, +x here, is its -y
    assert np.allclose(world.min(axis=0), turned.min(axis=0), atol=1e-5)
    assert np.allclose(world.max(axis=0), turned.max(axis=0), atol=1e-5)
    assert body["prompt"] == EXTRAS["prompt"] and body["seed"] == 3

    body.data.calc_tangents()
    corners = MESH.faces.reshape(-1)
    assert [loop.vertex_index for loop in body.data.loops] == corners.tolist()
    theirs = np.array([loop.tangent for loop in body.data.loops])
    ours = to_gltf_axes(MESH.tangents[corners, :3])[:, [0, 2, 1]] * (1, -1, 1)  # Blender's axes of a glTF file
    cosine = (theirs * ours).sum(axis=1)
    assert (cosine > math.cos(math.radians(1))).mean() >= 0.99
    signs = np.array([loop.bitangent_sign for loop in body.data.loops])
    assert (signs == MESH.tangents[corners, 3]).mean() >= 0.995

    fov, pixels = 0.6, 128
    cameras = orbit(1, 0.3, 2.5, fov, pixels, pixels, azimuth=0.7)
    c2w = cameras.c2w.numpy().copy()
    c2w[:, :3, 3] += (0, 0, 0.5)  # the ball stands on the floor
    seen = render(MESH.vertices, MESH.faces, c2w, fov, pixels, uv=MESH.uv,
                  texture=TEXTURES.base_colour.astype(np.float32) / 255)  # fmt: skip
    rgba = _cycles(bpy, body, c2w[0], fov, pixels, tmp_path / "ball.png")
    both, either = (seen.alpha[0] > 0.5) & (rgba[..., 3] > 0.5), (seen.alpha[0] > 0.5) | (rgba[..., 3] > 0.5)
    assert both.sum() / either.sum() > 0.98
    inside = (seen.alpha[0] == 1) & (rgba[..., 3] > 0.999)
    assert np.abs(seen.rgb[0] - rgba[..., :3])[inside].mean() < 0.02


def _cycles(bpy: Any, body: Any, c2w: np.ndarray, fov: float, pixels: int, path: Path) -> np.ndarray:
    """A picture (H, W, 4) in [0, 1] of the base colour alone, from a camera of ours."""
    from mathutils import Matrix
    from PIL import Image

    nodes = body.data.materials[0].node_tree
    (texture,) = [n for n in nodes.nodes if n.type == "TEX_IMAGE" and n.image.colorspace_settings.name == "sRGB"]
    (output,) = [n for n in nodes.nodes if n.type == "OUTPUT_MATERIAL"]
    glow = nodes.nodes.new("ShaderNodeEmission")
    nodes.links.new(texture.outputs["Color"], glow.inputs["Color"])
    nodes.links.new(glow.outputs["Emission"], output.inputs["Surface"])

    turn = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # world here to Blender's
    camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
    camera.matrix_world = Matrix((turn @ c2w).tolist())
    camera.data.angle = fov
    bpy.context.collection.objects.link(camera)
    scene = bpy.context.scene
    scene.camera, scene.render.engine = camera, "CYCLES"
    scene.cycles.device, scene.cycles.samples, scene.cycles.use_denoising = "CPU", 16, False
    scene.render.resolution_x = scene.render.resolution_y = pixels
    scene.render.resolution_percentage, scene.render.film_transparent = 100, True
    scene.view_settings.view_transform = "Standard"
    scene.render.image_settings.file_format, scene.render.image_settings.color_mode = "PNG", "RGBA"
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)
    return np.asarray(Image.open(path).convert("RGBA"), np.float32) / 255
