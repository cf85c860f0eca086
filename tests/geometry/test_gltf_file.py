"""glTF features with exact colours, positions and alpha."""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib as gl
import pytest
import trimesh
from PIL import Image

from tests.support.errors import refused
from tests.support.mesh_files import FACES, SPOTS, SQUARE, TEXTURE, UV, Glb, assert_colours, seen, texel, uv_of
from threedgen.data.coloured_mesh import read_mesh
from threedgen.geometry.images import png, to_linear, to_srgb
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.run.arrays import Array


@pytest.mark.parametrize("seed", range(4))
def test_normalised_integers(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    kind = ["u1", "u2"][seed % 2]
    uv = glb.accessor(np.round(UV * np.iinfo(kind).max).astype(kind), normalized=True)
    kind, scale = ["i1", "i2"][seed // 2 % 2], rng.uniform(1, 9)
    stored = np.round(SQUARE / scale * np.iinfo(kind).max)
    positions = np.zeros((4, 4), kind)  # rows of a multiple of 4 bytes, and a node that scales back
    positions[:, :3] = stored
    index = glb.accessor(positions[:, :3].copy(), normalized=True)
    glb.gltf.accessors[index].bufferView = glb.view(positions.tobytes())
    glb.gltf.bufferViews[-1].byteStride = positions.strides[0]
    node = {"scale": [scale * 1.0] * 3}
    glb.square(glb.material(glb.texture()), node, POSITION=index, TEXCOORD_0=uv)
    glb.gltf.extensionsRequired = ["KHR_mesh_quantization"]
    path = glb.write(tmp_path / "a.glb")
    assert_colours(path, texel(uv_of()))
    expected = stored / np.iinfo(kind).max * scale
    np.testing.assert_allclose(read_mesh_file(path).submeshes[0].vertices, expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_texture_transform(tmp_path: Path, seed: int) -> None:
    """Rotation turns the texture coordinates counter-clockwise as seen on the image: (1, 0) goes to (cos, -sin)."""
    rng, glb = np.random.default_rng(seed), Glb()
    scale, offset, angle = rng.uniform(0.3, 1.5, 2), rng.uniform(-1, 1, 2), rng.uniform(-3, 3)
    transform = {"offset": offset.tolist(), "scale": scale.tolist(), "rotation": angle, "texCoord": seed % 2}
    info = glb.texture()
    info.texCoord, info.extensions = 0, {"KHR_texture_transform": transform}
    coordinates = {f"TEXCOORD_{k}": glb.accessor(UV if k == seed % 2 else UV * 0) for k in range(2)}
    glb.square(glb.material(info), **coordinates)
    c, s = math.cos(angle), math.sin(angle)
    u, v = (uv_of() * scale).T
    moved = np.stack([c * u + s * v, c * v - s * u], axis=1) + offset
    inside = moved - np.floor(moved)
    expected = np.where((np.abs(inside - 0.5).max(1) > 0.43)[:, None], -1, texel(inside))  # a seam is not filtered
    assert_colours(glb.write(tmp_path / "a.glb"), expected)


@pytest.mark.parametrize("modes", [(10497, 33648), (33648, 33071), (33071, 10497)])
def test_wrap_modes_and_texture_coordinate_sets(tmp_path: Path, modes: tuple[int, int]) -> None:
    glb, low, high = Glb(), -1.2, 2.1
    info = glb.texture(wrapS=modes[0], wrapT=modes[1])
    info.texCoord = 1
    coordinates = [UV * 0, (low + UV * (high - low)).astype(np.float32)]
    glb.square(glb.material(info), **{f"TEXCOORD_{k}": glb.accessor(part) for k, part in enumerate(coordinates)})
    t = low + uv_of() * (high - low)
    wrap: dict[int, Callable[[Array], Array]] = {
        10497: lambda x: x % 1,
        33648: lambda x: np.where(np.floor(x) % 2 == 0, x % 1, 1 - x % 1),
        33071: lambda x: x.clip(0, 1),
    }
    inside = np.stack([wrap[mode](t[:, k]) for k, mode in enumerate(modes)], axis=1)
    seam = np.abs(t - np.round(t)).min(1) < 0.05
    assert_colours(glb.write(tmp_path / "a.glb"), np.where(seam[:, None], -1, texel(inside)))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("mode", ["OPAQUE", "MASK", "BLEND"])
def test_alpha_modes_with_a_surface_behind(tmp_path: Path, mode: str, seed: int) -> None:
    """In front a texture with four alphas, behind it a square of one colour, or nothing."""
    rng, glb = np.random.default_rng(seed), Glb()
    alphas, factor, cutoff = rng.integers(0, 256, (2, 2)), rng.uniform(0.5, 1), rng.uniform(0.2, 0.8)
    pixels = np.dstack([TEXTURE, np.kron(alphas, np.ones((8, 8))).astype(np.uint8)])
    options = {"alphaMode": mode} | ({"alphaCutoff": cutoff} if mode == "MASK" else {})
    glb.square(glb.material(glb.texture(pixels), (1, 1, 1, factor), **options))
    behind = seed % 2 == 0
    if behind:
        glb.square(glb.material(None, (0, 0, 1, 1)), {"translation": [0, 0, -1]})
        glb.gltf.scenes[0].nodes = [1, 0]
    row, column = (uv_of() > 0.5).astype(int).T[::-1]
    alpha = factor * alphas[row, column] / 255
    alpha = np.where(mode == "OPAQUE", 1.0, np.where(mode == "MASK", alpha >= cutoff, alpha))
    colour = texel(uv_of())
    if behind:
        expected = np.where(colour < 0, -1, np.round(alpha[:, None] * colour + (1 - alpha[:, None]) * [0, 0, 255]))
        assert_colours(glb.write(tmp_path / "a.glb"), expected)
    else:
        expected = np.where((alpha > 0)[:, None], colour, 0)
        assert_colours(glb.write(tmp_path / "a.glb"), expected, np.round(255 * alpha))


@pytest.mark.parametrize("seed", range(2))
def test_skins_and_nodes(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    quaternion = rng.normal(size=4)
    nodes = [
        {"translation": rng.normal(size=3).tolist(), "rotation": (quaternion / np.linalg.norm(quaternion)).tolist()},
        {"translation": rng.normal(size=3).tolist(), "scale": rng.uniform(0.5, 2, 3).tolist()},
    ]
    inverse = np.tile(np.eye(4), (2, 1, 1))
    inverse[:, :3] += rng.normal(size=(2, 3, 4)) * 0.1
    share = rng.uniform(size=(4, 1))
    weights = np.hstack([share, 1 - share, np.zeros((4, 2))]).astype(np.float32)
    joints = np.tile(np.uint8([0, 1, 0, 0]), (4, 1))
    ibm = glb.accessor(inverse.swapaxes(1, 2).reshape(2, 16).astype(np.float32))
    if seed % 2:
        weights = np.round(weights * 65535).astype(np.uint16)
    attributes = {"JOINTS_0": glb.accessor(joints), "WEIGHTS_0": glb.accessor(weights, normalized=bool(seed % 2))}
    glb.square(node={"skin": 0, "translation": [9, 9, 9]}, **attributes)  # a skinned mesh ignores its own node
    glb.gltf.nodes += [gl.Node(**nodes[0], children=[2]), gl.Node(**nodes[1])]
    glb.gltf.skins = [gl.Skin(joints=[1, 2], inverseBindMatrices=ibm)]
    glb.gltf.scenes[0].nodes = [0, 1]
    x, y, z, w = nodes[0]["rotation"]
    parent = trimesh.transformations.quaternion_matrix([w, x, y, z])
    parent[:3, 3] = nodes[0]["translation"]
    child = np.diag([*nodes[1]["scale"], 1.0])
    child[:3, 3] = nodes[1]["translation"]
    matrices = np.stack([parent @ inverse[0], parent @ child @ inverse[1]])
    first, second = (matrices @ np.column_stack([SQUARE, np.ones(4)]).T)[:, :3].swapaxes(1, 2)
    expected = share * first + (1 - share) * second
    found = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes[0].vertices
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_normals_of_a_stretched_joint_stay_normal(tmp_path: Path) -> None:
    glb, normal = Glb(), np.array([0.6, 0, 0.8], np.float32)
    weights = np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1))
    attributes = {"JOINTS_0": glb.accessor(np.zeros((4, 4), np.uint8)), "WEIGHTS_0": glb.accessor(weights)}
    glb.square(node={"skin": 0}, NORMAL=glb.accessor(np.tile(normal, (4, 1))), **attributes)
    glb.gltf.nodes.append(gl.Node(scale=[1, 2, 4]))
    glb.gltf.skins, glb.gltf.scenes[0].nodes = [gl.Skin(joints=[1])], [0, 1]
    found = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes[0].normals
    assert found is not None
    tangents = np.array([[0.8, 0, -0.6], [0, 1, 0]]) * [1, 2, 4]
    np.testing.assert_allclose(found @ tangents.T, 0, atol=1e-6)
    assert (found[:, 2] > 0).all()


def test_joints_outside_of_the_scene_and_hidden_nodes(tmp_path: Path) -> None:
    glb, hidden = Glb(), {"extensions": {"KHR_node_visibility": {"visible": False}}}
    weights = np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1))
    attributes = {"JOINTS_0": glb.accessor(np.zeros((4, 4), np.uint8)), "WEIGHTS_0": glb.accessor(weights)}
    glb.square(glb.material(glb.texture()), {"skin": 0}, **attributes)
    glb.square(glb.material(), {"translation": [0, 0, 1]})
    glb.gltf.nodes += [gl.Node(**hidden, children=[1]), gl.Node(translation=[0, 0, 5])]
    glb.gltf.skins, glb.gltf.scenes[0].nodes = [gl.Skin(joints=[3])], [0, 2]
    path = glb.write(tmp_path / "a.glb")
    assert_colours(path, texel(uv_of()))
    np.testing.assert_array_equal(read_mesh_file(path).submeshes[0].vertices, SQUARE + [0, 0, 5])
    glb.gltf.nodes[2].extensions["KHR_node_visibility"]["visible"] = True
    assert len(read_mesh_file(glb.write(path)).submeshes) == 2


