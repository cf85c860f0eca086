"""Mesh files of the project; formats without side files; limits."""

import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pygltflib as gl
import pytest
import trimesh

from tests.support.errors import refused
from tests.support.mesh_files import FACES, SQUARE, UV, Glb, seen, write_obj
from tests.support.textured_box import files, textured
from threedgen.data.coloured_mesh import EmptyMesh, fit_to_ball, read_mesh
from threedgen.export.files.glb import textured_glb_bytes, to_gltf_axes
from threedgen.export.files.obj_usdz import obj_zip
from threedgen.geometry.mesh_file import MAX_COVER, read_mesh_file
from threedgen.geometry.ply_file import MAX_HEADER
from threedgen.geometry.submesh import MAX_PARTS


def test_coordinates_of_millions(tmp_path: Path) -> None:
    small, corners = np.random.default_rng(0).normal(size=(12, 3)), []
    for offset in (0.0, 7e6):
        rows = "".join(f"v {x:.9f} {y:.9f} {z:.9f}\n" for x, y, z in (small + offset).tolist())
        (tmp_path / "a.obj").write_text(rows + "".join(f"f {k} {k + 1} {k + 2}\n" for k in range(1, 12, 3)))
        corners.append(fit_to_ball(read_mesh(tmp_path / "a.obj")).corners)
    np.testing.assert_allclose(*corners, atol=1e-7)


def _grid(count: int) -> Glb:
    """Return a GLB with `count` nodes that show one square each, side by side."""
    glb = Glb()
    glb.square()
    glb.gltf.nodes = [gl.Node(mesh=0, translation=[2.5 * k, 0, 0]) for k in range(count)]
    glb.gltf.scenes[0].nodes = list(range(count))
    return glb


def test_copies_of_a_mesh_are_one_submesh(tmp_path: Path) -> None:
    count = 3000
    mesh = read_mesh_file(_grid(count).write(tmp_path / "a.glb"))
    assert [len(part.faces) for part in mesh.submeshes] == [2 * count]
    corners = mesh.submeshes[0].vertices[mesh.submeshes[0].faces]
    assert sorted(set(corners[..., 0].ravel())) == sorted({2.5 * k + side for k in range(count) for side in (-1, 1)})


def test_deep_nodes(tmp_path: Path) -> None:
    glb = _grid(1)
    glb.gltf.nodes = [gl.Node(translation=[1, 0, 0], children=[k + 1]) for k in range(5000)] + [gl.Node(mesh=0)]
    (submesh,) = read_mesh_file(glb.write(tmp_path / "a.glb")).submeshes
    assert submesh.vertices[:, 0].mean() == 5000


def _polygon(corners: int) -> str:
    angles = np.linspace(0, 2 * np.pi, corners)
    rows = zip(np.cos(angles).tolist(), np.sin(angles).tolist(), strict=True)
    return "".join(f"v {x} {y} 0\n" for x, y in rows) + f"f {' '.join(map(str, range(1, corners + 1)))}\n"


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"
VERTICES = "ply\nformat ascii 1.0\nelement vertex {}\n" + "".join(f"property float {axis}\n" for axis in "xyz")
LISTS = "element other 101\nproperty list uchar uchar x\nend_header\n" + "0 0 0\n" * 3 + "1 0\n" + "0\n" * 100
TRIANGLES = {"submesh.MAX_TRIANGLES": 1234}
TOO_LARGE: dict[str, tuple[str | bytes, dict[str, int], list[str]]] = {
    "triangles.obj": ("v 0 0 0\n" + "f 1 1 1\n" * 1235, TRIANGLES, ["1,235", "1,234"]),
    "triangles.ply": ("ply\nformat ascii 1.0\nelement face 1235\nend_header\n", TRIANGLES, ["1,235", "1,234"]),
    "triangles.off": ("OFF\n3 1235 0\n", TRIANGLES, ["1,235", "1,234"]),
    "binary.stl": (bytes(80) + (1235).to_bytes(4, "little") + bytes(50 * 1235), TRIANGLES, ["1,235", "1,234"]),
    "text.stl": ("solid\nfacet\n" + "vertex 0 0 0\n" * 3 * 1235, TRIANGLES, ["1,235", "1,234"]),
    "parts.obj": (TRIANGLE + "".join(f"usemtl {k}\nf 1 2 3\n" for k in range(MAX_PARTS + 1)), {}, [f"{MAX_PARTS:,}"]),
    "copies.obj": (TRIANGLE + "f 1 2 3\n" * 20_000, {}, [f"{MAX_COVER:,}"]),
    "fan.obj": (_polygon(30_000), {}, [f"{MAX_COVER:,}"]),
    "header.ply": ("ply\nformat ascii 1.0\n" + "comment x\n" * 200_000, {}, [f"{MAX_HEADER:,}"]),
    "lines.obj": ("#\n" * 1236, {"submesh.MAX_LINES": 1234}, ["1,234"]),
    "lines.off": ("OFF\n1 0 0\n" + "0 0 0\n" * 1235, {"submesh.MAX_LINES": 1234}, ["1,234"]),
    "rows.ply": (VERTICES.format(1235) + "end_header\n", {"ply_file.MAX_LINES": 1234}, ["1,234"]),
    "lists.ply": (VERTICES.format(3) + LISTS, {"ply_file.MAX_TRIANGLES": 100}, ["101", "100"]),
    "vertices.obj": ("v 0 0 0\nvt 0 0\n" * 1235, {"submesh.MAX_VERTICES": 1234}, ["1,234"]),
    "words.obj": ("v" + " 0" * 1300, {"submesh.MAX_WORDS": 1234}, ["1,234"]),
    "words.off": ("OFF\n" + "0\v" * 1300, {"off_file.MAX_WORDS": 1234}, ["1,234"]),
    "words.ply": (VERTICES.format(3) + "end_header\n" + "0 " * 1300, {"submesh.MAX_WORDS": 1234}, ["1,234"]),
}
"""File name -> content, limits that are lowered for the test, numbers in the message."""


