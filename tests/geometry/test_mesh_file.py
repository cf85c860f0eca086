"""Mesh files: glTF and OBJ features with exact colours, positions and alpha; side files; refused files."""

import base64
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pygltflib as gl
import pytest
import trimesh
from PIL import Image

from tests.support import janus_stub
from tests.support.errors import refused
from tests.support.mesh_files import COLOURS, FACES, SPOTS, SQUARE, TEXTURE, UV, Glb, seen, texel, uv_of, write_obj
from tests.support.textured_box import files, textured
from threedgen.data.coloured_mesh import fit_to_ball, read_mesh
from threedgen.export.files.glb import save_glb, textured_glb_bytes, to_gltf_axes
from threedgen.export.files.obj_usdz import obj_zip
from threedgen.geometry.images import png, to_linear, to_srgb
from threedgen.geometry.mesh_file import read_mesh_file
from threedgen.run.arrays import Array

TEN = pytest.mark.parametrize("seed", range(10))
CASES = Path(__file__).parent / "meshes"


def assert_colours(path: Path, expected: Array, alpha: int | Array = 255) -> None:
    """Check the colours at `SPOTS`; `expected` is (100, 3), -1 where a colour is not checked."""
    found = seen(read_mesh(path))
    known = expected[:, 0] >= 0
    assert known.sum() > 15
    assert np.abs(found[known, :3] - expected[known]).max() <= 1
    assert np.abs(found[:, 3] - alpha)[known].max() <= 1


# --- glTF --------------------------------------------------------------------------------------------------------


@TEN
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