@pytest.mark.parametrize("seed", range(2))
def test_morph_targets(tmp_path: Path, seed: int) -> None:
    """Targets are stored whole, sparsely, or as zeros without a buffer view."""
    rng, glb = np.random.default_rng(seed), Glb()
    primitive = glb.square(glb.material(glb.texture()))
    moves, weights = rng.normal(size=(3, 4, 3)).astype(np.float32), rng.uniform(-1, 1, 3)
    moves[2] = 0
    moves[1, :2] = 0
    stored = [glb.accessor(moves[0]), glb.sparse(moves[1], None, np.array([2, 3])), glb.accessor(moves[2], False)]
    primitive.targets = [gl.Attributes(POSITION=index) for index in stored]
    glb.gltf.meshes[0].weights = weights.tolist() if seed else []
    expected = SQUARE + (np.tensordot(weights, moves, 1) if seed else 0)
    found = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes[0].vertices
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_values_without_a_buffer_are_limited(tmp_path: Path) -> None:
    glb = Glb()
    primitive = glb.square()
    number = glb.accessor(SQUARE, False)
    primitive.targets, glb.gltf.meshes[0].weights = [gl.Attributes(POSITION=number)], [1.0]
    glb.gltf.accessors[number].count = 10**9
    with refused("", 10**9):
        read_mesh_file(glb.write(tmp_path / "a.glb"))