@pytest.mark.parametrize("name", TOO_LARGE)
def test_file_above_a_limit_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, limits, values = TOO_LARGE[name]
    for limit, value in limits.items():
        monkeypatch.setattr(f"threedgen.geometry.{limit}", value)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for colours in (True, False):
        with refused("mesh", tmp_path / name, *values):
            read_mesh_file(tmp_path / name, "mesh", colours)


@pytest.mark.parametrize(
    ("use", "count", "triangles"),
    [("indices", 3 * 1235, "1,235"), ("positions", 3 * 10**8, "100,000,000"), ("copies", 10**9, "1,000,000,000")],
)
def test_glb_with_too_many_triangles_is_refused_before_it_is_read(
    tmp_path: Path, use: str, count: int, triangles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threedgen.geometry.submesh.MAX_TRIANGLES", 1234)
    glb = _grid(1)
    primitive = glb.gltf.meshes[0].primitives[0]
    number = glb.accessor(FACES.ravel() if use == "indices" else SQUARE, stored=False)  # zeros
    glb.gltf.accessors[number].count = count
    if use == "indices":
        primitive.indices = number
    elif use == "positions":
        primitive.attributes.POSITION, primitive.indices = number, None
    else:
        glb.gltf.nodes[0].extensions = {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": number}}}
    for colours in (True, False):
        with refused("mesh", tmp_path / "a.glb", triangles, "1,234"):
            read_mesh_file(glb.write(tmp_path / "a.glb"), "mesh", colours)


def test_textures_above_the_limit_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threedgen.geometry.side_files.MAX_TEXELS", 300)
    glb = Glb()
    for _ in range(2):
        glb.square(glb.material(glb.texture()))
    glb.gltf.scenes[0].nodes = [0, 1]
    mesh = read_mesh_file(glb.write(tmp_path / "a.glb"))
    assert [part.texture is None for part in mesh.submeshes].count(True) == 1 and "300" in mesh.failures[0]


def test_repeated_parts_take_linear_time(tmp_path: Path) -> None:
    """Lines that switch between two materials, and copies of a box at one place."""
    start = time.process_time()
    (tmp_path / "a.obj").write_text(TRIANGLE + "usemtl a\nusemtl b\n" * 100_000 + "f 1 2 3\n")
    (submesh,) = read_mesh_file(tmp_path / "a.obj").submeshes
    assert len(submesh.faces) == 1 and time.process_time() - start < 8  # 2 million lines had no end
    path = _grid(1).write(tmp_path / "a.gltf")
    tree = json.loads(path.read_text()) | {"nodes": [{"mesh": 0}] * 100_000, "scenes": [{"nodes": [*range(100_000)]}]}
    path.write_text(json.dumps(tree))
    with refused("", path, "copies"):
        read_mesh_file(path)
    assert time.process_time() - start < 30


def test_limits_of_side_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file under many names, and many names of no file."""
    path = write_obj(tmp_path, "# " + 1000 * "x", "".join(f"mtllib {k * './'}square.mtl\n" for k in range(9)))
    assert not read_mesh_file(path).failures
    with monkeypatch.context() as limited:
        limited.setattr("threedgen.geometry.obj_file.MAX_MTL_BYTES", 5000)
        assert len(read_mesh_file(path).failures) == 1
    monkeypatch.setattr("threedgen.geometry.side_files.MAX_READ", 5000)
    with refused("", path):
        read_mesh_file(path)
    monkeypatch.setattr("threedgen.geometry.side_files.MAX_SEARCHES", 300)
    path = write_obj(tmp_path, None, "".join(f"mtllib lost{k}\n" for k in range(400)))
    with refused("", path):
        read_mesh_file(path)


def test_parts_share_a_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once."""
    glb = _grid(1)
    glb.gltf.meshes[0].primitives *= 50
    (tmp_path / "a.bin").write_bytes(glb.data)
    monkeypatch.setattr("threedgen.geometry.side_files.MAX_READ", 2 * len(glb.data))
    assert len(read_mesh_file(glb.write(tmp_path / "a.gltf", "a.bin")).submeshes) == 50


RGB = "red green blue"


@pytest.mark.parametrize(
    ("kind", "names", "colour"),
    [
        ("uchar", RGB, [255, 51, 0]),
        ("uchar", "diffuse_red diffuse_green diffuse_blue", [255, 51, 0]),
        ("uchar", "r g b", [255, 51, 0]),
        ("ushort", RGB, [65535, 13107, 0]),
        ("ushort", RGB, [255, 51, 0]),
        ("int", RGB, [255, 51, 0]),
        ("float", RGB, [1, 0.2, 0]),
        ("float", RGB, [255, 51, 0]),
        ("double", RGB, [1.0001, 0.2, 0]),
    ],
)
def test_ply_colours(tmp_path: Path, kind: str, names: str, colour: list[float]) -> None:
    """Binary files: `test_polygons.test_binary_ply_with_polygons`."""
    head = VERTICES.format(4) + "".join(f"property {kind} {name}\n" for name in names.split())
    head += "element face 2\nproperty list uchar uchar vertex_indices\nend_header\n"
    rows = "".join(f"{' '.join(map(str, [*point, *colour]))}\n" for point in SQUARE.tolist())
    (tmp_path / "a.PLY").write_text(f"{head}{rows}3 0 1 2\n3 0 2 3\n")
    assert (seen(read_mesh(tmp_path / "a.PLY")) == [255, 51, 0, 255]).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attribute", ["POSITION", "TEXCOORD_0"])
def test_values_that_are_not_finite_are_repaired(tmp_path: Path, attribute: str, seed: int) -> None:
    rng, glb = np.random.default_rng(seed), Glb()
    values = (SQUARE if attribute == "POSITION" else UV).copy()
    values[2 - seed % 3, rng.integers(values.shape[1])] = (np.nan, np.inf, -np.inf)[seed % 3]
    glb.square(glb.material(glb.texture()), **{attribute: glb.accessor(values)})
    path = glb.write(tmp_path / "a.glb")
    if attribute == "POSITION" and seed % 3 != 1:  # the corner belongs to both triangles
        with refused("", path, kind=EmptyMesh):
            read_mesh(path)
        return
    mesh = read_mesh(path)
    assert len(mesh.notes) == 1 and len(mesh.corners) == (1 if attribute == "POSITION" else 2)
    assert np.isfinite(mesh.corners).all() and np.isfinite(mesh.parts[0].values).all()


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
        assert np.array_equal(ours.texture.pixels, textures.base_colour)


CORNERS = [[-1, -1, 0], [1, -1, 0], [1, 1, 0]]
FACET = "facet normal 0 0 1\nouter loop\nvertex -1 -1 0\nvertex 1 -1 0\nvertex 1 1 0\nendloop\nendfacet\n"
BINARY = (1).to_bytes(4, "little") + np.array([[0, 0, 1], *CORNERS], "<f4").tobytes() + b"\0\0"
STL: dict[str, str | bytes] = {
    "header": f"solid a b; units=mm\n{FACET}endsolid\n",
    "upper": f"SOLID A\n{FACET}ENDSOLID A\n".upper(),
    "blank": f"\n  solid x\r\n{FACET}endsolid x\n".replace("\n", "\r\n"),
    "mark": f"\ufeffsolid x\n{FACET}endsolid x\n",
    "binary": bytes(80) + BINARY,
    "binary solid": b"solid made in CAD".ljust(80, b"\0") + BINARY + b"\r\n",
    "binary colour": b"COLOR=\xff\x00\x00\xff".ljust(80, b"\0") + BINARY + bytes(200),
}


@pytest.mark.parametrize("content", STL.values(), ids=list(STL))
def test_stl(tmp_path: Path, content: str | bytes) -> None:
    (tmp_path / "a.stl").write_bytes(content if isinstance(content, bytes) else content.encode())
    (part,) = read_mesh_file(tmp_path / "a.stl").submeshes
    assert part.vertices[part.faces].tolist() == [CORNERS]