@TEN
def test_sparse_accessors(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    rows = np.sort(rng.choice(4, rng.integers(1, 5), replace=False))
    base = SQUARE.copy()
    base[rows] = rng.normal(size=(len(rows), 3))
    whole = np.arange(4)
    uv = glb.sparse(UV, None, whole) if seed % 2 else glb.sparse(UV, np.zeros_like(UV), whole)
    glb.square(glb.material(glb.texture()), POSITION=glb.sparse(SQUARE, base, rows), TEXCOORD_0=uv)
    path = glb.write(tmp_path / "a.glb")
    np.testing.assert_array_equal(read_mesh_file(path).submeshes[0].vertices, SQUARE)
    assert_colours(path, texel(uv_of()))


@TEN
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


@TEN
def test_wrap_modes_and_texture_coordinate_sets(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    modes = [[10497, 33648, 33071][k] for k in rng.integers(0, 3, 2)]
    low, high = rng.uniform(-1.5, -0.5), rng.uniform(1.5, 2.5)
    info = glb.texture(wrapS=modes[0], wrapT=modes[1])
    info.texCoord = seed % 4
    coordinates = {f"TEXCOORD_{k}": glb.accessor(UV * 0) for k in range(4)}
    coordinates[f"TEXCOORD_{seed % 4}"] = glb.accessor((low + UV * (high - low)).astype(np.float32))
    glb.square(glb.material(info), **coordinates)
    t = low + uv_of() * (high - low)
    wrap: dict[int, Callable[[Array], Array]] = {
        10497: lambda x: x % 1,
        33648: lambda x: np.where(np.floor(x) % 2 == 0, x % 1, 1 - x % 1),
        33071: lambda x: x.clip(0, 1),
    }
    inside = np.stack([wrap[mode](t[:, k]) for k, mode in enumerate(modes)], axis=1)
    seam = np.abs(t - np.round(t)).min(1) < 0.05
    assert_colours(glb.write(tmp_path / "a.glb"), np.where(seam[:, None], -1, texel(inside)))


@TEN
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


@TEN
def test_skins_and_nodes(tmp_path: Path, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    quaternion = rng.normal(size=4)
    nodes = [
        {"translation": rng.normal(size=3).tolist(), "rotation": (quaternion / np.linalg.norm(quaternion)).tolist()},
        {"translation": rng.normal(size=3).tolist(), "scale": rng.uniform(0.5, 2, 3).tolist()},
    ]
    inverse = np.tile(np.eye(4), (2, 1, 1))
    inverse[:, :3] += rng.normal(size=(2, 3, 4)) * 0.1
    share = rng.uniform(size=4)
    weights = np.zeros((4, 4), np.float32)
    weights[:, 0], weights[:, 1] = share, 1 - share
    joints = np.zeros((4, 4), np.uint8)
    joints[:, 1] = 1
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
    points = np.column_stack([SQUARE, np.ones(4)])
    posed = [(matrices @ point)[:, :3] for point in points]
    expected = [w0 * p[0] + (1 - w0) * p[1] for w0, p in zip(share, posed, strict=True)]
    found = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes[0].vertices
    np.testing.assert_allclose(found, expected, atol=2e-4)


@TEN
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


def test_morph_targets_can_have_more_values_than_the_file_has_bytes(tmp_path: Path) -> None:
    points, glb = np.random.default_rng(0).normal(size=(3000, 3)).astype(np.float32), Glb()
    primitive = glb.square(POSITION=glb.accessor(points), TEXCOORD_0=glb.accessor(points[:, :2].copy()))
    primitive.indices, zeros = None, [glb.accessor(points, False) for _ in range(100)]
    primitive.targets = [gl.Attributes(POSITION=index) for index in zeros]
    path = glb.write(tmp_path / "a.glb")
    assert path.stat().st_size < 100 * len(points)
    assert len(read_mesh_file(path).submeshes[0].faces) == 1000
    glb.gltf.accessors[zeros[0]].count = 10**9
    glb.gltf.meshes[0].weights = [1.0] + [0.0] * 99
    with refused("", 10**9):
        read_mesh_file(glb.write(tmp_path / "a.glb"))


@pytest.mark.parametrize(
    "name", ["my chair", "böse äpfel", "100% wood", "a#b", "a+b", "日本", "a%20b", "o'neil", "semi;colon", "UPPER case"]
)
def test_percent_encoded_names(tmp_path: Path, name: str) -> None:
    for encode in (quote, str):  # exporters that forget the encoding write the name as it is
        glb = Glb()
        Image.fromarray(TEXTURE).save(tmp_path / f"{name}.png")
        glb.square(glb.material(glb.texture(uri=encode(f"{name}.png"))))
        (tmp_path / f"{name}.bin").write_bytes(glb.data)
        assert_colours(glb.write(tmp_path / "a.gltf", encode(f"{name}.bin")), texel(uv_of()))


def test_data_uris_and_textures_without_coordinates(tmp_path: Path) -> None:
    glb = Glb()
    uri = "data:image/png;base64," + base64.b64encode(png(TEXTURE)).decode()
    primitive = glb.square(glb.material(glb.texture(uri=uri)))
    assert_colours(glb.write(tmp_path / "a.gltf"), texel(uv_of()))
    primitive.attributes.TEXCOORD_0 = None
    mesh = read_mesh(glb.write(tmp_path / "a.glb"))
    assert len(mesh.notes) == 1 and mesh.flat and not mesh.plain


@TEN
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


@TEN
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


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("KHR_draco_mesh_compression", "primitive"),
        ("EXT_meshopt_compression", "view"),
        ("KHR_meshopt_compression", "view"),
        ("KHR_texture_basisu", "texture"),
        ("MSFT_texture_dds", "texture"),
        ("EXT_mesh_gpu_instancing", "node"),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_compressed_files_are_refused(tmp_path: Path, name: str, place: str, required: bool) -> None:
    glb = Glb()
    info = glb.texture()
    primitive, g = glb.square(glb.material(info)), glb.gltf
    if place == "primitive":
        primitive.extensions = {name: {}}
        for accessor in g.accessors:
            accessor.bufferView = None
    if place == "texture":
        g.textures[0].extensions, g.textures[0].source = {name: {"source": 0}}, None
    if place == "node":
        g.nodes[0].extensions = {name: {}}
    g.extensionsUsed, g.extensionsRequired = [name], [name] if required else []
    path = glb.write(tmp_path / "a.gltf")
    if place == "view":  # the uncompressed data are in a second buffer, which is absent
        tree = json.loads(path.read_text())
        tree["buffers"].append({"byteLength": 100})
        for view in tree["bufferViews"]:
            view |= {"buffer": 1, "extensions": {name: {"buffer": 0}}}
        path.write_text(json.dumps(tree))
    with refused("mesh", path, name):
        read_mesh_file(path, "mesh")
    if place == "texture":
        assert len(read_mesh_file(path, colours=False).submeshes) == 1, "its geometry is readable"


@TEN
def test_coordinates_of_millions(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    where, small = rng.uniform(1e6, 9e6, 3), rng.normal(size=(12, 3)).astype(np.float32)
    for name in ("a.glb", "a.obj"):
        corners = []
        for offset in (np.zeros(3), where):
            if name == "a.glb":
                glb = Glb()
                primitive = glb.square(node={"translation": offset.tolist()}, POSITION=glb.accessor(small))
                primitive.indices = None
                primitive.attributes.TEXCOORD_0 = None
                path = glb.write(tmp_path / name)
            else:
                rows = "".join(f"v {x:.9f} {y:.9f} {z:.9f}\n" for x, y, z in (small + offset).tolist())
                path = tmp_path / name
                path.write_text(rows + "".join(f"f {k} {k + 1} {k + 2}\n" for k in range(1, 12, 3)))
            corners.append(fit_to_ball(read_mesh(path)).corners)
        np.testing.assert_allclose(*corners, atol=1e-7)


# --- OBJ ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "maps\\wood.png",
        "./maps/wood.png",
        "MAPS/Wood.PNG",
        "C:\\Users\\me\\model\\wood.png",
        "C:wood.png",
        "/home/me/model/wood.png",
        "\\\\server\\share\\wood.png",
        "../other/wood.png",
        "file:///D:/me/wood.png",
        '"wood.png"',
    ],
)
@pytest.mark.parametrize("folder", ["", "Textures", "../textures", "maps"])
def test_texture_paths(tmp_path: Path, reference: str, folder: str) -> None:
    (tmp_path / "mesh").mkdir()
    place = tmp_path / "mesh" / folder
    place.mkdir(exist_ok=True, parents=True)
    Image.fromarray(TEXTURE).save(place / "wood.png")
    path = write_obj(tmp_path / "mesh", f"map_Kd {reference}")
    if folder == "maps" and "maps" not in reference.lower():
        assert read_mesh(path).notes
    else:
        assert_colours(path, texel(uv_of()))


@pytest.mark.parametrize("seed", range(4))
def test_paths_out_of_the_folder_are_never_opened(tmp_path: Path, seed: int) -> None:
    folder = tmp_path / "a" / "mesh"
    folder.mkdir(parents=True)
    secret = tmp_path / ("a" if seed % 2 else ".") / "secret.png"
    Image.fromarray(TEXTURE).save(secret)
    references = [str(secret), os.path.relpath(secret, folder), f"mesh/../../{secret.name}", secret.as_uri()]
    path = write_obj(folder, f"map_Kd {references[seed]}")
    mesh = read_mesh(path)
    assert "secret.png" in mesh.notes[0] and str(folder) in mesh.notes[0]
    assert (seen(mesh) == [204, 204, 204, 255]).all() and not mesh.plain
    glb = Glb()
    glb.square(glb.material(glb.texture(uri=references[seed])))
    secret.with_suffix(".bin").write_bytes(glb.data)
    with refused("", "secret.bin"):
        read_mesh(glb.write(folder / "a.gltf", references[seed].replace(".png", ".bin")))


def test_side_files_are_regular_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png" in read_mesh(write_obj(tmp_path, "map_Kd pipe.png")).notes[0]
    Image.fromarray(TEXTURE).save(tmp_path / "large.png")
    monkeypatch.setattr("threedgen.geometry.submesh.MAX_TEXTURE_BYTES", 10)
    (tmp_path / "square.mtl").unlink()
    assert "square.mtl" in read_mesh(write_obj(tmp_path, None)).notes[0]
    glb = Glb()
    glb.square(glb.material(glb.texture(uri="large.png")))
    assert "large.png" in read_mesh(glb.write(tmp_path / "a.gltf")).notes[0]


@pytest.mark.parametrize(
    ("line", "scale", "offset", "clamp"),
    [
        ("map_Kd -s 1 1 1 name with space.png", 1, 0, False),
        ("map_Kd -s 2 2 1 name with space.png", 2, 0, False),
        ("map_Kd -o 0.5 0 name with space.png", 1, (0.5, 0), False),
        ("map_Kd -clamp on -s 3 3 name with space.png", 3, 0, True),
        ("map_Kd -blendu on -blendv off -cc off name with space.png", 1, 0, False),
        ("map_Kd -mm 0 1 -texres 512 -bm 1.0 -boost .5 name with space.png", 1, 0, False),
        ("map_Kd -imfchan l -t 0 0 0 name with space.png", 1, 0, False),
        ("\tmap_kd   -S 1e0 1. .1e1   name with space.png  ", 1, 0, False),
        ("map_Ka name with space.png", 1, 0, False),
        ("map_Kd Name With Space.PNG\nmap_Ka other.png", 1, 0, False),
    ],
)
def test_texture_options(tmp_path: Path, line: str, scale: float, offset: float, clamp: bool) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "name with space.png")
    up = uv_of() * (1, -1) + (0, 1)
    moved = up * scale + offset
    inside = moved.clip(0, 1) if clamp else moved % 1
    assert_colours(write_obj(tmp_path, line), texel(inside * (1, -1) + (0, 1)))


@pytest.mark.parametrize("uv", [True, False])
@pytest.mark.parametrize(("top", "mtl"), [(1, None), (255, None), (1, ""), (255, "map_Kd gone.png")])
def test_vertex_colours(tmp_path: Path, uv: bool, top: float, mtl: str | None) -> None:
    colours = np.tile([top, 0, top / 5], (4, 1))
    mesh = read_mesh(write_obj(tmp_path, mtl, colours=colours, uv=uv))
    assert (seen(mesh) == [255, 0, 51, 255]).all() and not mesh.flat and not mesh.plain
    missing = {None: "square.mtl", "": None, "map_Kd gone.png": "gone.png" if uv else "material m"}[mtl]
    assert [missing in note for note in mesh.notes] == ([True] if missing else [])


@pytest.mark.parametrize(
    ("lines", "alpha"),
    [
        ("d 0.25", 0.25),
        ("Tr 0.75", 0.25),
        ("d 0.25\nTr 0.25", 0.25),
        ("Tr 1\nd 1", 1),
        ("d -halo 0.5", 0.5),
        ("d 0.5\nmap_Kd tex.png", 0.5),
        ("map_d half.png\nmap_Kd tex.png", 100 / 255),
        ("d 0\nmap_d half.png\nmap_Kd tex.png", 100 / 255),
        ("d 0\nmap_d gone.png\nmap_Kd tex.png", 1),
        ("map_d rgba.png\nmap_Kd tex.png\nd 0.5", 25 / 255),
        ("map_d half.png", 100 / 255),
    ],
)
def test_opacity(tmp_path: Path, lines: str, alpha: float) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    Image.new("L", (4, 4), 100).save(tmp_path / "half.png")
    Image.new("RGBA", (4, 4), (255, 255, 255, 50)).save(tmp_path / "rgba.png")
    expected = texel(uv_of()) if "map_Kd" in lines else np.full((len(SPOTS), 3), 204)
    assert_colours(write_obj(tmp_path, lines), expected, round(255 * alpha))


@pytest.mark.parametrize("suffix", ["png", "tga", "bmp", "jpg", "webp", "tif"])
def test_texture_formats(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(TEXTURE).save(
        tmp_path / f"tex.{suffix}", **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {})
    )
    found = seen(read_mesh(write_obj(tmp_path, f"map_Kd tex.{suffix}")))[:, :3]
    known = texel(uv_of())
    assert np.abs(found - known)[known[:, 0] >= 0].max() <= (6 if suffix in ("jpg", "webp") else 1)


@pytest.mark.parametrize(
    "faces",
    [
        "f 1/1 2/2 3/3 4/4",
        "f 1/1/1 2/2/1 3/3/1\nf 1/1/1 3/3/1 4/4/1",
        "f -4/-4 -3/-3 -2/-2 -1/-1",
        "f 1/1 2/2 \\\n3/3 4/4",
        "f\t1/1  2/2\t3/3\nf 4/4 1/1 3/3 # last",
        "f 1/1 2/2 3/3\nf 1/1 3/3 4/4\nf 1 2 1",
        "f 1/1 2/2 3/3 4/4\nv 5 5 5\nvt 0 0\nf 1/1 2/2 3/3",
        "f 1/1/ 2/2/ 3/3/ 4/4/",
        "f 1/1 2/2 3/3 3/3 4/4",
        "g a\ns off\nf 1/1 2/2 3/3\no b\ng\nf 1/1 3/3 4/4\nl 1 2\np 1",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_faces(tmp_path: Path, faces: str, end: str) -> None:
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    path = write_obj(tmp_path, "map_Kd tex.png")
    text = path.read_text().partition("f ")[0] + "vn 0 0 1\n" + faces + "\n"
    path.write_bytes(text.replace("\n", end).encode())
    assert_colours(path, texel(uv_of()))
    assert sum(len(submesh.uv) for submesh in read_mesh_file(path).submeshes if submesh.uv is not None) >= 4


def test_materials_of_several_files_and_parts(tmp_path: Path) -> None:
    (tmp_path / "my one.mtl").write_text("newmtl red paint\nKd 1 0 0\n")
    (tmp_path / "two.mtl").write_text("newmtl b\nKd 0 0 1\n")
    (tmp_path / "three.mtl").write_bytes("newmtl grün\nKd 0.5\n".encode("cp1252"))
    text = "mtllib my one.mtl\nmtllib two.mtl three.mtl\n"
    for k, name in enumerate(("red paint", "b", "grün")):
        text += "".join(f"v {k} {y} {z}\n" for y, z in ((0, 0), (1, 0), (1, 1)))
        text += f"usemtl {name}\nf -3 -2 -1\n"
    (tmp_path / "a.obj").write_text(text)
    mesh = read_mesh(tmp_path / "a.obj", up="z")
    found = {float(part.corners[0, 0, 0]): part.values[0, 0].tolist() for part in mesh.parts}
    assert found == {0: [1, 0, 0], 1: [0, 0, 1], 2: [0.5, 0.5, 0.5]} and mesh.flat and not mesh.plain


def test_ply_texture_is_a_side_file(tmp_path: Path) -> None:
    text = "ply\nformat ascii 1.0\ncomment TextureFile {}\nelement vertex 4\n"
    text += "".join(f"property float {name}\n" for name in "xyzst")
    text += "element face 2\nproperty list uchar int vertex_indices\nend_header\n"
    text += "".join(
        f"{x} {y} {z} {u} {1 - v}\n" for (x, y, z), (u, v) in zip(SQUARE.tolist(), UV.tolist(), strict=True)
    )
    text += "3 0 1 2\n3 0 2 3\n"
    Image.fromarray(TEXTURE).save(tmp_path / "tex.png")
    for reference in ("tex.png", "C:\\me\\Tex.png"):
        (tmp_path / "a.ply").write_text(text.format(reference))
        assert_colours(tmp_path / "a.ply", texel(uv_of()))
    (tmp_path / "a.ply").write_text(text.format("gone.png"))
    assert "gone.png" in read_mesh(tmp_path / "a.ply").notes[0]


# --- files that the project writes -----------------------------------------------------------------------------------


def test_exports_are_read_back(tmp_path: Path) -> None:
    """GLB and OBJ of a textured mesh, in this reader and in trimesh."""
    mesh, textures = textured(trimesh.creation.box((1, 2, 3)), 64)
    pngs = files(textures)
    (tmp_path / "a.glb").write_bytes(textured_glb_bytes(mesh, pngs, "a"))
    with zipfile.ZipFile(io.BytesIO(obj_zip({"a": mesh}, pngs, "a"))) as archive:
        archive.extractall(tmp_path)
    corners = to_gltf_axes(mesh.vertices)[mesh.faces]
    for name in ("a.glb", "a.obj"):
        ours = read_mesh_file(tmp_path / name).submeshes[0]
        theirs = next(iter(trimesh.load_scene(tmp_path / name, process=False).geometry.values()))
        np.testing.assert_allclose(ours.vertices[ours.faces], corners, atol=1e-6)
        np.testing.assert_allclose(ours.uv[ours.faces], mesh.uv[mesh.faces], atol=1e-6)
        np.testing.assert_allclose(theirs.vertices[theirs.faces], ours.vertices[ours.faces], atol=1e-6)
        np.testing.assert_allclose(theirs.visual.uv[theirs.faces], ours.uv[ours.faces], atol=1e-6)
        geometry = read_mesh_file(tmp_path / name, colours=False).submeshes[0]
        np.testing.assert_allclose(geometry.normals[geometry.faces], to_gltf_axes(mesh.normals)[mesh.faces], atol=1e-6)
        assert np.array_equal(np.round(255 * ours.texture), textures.base_colour)
    save_glb(janus_stub.box(), tmp_path / "b.glb")
    ours = read_mesh_file(tmp_path / "b.glb").submeshes[0]
    theirs = next(iter(trimesh.load_scene(tmp_path / "b.glb", process=False).geometry.values()))
    np.testing.assert_allclose(ours.vertices, theirs.vertices)
    np.testing.assert_allclose(ours.colours, janus_stub.box().colours, atol=1e-4)


# --- small files of other programs -------------------------------------------------------------------------------


FOUR = {tuple(colour) for colour in COLOURS.reshape(-1, 3).tolist()}
YELLOW, GREY, WHITE = {(240, 220, 40)}, {(204, 204, 204)}, {(255, 255, 255)}


@pytest.mark.parametrize(
    ("file", "colours", "note"),
    [
        ("alpha-mask-leaf.glb", {(40, 180, 60)}, ""),
        ("blender separate/my chair.gltf", FOUR, ""),
        ("clamp-to-edge.glb", FOUR, ""),
        ("skin-two-cubes.glb", WHITE, ""),
        ("texcoord1-yellow.glb", YELLOW, ""),
        ("texture-transform-yellow.glb", YELLOW, ""),
        ("uv-ushort.glb", FOUR, ""),
        ("absolute-windows/cube.obj", FOUR, ""),
        ("d-alpha/cube.obj", FOUR, "alpha.png"),
        ("missing-mtl/cube.obj", WHITE, "cube.mtl"),
        ("missing-texture/cube.obj", GREY, "gone.png"),
        ("options/cube.obj", FOUR, ""),
        ("tga/cube.obj", FOUR, ""),
        ("vcol255/cube.obj", {(255, 0, 0)}, "cube.mtl"),
    ],
)
def test_small_files(file: str, colours: set[tuple[int, ...]], note: str) -> None:
    mesh = fit_to_ball(read_mesh(CASES / file), 0.9)
    found = seen(mesh, np.array([[x, y] for x in np.linspace(-0.9, 0.9, 15) for y in np.linspace(-0.9, 0.9, 15)]))
    opaque = found[found[:, 3] == 255, :3]
    pure, count = np.unique(opaque, axis=0, return_counts=True)
    assert {tuple(colour) for colour in pure[count > 3].tolist()} >= colours
    assert [note in text for text in mesh.notes] == ([True] if note else [])
    if file.startswith("skin"):
        assert np.ptp(mesh.corners[..., 1]) == pytest.approx(5 * np.ptp(mesh.corners[..., 2]))