def test_data_uris_and_textures_without_coordinates(tmp_path: Path) -> None:
    glb = Glb()
    uri = "data:image/png;base64," + base64.b64encode(png(TEXTURE) + b"\0").decode()
    assert uri.endswith("=")
    primitive = glb.square(glb.material(glb.texture(uri=uri.rstrip("="))))
    glb.gltf.meshes[0].primitives.append(gl.Primitive(attributes=gl.Attributes(), mode=0))  # nothing to render
    assert_colours(glb.write(tmp_path / "a.gltf"), texel(uv_of()))
    primitive.attributes.TEXCOORD_0 = None
    mesh = read_mesh(glb.write(tmp_path / "a.glb"))
    assert len(mesh.notes) == 1 and mesh.flat and not mesh.plain


@pytest.mark.parametrize("seed", range(6))
def test_colours_of_vertices_and_materials_multiply(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    factor, vertex = rng.uniform(0.2, 1, 4), rng.uniform(0.2, 1, 3)
    kind = ["f4", "u1", "u2"][seed % 3]
    stored = np.tile(vertex, (4, 1)) * (1 if kind == "f4" else np.iinfo(kind).max)
    textured = seed % 2 == 0
    info = glb.texture() if textured else None
    if kind == "u1":  # rows of a multiple of 4 bytes
        stored = np.column_stack([stored, np.full(4, 255)])
    colours = glb.accessor(stored.astype(kind), normalized=kind != "f4")
    glb.square(glb.material(info, factor), COLOR_0=colours)
    base = texel(uv_of()) if textured else np.full((len(SPOTS), 3), 255)
    expected = np.where(base < 0, -1, 255 * to_srgb(to_linear(base.clip(0) / 255) * factor[:3] * vertex))
    found = seen(read_mesh(glb.write(tmp_path / "a.glb")))[:, :3]
    assert np.abs(found - expected)[expected[:, 0] >= 0].max() < 2.5


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_triangle_modes(tmp_path: Path, seed: int) -> None:
    """Strips, fans, mirrored nodes and squares without indices keep area and orientation."""
    glb = Glb()
    mirrored = seed % 2 == 1
    primitive = glb.square(node={"scale": [-1.0 if mirrored else 1.0, 1, 1]})
    primitive.mode = 5 + seed // 2 % 2
    order = np.array([0, 1, 3, 2] if primitive.mode == 5 else [0, 1, 2, 3], np.uint8)
    primitive.indices = glb.accessor(order)
    if seed > 7:
        primitive.mode, primitive.indices = 4, None
        primitive.attributes.POSITION = glb.accessor(SQUARE[FACES].reshape(-1, 3))
        primitive.attributes.TEXCOORD_0 = None
    submesh = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes[0]
    a, b, c = submesh.vertices[submesh.faces].swapaxes(0, 1)
    np.testing.assert_allclose(np.cross(b - a, c - a)[:, 2], 4)


@pytest.mark.parametrize("name", ["EXT_meshopt_compression", "KHR_texture_basisu"])
def test_files_that_require_compression_are_refused(tmp_path: Path, name: str) -> None:
    glb = Glb()
    glb.square()
    glb.gltf.extensionsUsed = glb.gltf.extensionsRequired = [name]
    path = glb.write(tmp_path / "a.glb")
    with refused("mesh", path, name):
        read_mesh_file(path, "mesh")
    if "texture" in name:
        assert len(read_mesh_file(path, colours=False).submeshes) == 1, "its geometry is readable"


@pytest.mark.parametrize("name", ["KHR_draco_mesh_compression", "KHR_texture_basisu"])
def test_compressed_parts_are_refused(tmp_path: Path, name: str) -> None:
    """The file does not say that it requires the extension."""
    glb = Glb()
    primitive = glb.square(glb.material(glb.texture()))
    if "draco" in name:
        primitive.extensions = {name: {}}
        for accessor in glb.gltf.accessors:
            accessor.bufferView = None
    else:
        glb.gltf.textures[0].extensions, glb.gltf.textures[0].source = {name: {"source": 0}}, None
    path = glb.write(tmp_path / "a.glb")
    with refused("mesh", path, name):
        read_mesh_file(path, "mesh")


def test_gltf_1_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gltf").write_text('{"asset": {"version": "1.0"}, "nodes": {}, "meshes": {}}')
    with refused("", tmp_path / "a.gltf", "glTF 2.0"):
        read_mesh_file(tmp_path / "a.gltf")


@pytest.mark.parametrize("seed", range(4))
def test_gpu_instances_equal_nodes(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    count = seed + 1
    turn = rng.normal(size=(count, 4))
    turn = np.round(127 * turn / np.linalg.norm(turn, axis=1)[:, None]).astype(np.int8)
    parts = {
        "TRANSLATION": rng.normal(size=(count, 3)).astype(np.float32),
        "ROTATION": turn,
        "SCALE": rng.uniform(-2, 2, (count, 3)).astype(np.float32),
    }
    used = {key: part for key, part in parts.items() if seed % 4 == 0 or key != list(parts)[seed % 4 - 1]}
    attributes = {key: glb.accessor(part, normalized=key == "ROTATION") for key, part in used.items()}
    glb.square(node={"scale": [2.0, 1, 1], "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}})
    instanced = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes
    glb.gltf.nodes[0].extensions = {}
    glb.gltf.nodes[0].mesh, glb.gltf.nodes[0].children = None, list(range(1, count + 1))
    for k in range(count):
        node = {key.lower(): (part[k] / (127 if key == "ROTATION" else 1)).tolist() for key, part in used.items()}
        glb.gltf.nodes.append(gl.Node(mesh=0, **node))
    nodes = read_mesh_file(glb.write(tmp_path / "b.glb")).submeshes
    assert len(instanced) == len(nodes) == 1
    both = [np.sort(part.vertices[part.faces].reshape(-1, 9).round(4), axis=0) for part in (instanced[0], nodes[0])]
    np.testing.assert_allclose(*both, atol=1e-3)


@pytest.mark.parametrize("base", [None, (0, 0, 0, 0.5)])
@pytest.mark.parametrize("textured", [True, False])
def test_light_is_the_colour_of_materials_without_another(tmp_path: Path, base: Any, textured: bool) -> None:
    glb = Glb()
    info = glb.texture() if textured else None
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 5.0}}
    number = glb.material(None, base or (1, 1, 1, 1), alphaMode="BLEND", extensions=strong)
    glb.gltf.materials[number].emissiveTexture, glb.gltf.materials[number].emissiveFactor = info, [1, 0.25, 1]
    if base is None:
        glb.gltf.materials[number].pbrMetallicRoughness = None
    glb.square(number)
    expected = to_linear(texel(uv_of()).clip(0) / 255) if textured else np.ones((100, 3))
    colours = np.where(texel(uv_of()) < 0 if textured else False, -1, np.round(255 * to_srgb(expected * [1, 0.25, 1])))
    assert_colours(glb.write(tmp_path / "a.glb"), colours, round(255 * (base or (1, 1, 1, 1))[3]))


@pytest.mark.parametrize("other", ["factor", "texture", "vertices"])
def test_light_is_ignored_beside_other_colours(tmp_path: Path, other: str) -> None:
    glb = Glb()
    info = glb.texture(np.tile(np.uint8([0, 255, 0]), (16, 16, 1))) if other == "texture" else None
    number = glb.material(info, (0, 1, 0, 1) if other == "factor" else (1, 1, 1, 1), emissiveFactor=[1, 0, 0])
    colours = {}
    if other == "vertices":
        glb.gltf.materials[number].pbrMetallicRoughness = None
        colours = {"COLOR_0": glb.accessor(np.tile(np.float32([0, 1, 0]), (4, 1)))}
    glb.square(number, **colours)
    assert_colours(glb.write(tmp_path / "a.glb"), np.tile([0, 255, 0], (100, 1)))


def test_dds_textures(tmp_path: Path) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.dds")
    glb = Glb()
    glb.square(glb.material(glb.texture(uri="tex.dds")))
    glb.gltf.textures[0].extensions, glb.gltf.textures[0].source = {"MSFT_texture_dds": {"source": 0}}, None
    assert_colours(glb.write(tmp_path / "a.gltf"), texel(uv_of()))


@pytest.mark.parametrize("scene", [1, None])
def test_scene_of_the_file_is_read(tmp_path: Path, scene: int | None) -> None:
    """A file without a default scene shows its first one."""
    glb = Glb()
    for k in range(2):
        glb.square(node={"translation": [5 * k, 0, 0]})
    glb.gltf.scenes, glb.gltf.scene = [gl.Scene(nodes=[0]), gl.Scene(nodes=[1])], scene
    (part,) = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes
    assert part.vertices[:, 0].max() == 1 + 5 * (scene or 0)


@pytest.mark.parametrize("name", ["EXT_texture_webp", "VENDOR_geometry"])
def test_required_extensions_that_are_not_read_are_named(tmp_path: Path, name: str) -> None:
    glb = Glb()
    glb.square()
    glb.gltf.extensionsUsed = glb.gltf.extensionsRequired = [name]
    found = read_mesh_file(glb.write(tmp_path / "a.glb")).failures
    assert len(found) == (name == "VENDOR_geometry") and all(name in note for note in found)
